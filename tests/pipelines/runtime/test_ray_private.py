"""The private names of Ray that we use: where a new Ray has changed one, a test here says which."""

import inspect

import pytest
import ray
import ray.train
import ray.train.torch

from pipelines.runtime import ray_private


def test_the_trainer_has_the_callbacks_that_a_run_leaves_out() -> None:
    trainer = ray.train.torch.TorchTrainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))
    there = getattr(trainer, "_create_default_callbacks", None)
    assert there is not None, "Ray Train has no _create_default_callbacks: two processes a run are not left out"
    names = {type(callback).__name__ for callback in there()}
    for name in (ray_private.DATASETS, ray_private.PLACEMENT_GROUP_CLEANER):
        assert name in names, f"Ray Train calls {name} something else: its process is not left out"


@pytest.mark.parametrize("unused", [frozenset(), frozenset({ray_private.DATASETS})])
def test_callbacks_are_left_out_by_name(unused: frozenset[str]) -> None:
    class Trainer(ray_private.FewerCallbacks, ray.train.torch.TorchTrainer):
        pass

    trainer = Trainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))
    trainer.unused = unused
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert (ray_private.DATASETS in names) == (not unused)
    assert ray_private.PLACEMENT_GROUP_CLEANER in names


@pytest.mark.ray
def test_a_task_knows_that_it_is_run_again(ray_cluster: None) -> None:
    @ray.remote(max_retries=1, retry_exceptions=True)
    def attempt() -> bool:
        again = ray_private.tried_before()
        if not again:
            raise RuntimeError("the first time")
        return again

    assert ray.get(attempt.remote()), "Ray counts attempts otherwise: a task that is run again is not careful"


def test_no_other_file_uses_private_names() -> None:
    assert "ray._" not in inspect.getsource(__import__("pipelines.feed.ray_data", fromlist=["x"]))


def test_what_ray_prints_of_the_cluster_can_be_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    listener = inspect.getsource(ray._private.worker.listen_error_messages)
    assert "print_to_stdstream(" in listener, "Ray prints errors of the cluster by another name: none is muted"
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", lambda *given, **_: shown.append(given))
    before = ray._private.worker.print_to_stdstream
    with ray_private.mutable_messages() as messages:
        ray._private.worker.print_to_stdstream("one", ignore_prefix=True)
        messages.on = True
        ray._private.worker.print_to_stdstream("two")
    ray._private.worker.print_to_stdstream("three")
    assert shown == [("one",), ("three",)]
    assert ray._private.worker.print_to_stdstream is before
