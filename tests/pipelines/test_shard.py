"""`polyvit shard` through a real Ray, and a config that trains on what it wrote."""

import io
import json
from pathlib import Path

import pytest
import soundfile
from pipelines_kit import pair_config, planned, scanned

from pipelines import cli
from pipelines.shard import next_overrides
from polyvit.config import load_config
from polyvit.data.loading.reader import load


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_command_resumes_and_its_overrides_give_the_same_plan(
    pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pair_config(pair_root, tmp_path, f"storage={tmp_path}/runs")
    given = ["shard", f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs", "--out", f"{tmp_path}/out"]
    given += ["--per-shard", "10", "--size", "16", "--sample-rate", "8000", "--json", f"{tmp_path}/out.json"]
    assert cli.main(given) == 0
    first, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    shapes = first["tasks"]["shapes"]
    assert list(shapes["shards"]) == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "validation-000000.tar",
        "validation-000001.tar",
    ]  # fmt: skip
    assert (shapes["written"], shapes["samples"], shapes["left_out"], len(shapes["quarantine"])) == (5, 36, 0, 1)
    assert shapes["quarantine"][0]["kept"]
    assert json.loads((tmp_path / "out/shapes/quarantine.json").read_text()) == shapes["quarantine"]
    assert f"cotrain {tmp_path}/pair.yaml {' '.join(first['overrides'])}" in printed

    trained = load_config(f"{tmp_path}/pair.yaml", first["overrides"])
    here, there = scanned(config), scanned(trained)
    for step in (1, 9, 28):
        for mine, yours in zip(planned(config, here).at(step), planned(trained, there).at(step), strict=True):
            assert (mine.task, mine.positions.tolist()) == (yours.task, yours.positions.tolist())
            keys = [
                [scans[mine.task].split("train")[p].key for p in mine.positions]
                for scans in (here.scans, there.scans)
            ]
            assert keys[0] == keys[1]

    recording = load(there.scans["sounds"].examples[0], tmp_path / "out/sounds")
    assert isinstance(recording, bytes)
    facts = soundfile.info(io.BytesIO(recording))
    assert (facts.format, facts.channels, facts.samplerate) == ("FLAC", 1, 8000)

    (tmp_path / "out/sounds/train-000000.tar").unlink()
    assert cli.main(given) == 0
    again = json.loads((tmp_path / "out.json").read_text())
    assert {name: entry["written"] for name, entry in again["tasks"].items()} == {"shapes": 0, "sounds": 1}
    assert again["tasks"]["shapes"]["quarantine"] == shapes["quarantine"]


def test_wrong_numbers_are_refused_before_anything_starts(
    pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair_config(pair_root, tmp_path)
    for flag in (["--size", "3"], ["--sample-rate", "10"], ["--quality", "101"], ["--per-shard", "0"]):
        assert cli.main(["shard", f"{tmp_path}/pair.yaml", "--out", f"{tmp_path}/out", *flag]) == 2
        assert f"error: {flag[0]} {flag[1]}: allowed are " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_overrides_undo_what_belongs_to_the_old_layout(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(
        pair_root, tmp_path, f"tasks.shapes.root={pair_root}/shapes", "tasks.sounds.options={file: data.csv}",
        "tasks.sounds.classes=names.txt",
    )  # fmt: skip
    assert next_overrides(config, "s3://b/x") == [
        "data.root=s3://b/x", "tasks.shapes.layout=webdataset", "tasks.shapes.root=null",
        "tasks.sounds.layout=webdataset", "tasks.sounds.options={}", "tasks.sounds.classes=classes.txt",
    ]  # fmt: skip
    again = load_config(
        f"{tmp_path}/pair.yaml", ["tasks.sounds.options={file: data.csv}", *next_overrides(config, "s3://b/x")]
    )
    assert again.tasks["sounds"].options == {}
    assert again.tasks["shapes"].root is None
