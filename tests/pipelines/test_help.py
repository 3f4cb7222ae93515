"""What `--help` says: an example in every command, a text for every argument, the flags that all commands have."""

import argparse
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipelines.bench.main import BENCHES
from pipelines.cli import COMMANDS, MODULES
from pipelines.runtime import command_line, console

MAINS = {
    **{name: f"pipelines.{MODULES.get(name, name)}" for name in COMMANDS if name != "bench"},
    **{f"bench {name}": f"pipelines.bench.{name}" for name in BENCHES},
}


class Built(Exception):
    """Carries the parser out of a command's `main`."""


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""

    def caught(parser: argparse.ArgumentParser, *_: Any) -> int:
        raise Built(parser)

    built = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "run", caught)
        for name, module in MAINS.items():
            try:
                import_module(module).main([])
            except Built as carrier:
                built[name] = carrier.args[0]
    return built


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument, those of subcommands too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)


def test_every_command_is_looked_at(parsers: dict[str, argparse.ArgumentParser]) -> None:
    assert parsers.keys() == MAINS.keys()
    assert {parser.prog for parser in parsers.values()} == {f"polyvit {name}" for name in MAINS}


def test_every_argument_has_a_text(parsers: dict[str, argparse.ArgumentParser]) -> None:
    lacking = [
        f"{name}: {' '.join(action.option_strings) or action.dest}"
        for name, parser in parsers.items()
        for action in actions(parser)
        if not (action.help or "").strip()
    ]
    assert not lacking


def test_every_command_shows_examples_that_its_own_parser_takes(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    for name, parser in parsers.items():
        text = parser.format_help()
        assert "\nexamples:\n" in text, name
        examples = [line.strip() for line in text.partition("\nexamples:\n")[2].splitlines() if line.strip()]
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            assert words[: 1 + len(name.split())] == ["polyvit", *name.split()], example
            try:
                parser.parse_intermixed_args(words[1 + len(name.split()) :])
            except SystemExit:
                pytest.fail(f"`{example}` is not taken")


def test_every_command_has_the_common_flags(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, parser in parsers.items():
        flags = {flag for action in parser._actions for flag in action.option_strings}
        assert {"--json", "--quiet", "--verbose", "--log-level", "--help"} <= flags, name


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("polyvit ev", {"evaluate"}),
        ("polyvit c", {"config", "compare", "cotrain"}),
        ("polyvit recipes --log", {"--log-level"}),
        ("polyvit recipes --log-level w", {"warning"}),
        ("polyvit recipes ", {"--help", "--json", "--log-level", "--quiet", "--verbose", "-h"}),
        ("polyvit nothing --", set()),
    ],
)
def test_a_tab_offers_commands_and_their_flags(typed: str, offered: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text("")
    environment = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "polyvit"], env={**os.environ, **environment}, check=False)
    assert {word.strip() for word in answer.read_text().splitlines()} == offered


def test_how_much_is_said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("polyvit.some.module")

    def body(_: argparse.Namespace) -> dict[str, Any]:
        console.print("a table")
        logger.info("an info")
        logger.error("an error")
        print("what was asked for")
        return {}

    for flags, shown, logged in [
        ([], True, ["an error"]),
        (["--quiet"], False, ["an error"]),
        (["--verbose"], True, ["an info", "an error"]),
        (["--log-level", "info"], True, ["an info", "an error"]),
    ]:
        caplog.clear()
        assert command_line.run(command_line.parser("recipes", "x"), body, flags) == 0
        out = capsys.readouterr().out
        assert ("a table" in out) is shown
        assert "what was asked for" in out
        assert caplog.messages == logged
        assert (console.quiet, logger.getEffectiveLevel()) == (False, logging.WARNING)
    with pytest.raises(SystemExit):
        command_line.run(command_line.parser("recipes", "x"), body, ["--quiet", "--verbose"])
