"""What a step costs on n workers: arithmetic, gradient reduction, feeding, checkpoints. Pure functions.

In: a `RunConfig`, a number of workers, and a `Hardware` (rates; every default has its source beside it). Out:
seconds and bytes for each worker and step of a task (`step_cost`), and of the whole run (`run_cost`).
docs/scaling.md has the nine-task predictions and how far the model is from measurements.

Bytes are exact, seconds are rates applied to them: a step is compute + the part of the reduction that the backward
pass does not hide + what else is exchanged (`exchange.py`) + the optimiser's update; feeding
runs beside it and holds it back only where it is slower.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from polyvit.config import AVBertConfig, Modality, ModelConfig, RunConfig
from polyvit.cost.exchange import FLOAT, Exchanged, exchanged
from polyvit.distributed import BUCKET_BYTES
from polyvit.model import PEAK_BFLOAT16, parameters_of, touched_parameters, training_flops
from polyvit.schedule import mixes, rank_slice

GB = 1e9


@dataclass(frozen=True)
class DecodeCost:
    """CPU time of one training example: read, decode, augment, patchify.

    seconds = fixed_s + per_value_s x numbers in its tokens. encoded: bytes of its file, for the storage.
    """

    fixed_s: float
    per_value_s: float
    encoded: int

    def seconds(self, values: int) -> float:
        """Core-seconds of an example with so many numbers in its tokens."""
        return self.fixed_s + self.per_value_s * values


DECODE: Mapping[Modality, DecodeCost] = {
    "image": DecodeCost(0.794e-3, 0.96e-9, 110_000),
    "video": DecodeCost(1 / 36, 0.0, 480_000),
    "audio": DecodeCost(1 / 240, 0.0, 160_000),
    "audiovisual": DecodeCost(1 / 240, 5.8e-9, 1_440_000),
}
"""One core of a 2.5 GHz Xeon: a JPEG to 224 pixels 1,065 a second and 820 to 384, a clip of 32 frames at 224
pixels 36, a FLAC to a log-mel of 800 frames 240. Clips and spectrograms of other sizes are taken as equal. A
sequence of clips is an assumption: a video's time for each pixel and one recording, thirty seconds of H.264.
Bytes: the mean ImageNet JPEG, ten seconds of 340 x 256 H.264, ten seconds of 16 kHz FLAC. A
modality that is not here, as one of `plugins`, is taken to cost what an image does."""


@dataclass(frozen=True)
class Hardware:
    """Rates of one kind of machine. Defaults: eight H200 a node, 400 Gb/s InfiniBand for each GPU."""

    peak_flops: Mapping[str, float] = field(
        default_factory=lambda: {"bfloat16": PEAK_BFLOAT16["H200"], "float32": 67e12}
    )
    """Dense, by `train.precision`, of one worker. NVIDIA's H200 data sheet."""
    utilisation: float = 0.4
    """Share of the peak that a step achieves (MFU): an assumption, the project's goal, not a measurement."""
    launch_ms: float = 5.0
    """Least time of a step's arithmetic, however few the examples: some 500 kernels at 10 us. An assumption."""
    workers_per_node: int = 8
    link_gb_s: float = 450.0
    """Each way between the GPUs of a node: NVLink 4."""
    node_network_gb_s: float = 400.0
    """Each way of all the network cards of one node together: eight of 50 GB/s."""
    link_efficiency: float = 0.8
    """Share of the two rates above that an all-reduce gets: an assumption."""
    hop_us: float = 5.0
    """Latency of one of the 2 log2(n) hops of a bucket through a tree of workers: an assumption."""
    overlap: float = 0.8
    """Share of the backward pass under which the reduction can run, all but its last bucket: an assumption."""
    memory_gb_s: float = 4800.0
    """Of the device: H200 data sheet. Bounds the optimiser's update."""
    host_gb_s: float = 25.0
    """Host to device, each worker: half of PCIe 5 x16."""
    storage_gb_s: float = 1.0
    """Writing a checkpoint, which rank 0 does alone."""
    crowding: float = 1.0
    """How many times slower a worker computes since others share its cores; 1 on GPUs."""
    decode: Mapping[Modality, DecodeCost] = field(default_factory=lambda: DECODE)

    def peak_of(self, precision: str) -> float:
        """FLOP/s of one worker at a `train.precision`; `auto` is bfloat16 on a GPU."""
        return self.peak_flops["bfloat16" if precision == "auto" else precision]


@dataclass(frozen=True)
class StepCost:
    """One step of one task, for the busiest worker.

    local_batch: its part of the minibatch. gradient_bytes: of the parameters that the task touches.
    wire_bytes: sent by each worker, and as many received, to sum them. exchange_bytes: the same of what else all
    workers sum, in `exchange_sums` messages: a contrastive task's embeddings, batch norm's statistics.
    feed_bytes: tokens and labels brought to the worker. decode_s: core-seconds to make them.
    read_bytes: of encoded files behind them. ideal_s: compute alone, were the minibatch divided evenly.
    """

    task: str
    workers: int
    local_batch: int
    flops: float
    compute_s: float
    ideal_s: float
    gradient_bytes: int
    wire_bytes: float
    reduce_s: float
    exposed_s: float
    exchange_bytes: float
    exchange_sums: int
    exchange_s: float
    update_s: float
    feed_bytes: int
    copy_s: float
    decode_s: float
    read_bytes: int

    @property
    def step_s(self) -> float:
        """Seconds of a step whose data are in host memory; the next step's copy runs beside this one."""
        return max(self.copy_s, self.compute_s + self.exposed_s + self.exchange_s + self.update_s)

    @property
    def cores(self) -> float:
        """Cores that decode as fast as this worker trains, step after step of this task."""
        return self.decode_s / self.step_s

    @property
    def efficiency(self) -> float:
        """Share of the step that an even division of its arithmetic would take."""
        return self.ideal_s / self.step_s


def local_batches(config: RunConfig, task: str, workers: int) -> list[int]:
    """Examples that each rank takes of one minibatch; some take none where the batch is too small."""
    entry = config.tasks[task]
    slices = [rank_slice(entry.batch, rank, workers, pairs=mixes(entry)) for rank in range(workers)]
    return [stop - start for start, stop in slices]


def token_bytes(model: ModelConfig | AVBertConfig, modality: Modality) -> int:
    """One example's arrays as they leave the CPU: uint8 pixels, float16 spectrograms."""
    arrays = model.input(modality).arrays.values()
    return sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in arrays)


def reduction(sent: float, workers: int, hardware: Hardware, messages: int | None = None) -> float:
    """Seconds in which each worker sends, and receives, `sent` bytes in collectives of all workers.

    messages: how many collectives, each waited for; None: buckets of gradients. Within a node the links between
    GPUs bound it. Across nodes rings run in parallel, one a network card, so the cards of a node together do,
    where they are slower than the links.
    """
    if workers == 1:
        return 0.0
    rate = hardware.link_gb_s
    if workers > hardware.workers_per_node:
        rate = min(rate, hardware.node_network_gb_s)
    collectives = math.ceil(sent / (2 * BUCKET_BYTES)) if messages is None else messages
    hops = collectives * 2 * math.ceil(math.log2(workers))
    return sent / (rate * GB * hardware.link_efficiency) + hops * hardware.hop_us * 1e-6


def step_cost(config: RunConfig, task: str, workers: int, hardware: Hardware) -> StepCost:
    """What one step of `task` costs the busiest of `workers` workers."""
    entry, model = config.tasks[task], config.model
    rate = hardware.peak_of(config.train.precision) * hardware.utilisation
    flops_each = training_flops(model, entry.modality, entry.num_classes)
    local = max(local_batches(config, task, workers))
    gradient_bytes = FLOAT * touched_parameters(config)[task]
    flops_each *= 4 / 3 if config.train.activation_checkpointing else 1  # the forward pass once more
    compute_s = max(local * flops_each / rate * hardware.crowding, hardware.launch_ms * 1e-3)
    # A ring sums in 2 (n - 1) / n of the message; shards are gathered twice and summed once, each (n - 1) / n.
    wire_bytes = (3 if config.train.sharding == "full" else 2) * (workers - 1) / workers * gradient_bytes
    reduce_s = reduction(wire_bytes, workers, hardware)
    last_s = reduce_s * min(1.0, BUCKET_BYTES / gradient_bytes)
    hidden_s = min(reduce_s - last_s, hardware.overlap * compute_s * 2 / 3)  # 2 / 3: backward's arithmetic
    besides = exchanged(config, task) if workers > 1 else Exchanged(0, 0)
    exchange_bytes = 2 * (workers - 1) / workers * besides.bytes
    decode = hardware.decode.get(entry.modality, DECODE["image"])
    values = sum(math.prod(each.shape) for each in model.input(entry.modality).arrays.values())
    feed_bytes = local * (token_bytes(model, entry.modality) + entry.num_classes)
    return StepCost(
        task=task,
        workers=workers,
        local_batch=local,
        flops=local * flops_each,
        compute_s=compute_s,
        ideal_s=entry.batch / workers * flops_each / rate * hardware.crowding,
        gradient_bytes=gradient_bytes,
        wire_bytes=wire_bytes,
        reduce_s=reduce_s,
        exposed_s=reduce_s - hidden_s,
        exchange_bytes=exchange_bytes,
        exchange_sums=besides.sums,
        exchange_s=reduction(exchange_bytes, workers, hardware, besides.sums),
        update_s=update_passes(config, workers) * gradient_bytes / (hardware.memory_gb_s * GB) * hardware.crowding,
        feed_bytes=feed_bytes,
        copy_s=feed_bytes / (hardware.host_gb_s * GB),
        decode_s=local * decode.seconds(values),
        read_bytes=local * decode.encoded,
    )


def update_passes(config: RunConfig, workers: int) -> int:
    """How often a step's update reads or writes a tensor as large as the gradients.

    Clipping reads (norm), reads and writes; SGD reads gradient, momentum and parameter and writes two, AdamW one
    moment more each way; several workers also flatten the gradients for the reduction and copy them back.
    """
    clip = 3 if config.optim.clip_norm is not None else 1
    return clip + (5 if config.optim.kind == "sgd" else 7) + (4 if workers > 1 else 0)


@dataclass(frozen=True)
class RunCost:
    """A run on n workers. Rates are for each worker; `_peak` is the worst task, `_mean` the whole schedule.

    cores_peak: decoding cores for each worker with which no task's steps ever wait. cores_mean: what suffices if
    enough minibatches are decoded ahead. efficiency: against the same arithmetic divided evenly, nothing else.
    """

    workers: int
    steps: Mapping[str, StepCost]
    hours: float
    efficiency: float
    cores_mean: float
    cores_peak: float
    feed_gb_s_mean: float
    feed_gb_s_peak: float
    read_gb_s_mean: float
    network_gb_s_peak: float
    checkpoint_bytes: int
    checkpoint_s: float
    checkpoint_share: float

    def idle_share(self, cores: float) -> float:
        """Share of the time in which a worker's device waits for data, where `cores` cores decode for it, far
        enough ahead: what its steps need on average counts, not the heaviest."""
        return max(0.0, 1.0 - cores / self.cores_mean) if self.cores_mean else 0.0


def run_cost(
    config: RunConfig, steps_of: Mapping[str, int], workers: int, hardware: Hardware | None = None
) -> RunCost:
    """The whole run; `steps_of`: minibatches of each task, as the schedule counts them."""
    hardware = hardware or Hardware()
    costs = {name: step_cost(config, name, workers, hardware) for name in config.tasks}
    train_s = total(costs, steps_of, "step_s")
    size = checkpoint_bytes(config)
    minibatches = sum(steps_of[name] for name in costs)
    checkpoint_s = size / (hardware.storage_gb_s * GB)
    between_s = train_s / minibatches * config.train.checkpoint_every
    return RunCost(
        workers=workers,
        steps=costs,
        hours=train_s / 3600,
        efficiency=total(costs, steps_of, "ideal_s") / train_s,
        cores_mean=total(costs, steps_of, "decode_s") / train_s,
        cores_peak=max(cost.cores for cost in costs.values()),
        feed_gb_s_mean=total(costs, steps_of, "feed_bytes") / train_s / GB,
        feed_gb_s_peak=max(cost.feed_bytes / cost.step_s for cost in costs.values()) / GB,
        read_gb_s_mean=total(costs, steps_of, "read_bytes") / train_s / GB,
        network_gb_s_peak=max((cost.wire_bytes + cost.exchange_bytes) / cost.step_s for cost in costs.values())
        / GB,
        checkpoint_bytes=size,
        checkpoint_s=checkpoint_s,
        checkpoint_share=checkpoint_s / between_s,
    )


def total(costs: Mapping[str, StepCost], steps_of: Mapping[str, int], key: str) -> float:
    """A quantity of `StepCost` summed over all steps of a run."""
    return sum(steps_of[name] * getattr(cost, key) for name, cost in costs.items())


def checkpoint_bytes(config: RunConfig) -> int:
    """Parameters, and one tensor of their size for SGD's momentum or two for AdamW's moments; headers left out."""
    moments = 1 if config.optim.kind == "sgd" else 2
    return FLOAT * (1 + moments) * sum(parameters_of(config).values())
