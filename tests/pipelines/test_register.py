"""The registry: a model logged as code and safetensors answers where neither Ray nor this package is."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from use_kit import media, trained

from pipelines import predict, register
from pipelines.tracking import log_measurement
from pipelines.tracking.registry import REQUIREMENTS, X86_ONLY, download, list_versions, log_model, model_folder
from polyvit.checkpoint.state import load_trained
from polyvit.deploy.predict import Predictor
from polyvit.errors import UserError

CLEAN = """
import json, sys

class Banned:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "pipelines"):
            raise ImportError("banned: " + name)

sys.meta_path[:] = [Banned(), *(f for f in sys.meta_path if "editable" not in str(f).lower())]
sys.path[:] = [p for p in sys.path if not p.startswith(sys.argv[1]) or "site-packages" in p]
try:
    import polyvit
    raise SystemExit("polyvit can be imported from " + polyvit.__file__)
except ModuleNotFoundError:
    pass
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model("models:/polyvit@champion")
import polyvit
paths = sys.argv[3:]
by_path = model.predict(pd.DataFrame({"path": paths}), params={"top_k": 2})
content = [open(path, "rb").read() for path in paths]
by_bytes = model.predict(pd.DataFrame({"content": content}), params={"task": "picture, word"})
by_list = model.predict(paths, params={"top_k": 2})
print(json.dumps({
    "code": polyvit.__file__, "by_path": by_path.to_dict("records"), "by_bytes": by_bytes.to_dict("records"),
    "lists_agree": by_list.equals(by_path), "banned": sorted(m for m in ("ray", "pipelines") if m in sys.modules),
}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint, and the MLflow store in which it is polyvit version 1, champion."""
    folder = tmp_path_factory.mktemp("registry")
    checkpoint, _, _ = trained(folder)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    done = log_model(checkpoint, "polyvit", "champion", f"sqlite:///{folder}/mlflow.db")
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert (done["version"], done["alias"]) == ("1", "champion")
    return checkpoint, done["uri"]


@pytest.mark.slow
def test_it_answers_in_a_clean_environment(
    store: tuple[Path, str], files: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, uri = store
    names = ["image", "clip", "song", "page"]
    repository = str(Path(__file__).parents[2])
    script = tmp_path / "clean.py"
    script.write_text(CLEAN)
    given = [str(files[name]) for name in names]
    ran = subprocess.run(
        [sys.executable, "-I", str(script), repository, uri, *given],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:] + ran.stdout[-500:]
    said = json.loads(ran.stdout.splitlines()[-1])
    assert not said["code"].startswith(repository)
    assert (said["banned"], said["lists_agree"]) == ([], True)
    expected = list(Predictor.load(checkpoint).predict([files[name] for name in names], top_k=2))
    for row, answer in zip(said["by_path"], expected, strict=True):
        assert (row["modality"], row["error"]) == (answer.get("modality"), answer.get("error"))
        assert list(row["tasks"]) == list(answer.get("tasks", {}))
        for task, best in answer.get("tasks", {}).items():
            assert [entry["label"] for entry in row["tasks"][task]] == [entry["label"] for entry in best]
            found = [entry["probability"] for entry in row["tasks"][task]]
            assert found == pytest.approx([entry["probability"] for entry in best], abs=1e-6)
    assert [list(row["tasks"]) for row in said["by_bytes"]] == [["picture"], [], ["word"], []]
    assert said["by_bytes"][1]["error"] == "no task for this file: it is video; asked for: picture, word"


def test_what_is_logged(store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, uri = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    release = download("models:/polyvit/1")
    assert release == model_folder("models:/polyvit@champion")
    model, config, _ = load_trained(release)
    again, same, _ = load_trained(checkpoint)
    assert config == same
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))
    logged = release.parents[1]
    assert not [path for path in logged.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    required = (logged / "requirements.txt").read_text().splitlines()
    optional = {name for name in X86_ONLY if importlib.util.find_spec(name)}
    assert {line.partition("==")[0] for line in required} == set(REQUIREMENTS) | optional
    markers = {line.partition("==")[0]: line.partition(";")[2].strip() for line in required if ";" in line}
    assert markers == {name: X86_ONLY[name] for name in optional}
    assert "ray" not in REQUIREMENTS
    how, *small = (release.parent / "requirements-cpu.txt").read_text().splitlines()
    assert how.startswith("# pip install -r requirements-cpu.txt --extra-index-url URL")
    assert [line for line in small if not line.startswith("torch==")] == [
        line for line in required if not line.startswith("torch==")
    ]
    version = importlib.metadata.version("torch").partition("+")[0]
    assert small[-2:] == [
        f'torch=={version}+cpu; sys_platform == "linux"', f'torch=={version}; sys_platform != "linux"',
    ]  # fmt: skip
    assert (logged / "code" / "polyvit" / "deploy" / "predict.py").is_file()
    assert not (logged / "code" / "pipelines").exists()
    (version,) = list_versions()
    assert version["aliases"] == ["champion"]
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(version["run_id"])
    assert run.info.status == "FINISHED"
    assert "## Results" in client.get_model_version("polyvit", "1").description
    scores = {"step": "18", "picture/top1": "0.625", "mean": "0.625"}
    assert client.get_model_version("polyvit", "1").tags == scores
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert {metric.key: metric.value for metric in model.metrics} == {
        "registered/picture/top1": 0.625, "registered/mean": 0.625,
    }  # fmt: skip
    assert model.params["model.width"] == "16"
    assert "model_card.md" in [each.path for each in client.list_artifacts(version["run_id"])]


def test_the_command_registers_moves_aliases_and_lists(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _, config = trained(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = checkpoint.parent
    from pipelines.tracking.runs import Tracker

    tracker = Tracker.start(config, "run")
    tracker.finish("FINISHED")
    (run / "run.json").write_text(json.dumps({"mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri}))
    assert register.main([str(run), "--alias", "champion"]) == 0
    out = capsys.readouterr().out
    assert f"MLFLOW_TRACKING_URI={tracker.uri}" in out
    assert "models:/polyvit@champion" in out
    assert register.main([str(checkpoint), "--alias", "challenger"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert [(v["version"], v["aliases"], v["run_id"]) for v in list_versions()] == [
        ("1", ["champion"], tracker.run_id),
        ("2", ["challenger"], tracker.run_id),
    ]
    capsys.readouterr()
    assert register.main(["--set-alias", "champion=2", "--json", str(tmp_path / "list.json")]) == 0
    versions = json.loads((tmp_path / "list.json").read_text())["versions"]
    assert [v["aliases"] for v in versions] == [[], ["challenger", "champion"]]
    assert register.main(["--list"]) == 0
    assert "challenger, champion" in capsys.readouterr().out
    assert predict.main(["models:/polyvit@champion", str(files["image"])]) == 0
    for given, said in [
        (["--set-alias", "champion=9"], "version=9"),
        (["--set-alias", "champion"], "write ALIAS=VERSION"),
        (["--set-alias", "v2=1"], "the alias 'v2' is not allowed"),
        ([str(checkpoint), "--alias", "bad alias!"], "the alias 'bad alias!' is not allowed"),
        ([], "give one of"),
        ([str(tmp_path / "nothing")], "neither a checkpoint nor a run"),
    ]:
        assert register.main(given) == 2
        assert said in capsys.readouterr().err
    assert len(list_versions()) == 2


def test_a_store_that_was_moved_is_said_and_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _, config = trained(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    gone = tmp_path / "gone" / "mlflow.db"
    record = {"mlflow_run": "0" * 32, "mlflow_uri": f"sqlite:///{gone}"}
    (checkpoint.parent / "run.json").write_text(json.dumps(record))
    assert register.main([str(checkpoint.parent)]) == 2
    assert (
        f"the run's MLflow store sqlite:///{gone} is not there; was its folder moved?" in capsys.readouterr().err
    )
    run, line = log_measurement(config, "evaluation", "run", checkpoint, 1, {})
    assert run is None
    assert f"not logged to MLflow: the run's MLflow store sqlite:///{gone} is not there" in line
    assert not gone.parent.exists()


def test_a_model_of_another_maker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match="there is no such file"):
        download("models:/other@champion")
    assert not (tmp_path / "none.db").exists()
