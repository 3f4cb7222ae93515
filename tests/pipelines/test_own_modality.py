"""A modality that lives outside of the package trains beside images, through Ray, and is evaluated."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines_kit import pair_document
from small import write_yaml
from toy_sensor import write_signals

from pipelines import cli
from polyvit.config import MODALITIES

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(autouse=True)
def no_sensor_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table is the process's: other tests find it as it was."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    MODALITIES.pop("sensor", None)


def test_sensor_signals_beside_images(tmp_path: Path, pair_root: Path) -> None:
    write_signals(tmp_path / "wave")
    (tmp_path / "wave" / "train" / "slow" / "000.npy").write_bytes(b"no signal")
    document = pair_document(pair_root)
    del document["tasks"]["sounds"]
    document["plugins"] = {"modalities": {"sensor": "toy_sensor:SENSOR"}}
    document["model"]["inputs"] = {"sensor": {"samples": 32}}
    document["tasks"]["wave"] = {
        "modality": "sensor", "layout": "imagefolder", "num_classes": 2, "steps": 30, "batch": 8,
        "root": str(tmp_path / "wave"), "augment": {"noise": 0.1},
    }  # fmt: skip
    document["storage"] = str(tmp_path / "runs")
    recipe = write_yaml(tmp_path / "own.yaml", document)
    out = tmp_path / "out.json"
    assert cli.main(["plan", str(recipe), "--no-measure", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["tasks"]["wave"]["modality"] == "sensor"
    assert cli.main(["cotrain", str(recipe), "--name", "own", "--json", str(out)]) == 0
    wave = json.loads(out.read_text())["tasks"]["wave"]
    assert (wave["modality"], wave["steps"], wave["examples_seen"]) == ("sensor", 30, 240)
    assert wave["value"] > 0.8
    assert [entry["reason"].split(":")[0] for entry in wave["skipped_files"]] == ["sensor"]
    assert cli.main(["evaluate", str(tmp_path / "runs" / "own"), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["tasks"]["wave"]["value"] == wave["value"]
