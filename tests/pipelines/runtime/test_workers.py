"""How many workers a run gets where its config leaves it open, on GPUs or not; no Ray is started."""

from pathlib import Path

import pytest
from small import small_config

from pipelines.runtime import workers
from pipelines.runtime.placement import Node, check_resources, resolved_workers, use_gpu
from pipelines.runtime.workers import crowded, gpus_here, with_workers
from polyvit.errors import UserError

EIGHT = [Node({}, {"CPU": 32.0, "GPU": 4.0}), Node({"pool": "b"}, {"CPU": 32.0, "GPU": 4.0})]
NONE = [Node({}, {"CPU": 16.0})]


def on(monkeypatch: pytest.MonkeyPatch, nodes: list[Node]) -> None:
    monkeypatch.setattr("pipelines.runtime.placement.living_nodes", lambda: nodes)


@pytest.mark.parametrize(
    ("nodes", "keys", "number", "gpu"),
    [
        (NONE, (), 1, False),
        (EIGHT[:1], (), 4, True),
        (EIGHT, ("train.worker_node_labels.pool=b",), 4, True),
        (EIGHT[:1], ("train.gpus_per_worker=2",), 2, True),
        (EIGHT, ("train.use_gpu=false",), 1, False),
        (EIGHT, ("train.workers=2",), 2, True),
        (NONE, ("train.workers=2",), 2, False),
        (NONE, ("train.min_workers=2",), 2, False),
    ],
)  # fmt: skip
def test_null_is_every_gpu(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], keys: tuple[str, ...], number: int, gpu: bool
) -> None:
    on(monkeypatch, nodes)
    batches = [f"tasks.{task}.batch=8" for task in ("picture", "clip", "sound", "word")]
    config = resolved_workers(small_config(*batches, *keys))
    assert (config.train.workers, use_gpu(config)) == (number, gpu)
    check_resources(config)


def test_more_workers_than_gpus_is_an_error_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, EIGHT[:1])
    batches = [f"tasks.{task}.batch=8" for task in ("picture", "clip", "sound", "word")]
    with pytest.raises(UserError) as caught:
        check_resources(small_config(*batches, "train.workers=5"))
    (problem,) = caught.value.problems
    assert problem == "GPU: needs 5, the cluster has 4; or set train.use_gpu=false to train on CPUs"
    check_resources(small_config(*batches, "train.workers=5", "train.use_gpu=false"))


def test_more_gpus_than_examples_is_an_error_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, EIGHT)
    with pytest.raises(UserError) as caught:
        resolved_workers(small_config("tasks.word.batch=8", "tasks.clip.batch=8"))
    assert "tasks.picture.batch=7 must be at least train.workers=8" in str(caught.value)


def test_the_rest_of_the_config_stays() -> None:
    config = small_config()
    two = with_workers(config, 2)
    assert two.train.workers == 2
    assert two.model_copy(update={"train": config.train}) == config
    assert with_workers(two, 2) is two


def test_the_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_here() == 0
    for name in ("nvidia0", "nvidia1", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here() == 3
    for visible, number in (("0,1", 2), ("", 0), ("-1", 0), ("GPU-5e", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus_here() == number


def test_more_workers_than_cpus_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(workers, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert crowded(small_config("train.workers=2")) is None
    words = crowded(small_config("train.workers=3"))
    assert words is not None
    assert "train.workers=3 want 3 CPUs and share this machine's 2" in words
    assert words.endswith("over train.workers=2")
    assert crowded(small_config("train.workers=2", "train.cpus_per_worker=2")) is not None
    assert crowded(small_config("train.workers=3", "train.use_gpu=true")) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert crowded(small_config("train.workers=3")) is None
