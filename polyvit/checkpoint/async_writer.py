"""Checkpoints written beside training: a step waits for a copy in memory only, a thread writes the copy.

In: a `CheckpointData`. Out: a checkpoint in the store, older ones deleted. A store that cannot be written (full,
unreachable) costs a warning, and the next checkpoint is the next attempt; only the last one of a run is repeated.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from polyvit.checkpoint.state import CheckpointData
from polyvit.checkpoint.store import LocalStore, RemoteStore, folder_name, prune
from polyvit.errors import UserError

logger = logging.getLogger(__name__)
WAIT_S = 60.0
"""How long a step waits for the previous checkpoint to be written, before it gives up its own."""
INSIST_S = 300.0
"""How long the last checkpoint of a run is tried again."""


@dataclass
class Keep:
    """Which checkpoints stay: the newest `last`, and the `best` by `metric` of their evaluation."""

    last: int = 3
    best: int = 0
    metric: str = "mean"


@dataclass
class AsyncCheckpointWriter:
    """Writes one checkpoint at a time.

    keep: which checkpoints stay. before, after: called in the thread with the step, before the checkpoint is
    written and once it is whole.
    blocked_s: seconds that training has waited so far. failed: checkpoints that could not be written.
    """

    store: LocalStore | RemoteStore
    keep: Keep
    before: Callable[[int], None] = lambda step: None
    after: Callable[[int], None] = lambda step: None
    blocked_s: float = 0.0
    failed: int = 0
    _thread: threading.Thread | None = None
    _error: OSError | None = None
    _fault: Exception | None = None
    _buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def save(self, data: CheckpointData) -> None:
        """Copy and return. Gives up, with a warning, where writing the previous one takes more than WAIT_S.

        Raises UserError where writing the previous one ended in something else than the storage's error.
        """
        began = time.perf_counter()
        busy = self._busy(WAIT_S)
        if self._fault is not None:
            raise UserError(
                f"the writer of checkpoints to {self.store.address} died: {type(self._fault).__name__}: "
                f"{self._fault}; the run ends, since it would go on without checkpoints. Mend the cause (its "
                "traceback is in the log), then go on with --resume"
            ) from self._fault
        if busy:
            logger.warning(
                "no checkpoint at step %d: the one before is still being written to %s; raise "
                "train.checkpoint_every, or use faster storage", data.step, self.store.address,
            )  # fmt: skip
            self.failed += 1
        else:
            copied = CheckpointData(data.step, self._copied(data.tensors), data.document, data.scores)
            self._thread = threading.Thread(
                target=self._write_in_thread, args=(copied,), name="polyvit-checkpoint", daemon=True
            )
            self._thread.start()
        self.blocked_s += time.perf_counter() - began

    def finish(self, data: CheckpointData) -> None:
        """Write the run's last checkpoint before returning; try again for INSIST_S seconds.

        Raises UserError where it cannot be written.
        """
        self._busy(INSIST_S)
        until = time.monotonic() + INSIST_S
        while True:
            self._write(data, insisting=True)
            if self._error is None:
                return
            if time.monotonic() > until:
                raise UserError(
                    f"the last checkpoint (step {data.step}) cannot be written to {self.store.address}: "
                    f"{self._error}; make room or repair the storage, then go on with --resume"
                )
            time.sleep(min(5.0, INSIST_S / 20))

    def close(self) -> None:
        """Wait for what is being written."""
        self._busy(INSIST_S)

    def _busy(self, patience_s: float) -> bool:
        if self._thread:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                return True
            self._thread = None
        return False

    def _copied(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """Copies in memory that is used again every time: new pages would cost more than the copy."""
        for file, named in tensors.items():
            buffers = self._buffers.setdefault(file, {})
            for name, tensor in named.items():
                if name not in buffers or buffers[name].shape != tensor.shape:
                    pinned = tensor.is_cuda
                    buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                buffers[name].copy_(tensor, non_blocking=tensor.is_cuda)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {file: {name: self._buffers[file][name] for name in named} for file, named in tensors.items()}

    def _write_in_thread(self, data: CheckpointData) -> None:
        try:
            self._write(data)
        except Exception as error:  # whatever it is must reach the run, and a thread's error reaches nobody
            logger.exception("checkpoint %s could not be written", folder_name(data.step))
            self.failed += 1
            self._fault = error

    def _write(self, data: CheckpointData, insisting: bool = False) -> None:
        name = folder_name(data.step)
        try:
            self.before(data.step)
            with self.store.scratch() as folder:
                data.write(folder)
                self.store.commit(folder, data.step)
            prune(self.store, self.keep.last, self.keep.best, self.keep.metric)
        except OSError as error:
            again = "trying again" if insisting else "training goes on and tries again at the next one"
            if self._error is None or not insisting:
                logger.warning(
                    "checkpoint %s could not be written to %s: %s; %s", name, self.store.address, error, again
                )
            self.failed += 1
            self._error = error
        else:
            if self._error is not None:
                logger.warning("checkpoint %s is written: the storage works again", name)
            self._error = None
            self.after(data.step)
