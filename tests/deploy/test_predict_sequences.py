"""From a video file with its sound to classes: `polyvit predict`, the registered model, each alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sequence_kit import BOTH, PICTURES, SOUND, expected, sequence_checkpoint, sequence_media

from pipelines import cli
from pipelines.tracking.registry import log_model
from polyvit.config import RunConfig
from polyvit.deploy.isolated_predict import IsolatedDecoder, Limits, OverLimit
from polyvit.deploy.predict import Predictor, prepare
from polyvit.errors import BadMedia

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sequence_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sequence_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> RunConfig:
    return Predictor.load(checkpoint).config


ANSWERS = [("video", [BOTH, PICTURES, SOUND]), ("short", [BOTH, PICTURES, SOUND]), ("silent", [PICTURES]),
           ("song", [SOUND])]  # fmt: skip


@pytest.mark.parametrize(("name", "tasks"), ANSWERS)
def test_what_a_file_has_decides_which_tasks_answer(
    checkpoint: Path, config: RunConfig, files: dict[str, Path], name: str, tasks: list[str]
) -> None:
    """From bytes and from a path, with the evaluation's own logits; 3e-6: other batches in the sums."""
    prepared = prepare(files[name].read_bytes(), config)
    assert prepared.modality == "audiovisual"
    logits = Predictor.load(checkpoint).logits([prepared])[0]
    assert list(logits) == tasks
    for task, wanted in expected(checkpoint, files[name], tasks).items():
        torch.testing.assert_close(logits[task], wanted, rtol=0, atol=3e-6)
    by_path, by_bytes = Predictor.load(checkpoint).predict([files[name], files[name].read_bytes()])
    assert by_path == by_bytes
    assert list(by_path["tasks"]) == tasks


@pytest.mark.parametrize(
    ("name", "tasks", "reason"),
    [
        ("silent", [BOTH], "no task for this file: it has no sound track; asked for: both"),
        ("silent", [BOTH, SOUND], "no task for this file: it has no sound track; asked for: both, sound"),
        ("song", [BOTH], "no task for this file: it has no pictures; asked for: both"),
        ("photo", [], "no task for this file: it is image; the model takes: audiovisual"),
        ("page", [], "not a known picture, video or sound file"),
    ],
)
def test_one_message_for_a_file_that_no_task_takes(
    config: RunConfig, files: dict[str, Path], name: str, tasks: list[str], reason: str
) -> None:
    for modality in (None, "audiovisual"):
        with pytest.raises(BadMedia) as raised:
            prepare(files[name].read_bytes(), config, tasks, modality)
        assert raised.value.reason == reason


def test_limits_hold_for_videos_with_sound(config: RunConfig, files: dict[str, Path]) -> None:
    for limits, reason in [(Limits(pixels=500), "pixels"), (Limits(seconds=3.0), "s long")]:
        decoder = IsolatedDecoder(config, limits)
        try:
            for modality in (None, "audiovisual"):
                with pytest.raises(OverLimit, match=reason):
                    decoder.prepare(files["video"].read_bytes(), (), modality)
        finally:
            decoder.close()


def test_the_command_answers(checkpoint: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(files[name]) for name in ("video", "silent", "photo")]
    assert cli.main(["predict", str(checkpoint), *given, "--top-k", "2"]) == 2
    video, silent, photo = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert list(video["tasks"]) == [BOTH, PICTURES, SOUND]
    assert list(silent["tasks"]) == [PICTURES]
    assert photo["error"].startswith("no task for this file: it is image")
    best = expected(checkpoint, files["video"], [BOTH])[BOTH].softmax(0)
    assert [entry["index"] for entry in video["tasks"][BOTH]] == best.argsort(descending=True)[:2].tolist()
    assert video["tasks"][BOTH][0]["probability"] == pytest.approx(float(best.max()), abs=2e-6)
    assert cli.main(["predict", str(checkpoint), given[0], "--task", "learn"]) == 2
    assert "pre-training, without classes" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["predict", str(checkpoint), given[0], "--modality", "video"]) == 2
    assert "the model has no modality 'video'; it has audiovisual" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_registered_model_answers(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By path and by content, with and without its modality by name."""
    done = log_model(checkpoint, "av", "champion", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", done["uri"])
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model("models:/av@champion")
    paths = [str(files[name]) for name in ("video", "silent", "photo")]
    wanted = list(Predictor.load(checkpoint).predict([Path(path) for path in paths]))
    for table in (
        pd.DataFrame({"path": paths}),
        pd.DataFrame({"content": [Path(path).read_bytes() for path in paths]}),
    ):
        for params in ({}, {"modality": "audiovisual"}):
            rows = model.predict(table, params=params).to_dict("records")
            for row, answer in zip(rows, wanted, strict=True):
                assert (row["modality"], row["error"]) == (answer.get("modality"), answer.get("error"))
                assert list(row["tasks"]) == list(answer.get("tasks", {}))
                for task, best in answer.get("tasks", {}).items():
                    assert [each["index"] for each in row["tasks"][task]] == [each["index"] for each in best]
                    seen = [each["probability"] for each in row["tasks"][task]]
                    assert np.allclose(seen, [each["probability"] for each in best], atol=1e-6)
    assert len(model.predict(paths)) == len(paths)
    for wrong in (paths[0], [], pd.DataFrame({"file": paths}), pd.DataFrame()):
        with pytest.raises(mlflow.MlflowException, match="Send a list of paths"):
            model.predict(wrong)
