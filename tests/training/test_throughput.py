"""The loop's timers: exact arithmetic."""

import pytest
import torch
from small import small_config

from polyvit.model.flops import peak_flops, training_flops
from polyvit.training.throughput import ThroughputMeter, memory

FLOPS = {"a": 2e9, "b": 5e9}


def test_the_live_line_is_of_the_recent_steps() -> None:
    pace = ThroughputMeter(FLOPS, None)
    pace.add(1.0, 1.0, {"a": 10})
    pace.add(0.0, 2.0, {"b": 30})
    assert pace.line(5) == {"examples_per_s": 10.0, "data_wait": 0.25, "step_s": 2.0, "eta_s": 10.0}
    for _ in range(50):  # only the recent 50 steps count
        pace.add(0.0, 0.5, {"a": 1})
    assert pace.line(2) == {"examples_per_s": 2.0, "data_wait": 0.0, "step_s": 0.5, "eta_s": 1.0}


def test_a_point_sums_up_since_the_last_one() -> None:
    pace = ThroughputMeter(FLOPS, peak=1e12)
    pace.add(1.0, 1.0, {"a": 10})
    pace.add(0.0, 2.0, {"b": 30})
    pace.add(0.0, 1.0, {"a": 10, "b": 20})  # accumulating: one step of several tasks, its time shared
    pace.timed("checkpoint", 0.25)
    assert pace.take() == pytest.approx({
        "data_s": 1.0, "step_s": 4.0, "evaluate_s": 0.0, "checkpoint_s": 0.25, "data_wait": 0.2,
        "examples_per_s": 70 / 5, "tflops": (20 * 2e9 + 50 * 5e9) / 4 / 1e12, "mfu": 0.29 / 4,
        "a/ms_per_step": 750.0, "a/examples_per_s": 20 / 1.5, "b/ms_per_step": 1250.0, "b/examples_per_s": 20.0,
    })  # fmt: skip
    assert pace.take()["step_s"] == 0.0
    assert pace.line(0)["examples_per_s"] == 14.0


def test_a_cpu_has_no_known_peak() -> None:
    config = small_config()
    assert peak_flops("cpu", "bfloat16") is None
    pace = ThroughputMeter.of(config, torch.device("cpu"), 2)
    assert pace.peak is None
    task = config.tasks["sound"]
    assert pace.flops["sound"] == training_flops(config.model, "audio", task.num_classes)
    assert memory(torch.device("cpu")).keys() == {"rss_gb"}
