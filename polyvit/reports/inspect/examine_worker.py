"""`examine` in a child process, which a file may crash, hang, or fill the memory of.

In: an example's media. Out: its `MediaInfo`; a file on which the process died has that as its reason. The child is
`python -m polyvit.reports.inspect.examine_worker` (see `polyvit/data/isolation/worker.py`).
"""

import socket

import numpy as np

from polyvit.config import Modality, RunConfig
from polyvit.data.isolation import (
    Child,
    DecoderDied,
    confine,
    die_with_parent,
    import_uninterrupted,
    receive,
    run_child,
    send,
)
from polyvit.data.loading import MEMORY, Media
from polyvit.reports.inspect.examine import MediaInfo, examine


class Examiner:
    """A child process that examines files of one modality, one at a time. Threads must not share it.

    seconds: time limit for one file.
    """

    def __init__(self, config: RunConfig, modality: Modality, seconds: float) -> None:
        self.config, self.seconds = config, seconds
        hello = {"config": config.model_dump(mode="json"), "codec": config.model.input(modality).codec}
        self._child = Child("polyvit.reports.inspect.examine_worker", hello, environment={"OMP_NUM_THREADS": "1"})

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    def examine(self, media: Media, task: str, start_s: float = 0.0, end_s: float = -1.0) -> MediaInfo:
        """As the function `examine`. Pixels need no decoding and are examined in this process."""
        if isinstance(media, np.ndarray):
            config = self.config.tasks[task]
            return examine(media, config, self.config.model.input(config.modality))
        try:
            answer, _ = self._child.ask({"task": task, "segment_s": [start_s, end_s]}, media, self.seconds)
        except DecoderDied as error:
            return MediaInfo(bytes=len(media), reason=error.reason)
        return MediaInfo(**answer)

    def close(self) -> None:
        """End the child."""
        self._child.close()


def serve(descriptor: int) -> None:
    """Answer frames until the parent hangs up."""
    die_with_parent()
    with socket.socket(fileno=descriptor) as connection:
        hello, _ = receive(connection)
        config = RunConfig.model_validate(hello["config"])
        import_uninterrupted(hello["codec"])
        send(connection, {"ready": True, "confined": confine(MEMORY)})
        while True:
            asked, media = receive(connection)
            task = config.tasks[asked["task"]]
            info = examine(media, task, config.model.input(task.modality), *asked["segment_s"])
            send(connection, info.document())


if __name__ == "__main__":
    run_child(serve)
