"""What `polyvit plan` says of this machine: arithmetic exact, times real, what cannot be refused."""

import dataclasses
import math

import pytest
import torch
from small import small_config, small_plan

from pipelines.plan import conditions, duration
from polyvit.cost import run_estimate
from polyvit.cost.run_estimate import Estimate, estimate, threads_of_worker
from polyvit.model import parameters_of

CPU = torch.device("cpu")


def estimated(*overrides: str) -> tuple[Estimate, dict[str, int]]:
    config = small_config(*overrides)
    schedule = small_plan(config).schedule
    return estimate(config, schedule, CPU), schedule.counts()


@pytest.mark.usefixtures("one_thread")
def test_an_estimate_adds_up() -> None:
    prediction, counts = estimated()
    parameters = sum(parameters_of(small_config()).values())
    assert prediction.state_bytes == 12 * parameters  # parameter, gradient, momentum
    assert prediction.disk_bytes == 8 * parameters * 5  # three newest, one best, one being written
    assert prediction.hours * 3600 == pytest.approx(sum(counts[task] * s for task, s in prediction.step_s.items()))
    assert all(0 < seconds < 10 for seconds in prediction.step_s.values())
    config = small_config()
    audio = [name for name, task in config.tasks.items() if task.modality == "audio"]
    rates = [config.tasks[name].batch / prediction.step_s[name] for name in audio]
    assert rates == pytest.approx([rates[0]] * 2)  # one measurement a modality
    assert prediction.problems() == []


@pytest.mark.usefixtures("one_thread")
def test_workers_share_the_batch() -> None:
    one, _ = estimated()
    assert set(one.step_s) == set(small_config().tasks)
    config = small_config("train.workers=2", "optim.kind=adamw", "optim.ema_decay=0.9", "train.sharding=full")
    two = estimate(config, small_plan(config).schedule, CPU)
    parameters = sum(parameters_of(config).values())
    assert two.state_bytes == 16 * parameters // 2
    assert two.disk_bytes == 16 * parameters * 5


@pytest.mark.usefixtures("one_thread")
def test_what_cannot_end_is_said() -> None:
    prediction, _ = estimated()
    cramped = dataclasses.replace(prediction, memory_free=prediction.state_bytes, disk_free=10)
    problems = cramped.problems()
    assert len(problems) == len(prediction.pass_bytes) + 1
    assert "train.activation_checkpointing=true" in problems[0]
    assert "lower train.keep_checkpoints" in problems[-1]


def test_durations() -> None:
    assert [duration(s) for s in (1.234, 120, 36000, 864000)] == ["1.23 s", "2 min", "10 h", "10 days"]
    assert duration(math.nan) == "?"


def test_steps_are_timed_with_the_threads_of_a_train_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's every core would be counted on, where Ray gives a worker one thread for each logical CPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    here, seen = torch.get_num_threads(), set()
    step = run_estimate.train_step
    monkeypatch.setattr(
        run_estimate, "train_step", lambda *given: seen.add(torch.get_num_threads()) or step(*given)
    )
    for cpus, threads in ((1.0, 1), (0.5, 1), (3.0, 3)):
        seen.clear()
        prediction, _ = estimated(f"train.cpus_per_worker={cpus}")
        assert seen == {threads} == {prediction.threads}
        assert torch.get_num_threads() == here
        low, high = prediction.hours_range
        assert 0 < low <= prediction.hours <= high
        assert prediction.load >= 0
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as the user says, and then Ray does too
    assert threads_of_worker(small_config()) == 2


def test_the_conditions_of_a_measurement_are_named() -> None:
    assert conditions(1, 0.11) == (
        "timed with 1 of torch's threads, as a train worker has; load of this machine 0.1 a core"
    )
    assert conditions(None, 4.0) == (
        "load of this machine 4.0 a core: other programs are at work, a run alone is faster than this; plan again "
        "when it is quiet"
    )
