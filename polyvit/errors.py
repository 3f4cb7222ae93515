"""The two kinds of failure that are not bugs: the user's mistake, and media that cannot be decoded."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what the user gave: config, path, data. Shown without a traceback, exit status 2.

    The message says what was given, what is allowed and what to do. `problems` holds one line each where
    several were found at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.message = message
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, tuple[str, ...]]]:
        return (type(self), (self.message, self.problems))


class BadMedia(Exception):
    """One example's bytes cannot be turned into an array. `reason` is a short, stable sentence.

    Raised by the decoders; the feed catches it, quarantines the example and takes a substitute.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
