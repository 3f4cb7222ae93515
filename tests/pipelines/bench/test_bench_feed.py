"""`polyvit bench feed` end to end on a tiny task; what the sides deliver; the meters."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from pipelines_kit import pair_config, pair_document, planned, scanned
from small import write_yaml

from pipelines.bench import main
from pipelines.bench.feed import Bench, cases, loop_rate
from pipelines.bench.feed_sides import SIDES, Stub, cpu_seconds, cpu_since, sides, write_data
from pipelines.feed.worker_feed import make_decoder
from polyvit.config import load_config
from polyvit.data.loading.requests import Requests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.4, 1.6])
def test_feed(
    pair_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    load: float,
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    written, file = pair_document(pair_root), tmp_path / "feed.json"
    del written["tasks"]["sounds"]
    recipe = write_yaml(tmp_path / "one.yaml", written)
    arguments = [
        "feed", str(recipe), "--workers", "1", "--rounds", "1", "--seconds", "0.1", "--steps", "25",
        "--sections", "delivered,host,memory", "--json", str(file),
    ]  # fmt: skip
    assert main.main(arguments) == 0
    document = json.loads(file.read_text())
    assert set(document["delivered"]) == {"image"}
    for case in document["delivered"].values():
        assert set(case["sides"]) == set(SIDES)
        assert case["sides"]["dataloader"]["ratio"] == (1.0 if load < 1 else None)
        for name, target in (("ray_core", 1.0), ("ray_data", 0.95)):
            row = case["sides"][name]
            assert row["reached"] == (row["ratio"] >= target if load < 1 else None)
            assert row["rounds"][0]["examples_per_s"] == row["examples_per_s"] > 0
            assert row["cpu_ms_per_example"] > 0
        assert len(case["load"]) == 2
    rates = document["host"]["loop"]
    assert rates.keys() == {"alone", "with_feed", "with_feed_and_5_ms_step"}
    assert min(rates.values()) > 0
    assert rates["with_feed_and_5_ms_step"] < 200
    assert set(document["memory"]) == {f"{b}, {k}" for b in SIDES[1:] for k in ("one_task", "all_tasks")}
    assert all(row["end_mb"] > 0 for row in document["memory"].values())
    assert {"claims", "processes", "machine"} <= document.keys()
    printed = capsys.readouterr().out
    assert "delivered by" in printed
    assert ("no ratios: the load was 1.6 before" in printed) == (load > 1)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--sections", "taste"], "--sections taste"), (["--rounds", "0"], "above 0")]
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["feed", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_every_side_delivers_every_example(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path, "schedule.steps=6")
    indexes = scanned(config)
    requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
    listed = [request for step in range(1, 7) for request in requests.at(step)]
    decoder = Stub.of(make_decoder(config, indexes), real_size=True)
    expected = [len(request.examples) for request in listed]
    for side in sides(decoder, config, processes=2).values():
        assert list(side(listed)) == expected


@pytest.mark.parametrize(
    ("step_s", "stubbed"),
    [
        pytest.param(0.0, False, marks=pytest.mark.slow),
        (0.005, False),
        pytest.param(0.005, True, marks=pytest.mark.slow),
    ],
)
def test_the_loops_rate_is_that_of_its_steps(
    pair_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, stubbed: bool
) -> None:
    """By a clock that goes on by 1 ms whenever it is read, and by what is slept."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def perf_counter() -> float:
        now[0] += 0.001
        return now[0]

    config = pair_config(pair_root, tmp_path)
    bench_ = Bench(config, scanned(config), workers=1, rounds=1, seconds=0.1, processes=2)
    monkeypatch.setattr("pipelines.bench.feed.time", SimpleNamespace(sleep=sleep, perf_counter=perf_counter))
    assert loop_rate(bench_, config, 20, step_s, stubbed) == pytest.approx(1 / (0.001 + step_s))


def test_cpu_time_counts_children_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and what it starts: what Ray's processes do at the time is not the test's."""
    monkeypatch.setattr("pipelines.bench.feed_sides.process_tree", lambda: [psutil.Process()])
    before = cpu_seconds()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=300)
    assert 0.25 < cpu_since(before) < 5


def test_write_data_can_be_decoded(tmp_path: Path) -> None:
    config = load_config("polyvit-b-nine", [], ["imagenet", "vggsound"])
    indexes = write_data(tmp_path, config, clips=0)
    requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 32)
    for task in config.tasks:
        step = int(requests.plan.schedule.steps_of(task)[0])
        (request,) = requests.at(step)
        made = make_decoder(config, indexes).decode(request)
        assert not made.bad
        assert made.rows == config.tasks[task].batch // 32
        assert np.ptp(made.inputs["tokens"].astype(np.float32)) > 1
    assert cases(config) == {"image": ["imagenet"], "audio": ["vggsound"], "mix": ["imagenet", "vggsound"]}
