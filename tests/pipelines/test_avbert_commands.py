"""What the commands do with an AVBert: package and register it; one message where its files cannot be read."""

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import avbert_small
import pytest
from small import write_yaml

from pipelines import cli
from pipelines.serve import start
from pipelines.tracking.registry import log_model
from polyvit.checkpoint.state import load_trained
from polyvit.config import SequenceInput
from polyvit.errors import UserError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def run(*arguments: object) -> tuple[int, str]:
    """A command's exit status and what it says on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        return cli.main([str(argument) for argument in arguments]), " ".join(err.getvalue().split())


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a version without the modality's codec, or a plugin whose decoder is not installed."""
    monkeypatch.setattr(SequenceInput, "codec", "polyvit.data.loading.codecs.not_there")


def refused(config: Path, checkpoint: Path, tmp_path: Path) -> dict[str, tuple[Any, ...]]:
    root = f"data.root={tmp_path}"
    (tmp_path / "song.wav").write_bytes(b"")
    job = ("--input", tmp_path, "--output", tmp_path / "answers")
    return {
        "cotrain": (config, root),
        "inspect": (config, root),
        "shard": (config, root, "--out", tmp_path / "shards"),
        "sweep": (config, root, "--over", "model.sharing.rank=2,4"),
        "plan": (config, root, "--no-measure"),
        "evaluate": (checkpoint, root),
        "probe": (checkpoint, config, root),
        "predict": (checkpoint, tmp_path / "song.wav"),
        "predict ": (checkpoint, *job),
    }


@pytest.mark.usefixtures("unreadable")
def test_one_message_where_files_cannot_be_read(tmp_path: Path) -> None:
    """Before Ray is started and before anything is written."""
    checkpoint, _, _ = avbert_small.trained(tmp_path / "trained")
    config = write_yaml(tmp_path / "tiny.yaml", {**avbert_small.TINY, "storage": str(tmp_path / "runs")})
    for command, given in refused(config, checkpoint, tmp_path).items():
        status, said = run(command.strip(), *given)
        assert status == 2, command
        assert "this version cannot read files of audiovisual tasks yet" in said, (command, said)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "answers").exists()


@pytest.mark.usefixtures("unreadable")
def test_a_service_is_not_started(tmp_path: Path) -> None:
    checkpoint, _, _ = avbert_small.trained(tmp_path)
    with pytest.raises(UserError, match="this version cannot read files of audiovisual tasks yet"):
        start(argparse.Namespace(model=str(checkpoint)))


def test_a_plan_without_data_works_and_extend_says_what_to_do(tmp_path: Path) -> None:
    checkpoint, _, _ = avbert_small.trained(tmp_path / "trained")
    config = write_yaml(tmp_path / "tiny.yaml", avbert_small.TINY)
    kept = tmp_path / "plan.json"
    assert run("plan", config, "--no-measure", f"init.path={checkpoint}", "--json", kept)[0] == 0
    assert json.loads(kept.read_text())["parameters"]["transformers/visual"] > 0
    status, said = run("plan", config, "--no-measure", f"init.path={checkpoint}", "model.width=32")
    assert (status, "init.path: model.width=32: the checkpoint has 16" in said) == (2, True)
    status, said = run("extend", checkpoint, config)
    assert (status, "extend works for model.kind=polyvit" in said) == (2, True)


def test_a_registered_avbert_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, model, _ = avbert_small.trained(tmp_path)
    done = log_model(checkpoint, "avbert", "champion", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", done["uri"])
    from pipelines.tracking import model_folder

    again, _, _ = load_trained(model_folder("models:/avbert@champion"))
    assert all((again.state_dict()[name] == tensor).all() for name, tensor in model.state_dict().items())
    import mlflow

    assert mlflow.pyfunc.load_model("models:/avbert@champion") is not None
