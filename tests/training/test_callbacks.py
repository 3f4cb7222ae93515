"""Callbacks: what they hear, what their mistakes do; TensorBoard's files hold each point once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks_kit import events, scalars
from pipelines_kit import pair_document
from small import small_config

from polyvit import Callback, RunInfo, StepReport, UserError, train
from polyvit.config import load_config
from polyvit.training import CallbackList, callbacks_of, checked_callbacks
from polyvit.training.tensorboard import TensorBoard

pytestmark = pytest.mark.usefixtures("one_thread")


class Diary(Callback):
    """Keeps all that it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_start(self, run: RunInfo) -> None:
        self.heard.append(("start", run.total, run.start_step))

    def on_step(self, report: StepReport) -> None:
        self.heard.append(("step", report.step, report))

    def on_log(self, step: int, values: dict[str, float]) -> None:
        self.heard.append(("log", step, values))

    def on_evaluation(self, step: int, scores: dict[str, float]) -> None:
        self.heard.append(("evaluation", step, scores))

    def on_checkpoint(self, step: int, address: str) -> None:
        self.heard.append(("checkpoint", step, address))

    def on_end(self) -> None:
        self.heard.append(("end",))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry[1:] for entry in self.heard if entry[0] == kind]


class Failing(Callback):
    """Fails at one step."""

    def on_step(self, report: StepReport) -> None:
        if report.step == 5:
            raise KeyError("mine")


def document(pair_root: Path, tmp_path: Path) -> dict[str, Any]:
    train_section = {"log_every": 7, "eval_every": 14, "checkpoint_every": 10, "tensorboard": True}
    return {**pair_document(pair_root), "storage": str(tmp_path), "train": train_section}


def test_what_callbacks_hear_and_tensorboard_writes(pair_root: Path, tmp_path: Path) -> None:
    diary = Diary()
    run = train(document(pair_root, tmp_path), device="cpu", progress=False, callbacks=[diary])
    assert diary.heard[0] == ("start", 28, 0)
    assert diary.heard[-1] == ("end",)
    assert [step for step, _ in diary.of("step")] == list(range(1, 29))
    report = diary.of("step")[-1][1]
    assert (report.total, len(report.losses), report.lr >= 0, report.grad_norm > 0) == (28, 1, True, True)
    assert [{"step": step, **values} for step, values in diary.of("log")] == run.history
    assert [step for step, _ in diary.of("evaluation")] == [14, 28]
    last = {name: row["value"] for name, row in run.results.items()}
    assert {k: v for k, v in diary.of("evaluation")[-1][1].items() if k != "mean"} == last
    folders = [Path(address) for _, address in diary.of("checkpoint")]
    assert [(folder.name, (folder / "manifest.json").exists()) for folder in folders] == [
        (f"step_{step:08d}", True) for step in (10, 20, 28)
    ]
    written = scalars(run.folder / "tensorboard")
    assert [step for step, _ in written] == [7, 14, 21, 28]
    for (_, values), point in zip(written, run.history, strict=True):
        expected = {name: value for name, value in point.items() if name != "step"}
        assert values == pytest.approx(expected, rel=1e-6)


def test_tensorboard_after_a_kill_and_resume_holds_each_point_once(tmp_path: Path) -> None:
    info = RunInfo(small_config(), tmp_path, 30)
    killed = TensorBoard()
    killed.on_start(info)
    for step in (10, 20):
        killed.on_log(step, {"train/a/loss": float(step)})
    killed.file.flush()  # and no more is heard of it
    assert [step for step, _ in scalars(tmp_path / "tensorboard")] == [10, 20]
    again = TensorBoard()
    again.on_start(RunInfo(info.config, tmp_path, 30, 10, [(10, {"train/a/loss": 10.0})]))
    for step in (20, 30):
        again.on_log(step, {"train/a/loss": float(step)})
    again.on_end()
    assert scalars(tmp_path / "tensorboard") == [(n, {"train/a/loss": float(n)}) for n in (10, 20, 30)]
    assert events(tmp_path / "tensorboard")[0].file_version == "brain.Event:2"


def test_tensorboard_on_full_storage_warns_once_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board = TensorBoard()
    board.on_start(RunInfo(small_config(), tmp_path, 30))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoard, "_add", full)
        board.on_log(10, {"a": 1.0})
        board.on_log(20, {"a": 2.0})
    assert len([r for r in caplog.records if "TensorBoard's curves cannot be written" in r.message]) == 1
    board.on_log(30, {"a": 3.0})
    board.on_end()
    assert scalars(tmp_path / "tensorboard") == [(10, {"a": 1.0}), (20, {"a": 2.0}), (30, {"a": 3.0})]


def test_a_callback_that_fails_ends_the_run_with_a_checkpoint(pair_root: Path, tmp_path: Path) -> None:
    diary = Diary()
    with pytest.raises(UserError, match=r"test_callbacks:Failing.on_step raised KeyError: 'mine'"):
        train(document(pair_root, tmp_path), device="cpu", progress=False, callbacks=[Failing(), diary])
    assert [step for step, _ in diary.of("step")] == [1, 2, 3, 4, 5, 6]
    assert [Path(address).name for _, address in diary.of("checkpoint")] == ["step_00000006"]
    assert diary.heard[-1] == ("end",)


def test_a_failed_callback_is_not_called_again_but_closes() -> None:
    class Broken(Diary):
        def on_log(self, step: int, values: dict[str, float]) -> None:
            values.clear()
            raise ValueError("no")

    broken, diary = Broken(), Diary()
    several = CallbackList([broken, diary])
    several.log(1, {"a": 1.0})
    several.evaluation(1, {"a": 1.0})
    several.end()
    assert broken.heard == [("end",)]
    assert diary.heard == [("log", 1, {"a": 1.0}), ("evaluation", 1, {"a": 1.0}), ("end",)]
    with pytest.raises(UserError, match="ValueError: no"):
        several.check()


def test_callbacks_of_a_config() -> None:
    built = callbacks_of(small_config("train.callbacks=[test_callbacks:Diary]", "train.tensorboard=true"))
    assert [type(callback).__name__ for callback in built] == ["Diary", "TensorBoard"]
    assert callbacks_of(small_config()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("test_callbacks", "'test_callbacks' is no address; write module:attribute"),
        ("no_such_module:It", "no_such_module:It: No module named 'no_such_module'"),
    ],
)
def test_a_config_with_a_class_that_is_not_there_is_refused(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo", [f"train.callbacks=['{address}']"])


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(UserError, match=r"torch:nn is no subclass of polyvit\.Callback"):
        callbacks_of(small_config("train.callbacks=['torch:nn']"))
    with pytest.raises(UserError, match=r"the class Diary is no polyvit\.Callback"):
        checked_callbacks([Diary])
    with pytest.raises(UserError, match=r"Tensor is no polyvit\.Callback"):
        checked_callbacks([torch.zeros(1)])
