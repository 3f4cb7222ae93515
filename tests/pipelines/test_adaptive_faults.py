"""A real run whose schedule reacts, and which measures interference on the way, is killed: it ends as one that was
not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from pipelines_kit import pair_document
from small import write_yaml
from test_cotrain import cotrain, kill_a_worker_after

from polyvit.checkpoint.metrics_log import read_metrics_log
from polyvit.checkpoint.state import read_document

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
KEYS = [
    "schedule.kind=adaptive", "schedule.adaptive.exponent=8", "train.workers=2", "train.max_failures=1",
    "train.eval_every=7", "train.checkpoint_every=2", "train.log_every=1", "train.interference_every=9",
    "train.drift=true",
]  # fmt: skip


def test_a_killed_adaptive_run_takes_the_same_decisions(
    tmp_path: Path, pair_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = str(write_yaml(tmp_path / "pair.yaml", pair_document(pair_root)))
    status, expected = cotrain(tmp_path, recipe, "--name", "straight", *KEYS)
    assert status == 0
    with ThreadPoolExecutor(1) as thread:
        session = ray.get_runtime_context().get_session_name()
        killed = thread.submit(kill_a_worker_after, tmp_path / "killed", 7, session)
        status, document = cotrain(tmp_path, recipe, "--name", "killed", *KEYS)
        assert killed.result() >= 8  # after the first decision, before the end
    assert status == 0

    one, other = Path(expected["checkpoint"]), Path(document["checkpoint"])
    for name in ("model.safetensors", "optimiser.safetensors", "drift.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    wanted, state = read_document(one), read_document(other)
    assert {key for key in wanted if wanted[key] != state[key]} <= {"config"}
    assert [decision["step"] for decision in wanted["decisions"]] == [7, 14, 21]
    assert len({tuple(decision["shares"].values()) for decision in wanted["decisions"]}) > 1  # it reacted
    assert document["decisions"] == expected["decisions"] == wanted["decisions"]

    curves = []
    for name in ("straight", "killed"):
        points = dict(read_metrics_log(tmp_path / name / "history"))
        curves.append({
            (step, key): value
            for step, values in points.items() for key, value in values.items() if not key.startswith("pace/")
        })  # fmt: skip
    assert curves[0] == curves[1]
    measured = {step for step, key in curves[0] if key == "interference/shapes/sounds/cosine"}
    assert measured == {9, 18, 27}
