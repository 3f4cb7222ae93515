"""One task cut out of the shared model, as a file that needs none of this code: torch.export and ONNX.

In: a trained model and a task. Out: media of the model's size -> logits [B, K], B free:
image  uint8 RGB [B, H, W, 3]; video uint8 RGB [B, T, H, W, 3]; audio float32 log-mel [B, T, F];
audiovisual  two inputs, see `sequence_model.py`. A CNN alone gives features instead, see `clip_cnn.py`.
The exported graph cuts patches, normalises, embeds and classifies. The caller resizes or computes the log-mel as
`task.json` describes (or with `polyvit.data.loading`, as training did). Each of several evaluation views is one
example of the batch, and the caller averages. Legend: B batch, T frames, H W C, F mel bins, N tokens, P patch_dim.
"""

import itertools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvit.config import InputSection, RunConfig, TaskConfig
from polyvit.data.loading import Minibatch, codec_of
from polyvit.deploy.clip_cnn import ARRAYS, ClipCNN, ClipInput, Part, task_of_part
from polyvit.deploy.sequence_model import SequenceTaskModel
from polyvit.errors import UserError
from polyvit.evaluation import MetricState, average_views
from polyvit.model import LowRankBlock, MultiTaskModel, PolyViT, normalise
from polyvit.model.avbert import AVBert
from polyvit.objectives import example_losses

TOLERANCE = 1e-4
"""Largest difference of a logit that an exported model may show, relative to the largest logit above 1."""
Runner = Callable[..., np.ndarray]
"""Media of the model's size, an array for each input in order -> logits [B, K], or features."""


class TaskModel(nn.Module):
    """Tokenizer, adaptor blocks, shared blocks, norm and head of one task: media -> logits [B, K]."""

    output = "logits"

    def __init__(self, model: PolyViT, config: RunConfig, task: str) -> None:
        super().__init__()
        modality = config.tasks[task].modality
        self.spec = config.model.input(modality)
        self.tokenizer = model.tokenizers[modality]
        self.modality = modality
        self.blocks = nn.ModuleList(model.blocks_alone(modality))
        self.norm, self.head = model.shared.norm, model.heads[task]

    def forward(self, media: Tensor) -> Tensor:
        """Media as the module's docstring says -> logits, float32 [B, K]."""
        x_BND = self.tokenizer(self.tokens(media))
        for block in self.blocks:
            x_BND = block(x_BND, None, self.modality) if isinstance(block, LowRankBlock) else block(x_BND)
        return self.head(self.norm(x_BND)[:, 0])

    def tokens(self, media: Tensor) -> Tensor:
        """float32 [B, N, P]: what the feed and `normalise` make of the same media."""
        spec = self.spec
        if spec.normalisation is not None:
            mean, std = spec.normalisation
            media = ((media - mean) / std).half().float()[..., None]  # the feed rounds spectrograms to half floats
        return normalise(_patchify(media, spec.patch, spec.strides))


def _patchify(media: Tensor, patch: tuple[int, ...], step: tuple[int, ...]) -> Tensor:
    """[B, *sides, C] to [B, N, P], in the order of `data.patchify`."""
    dims = len(patch)
    if step == patch:
        split = [n for side, p in zip(media.shape[1:-1], patch, strict=True) for n in (side // p, p)]
        blocks = media.reshape(-1, *split, media.shape[-1])
        order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
        blocks = blocks.permute(order)
    else:
        for axis, (p, d) in enumerate(zip(patch, step, strict=True), start=1):
            starts = torch.arange(0, media.shape[axis] - p + 1, d)
            media = media.index_select(axis, (starts[:, None] + torch.arange(p)).reshape(-1))
            media = media.unflatten(axis, (len(starts), p)).movedim(axis + 1, -2)
            # The patch's axes gather before the channels, in order.
        blocks = media
    return blocks.flatten(1, dims).flatten(2)


def task_model(model: MultiTaskModel, config: RunConfig, task: str) -> "TaskModel | SequenceTaskModel":
    """One task of a trained model of any kind as a module of plain arrays, in eval mode."""
    if isinstance(model, AVBert):
        return SequenceTaskModel(model, config, task).eval()
    assert isinstance(model, PolyViT)
    return TaskModel(model, config, task).eval()


def media_shape(spec: InputSection) -> tuple[int, ...]:
    """One example of the exported model's input, without the batch."""
    return (*spec.media_size, 3) if spec.channels_last else spec.media_size


def media_of(tokens_BNP: np.ndarray, spec: InputSection) -> np.ndarray:
    """The media [B, *sides, C] that tokens were cut from: the inverse of patchify, for overlapping patches too.

    tokens_BNP: as the feed gives them, uint8, or float16 for audio. Spectrograms [B, T, F] come back as float32,
    without their normalisation. What no patch covers is 0.
    """
    channels = 3 if spec.channels_last else 1
    media = np.zeros((len(tokens_BNP), *spec.media_size, channels), tokens_BNP.dtype)
    for n, place in enumerate(itertools.product(*map(range, spec.grid))):
        window = tuple(slice(i * d, i * d + p) for i, d, p in zip(place, spec.strides, spec.patch, strict=True))
        media[(slice(None), *window)] = tokens_BNP[:, n].reshape(-1, *spec.patch, channels)
    if spec.normalisation is None:
        return media
    mean, std = spec.normalisation
    return media[..., 0].astype(np.float32) * np.float32(std) + np.float32(mean)


def example_media(spec: InputSection, batch: int, seed: int = 0) -> np.ndarray:
    """Noise of the input's shape and type: uint8 [B, *sides, 3], or float32 [B, T, F]."""
    rng = np.random.default_rng(seed)
    shape = (batch, *media_shape(spec))
    if spec.normalisation is not None:
        mean, std = spec.normalisation
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def example_inputs(spec: InputSection | ClipInput, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise for every input of the exported model, by name and in order: `media`, or a section's own arrays."""
    if isinstance(spec, InputSection) and "tokens" in spec.arrays:
        return {"media": example_media(spec, batch, seed)}
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, (batch, *each.shape), dtype=np.uint8)
        if each.dtype == "uint8"
        else rng.standard_normal((batch, *each.shape)).astype(np.float32)
        for name, each in spec.arrays.items()
    }


# ------------------------------------------------------------------------------------------------- files


Exportable = TaskModel | SequenceTaskModel | ClipCNN
"""A module of plain arrays, with `spec` of its inputs and the name of its `output`."""


def export_torch(module: Exportable, path: Path) -> Runner:
    """A .pt2 file, read with `torch.export.load(path).module()`. Returns what runs it."""
    media = tuple(map(torch.from_numpy, example_inputs(module.spec, 2).values()))
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), media, dynamic_shapes=({0: batch},) * len(media))
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    return torch_runner(loaded)


def torch_runner(module: nn.Module) -> Runner:
    """A module as a function of arrays."""

    def run(*media: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, media)).numpy()

    return run


def export_onnx(module: Exportable, path: Path, metadata: Mapping[str, Any] | None = None) -> Runner:
    """An .onnx file: inputs as `example_inputs`, one output, `logits` or `features`. Returns what runs it.

    metadata: becomes the file's `metadata_props`, as text: strings as they are, all else as JSON.
    Raises UserError where the packages of the extra `export` are not installed.
    """
    require_onnx()
    media = {name: torch.from_numpy(array) for name, array in example_inputs(module.spec, 2).items()}
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), tuple(media.values()), path, input_names=[*media], output_names=[module.output],
            dynamo=True, dynamic_shapes=({0: batch},) * len(media), external_data=False, verbose=False,
        )  # fmt: skip
    if metadata:
        import onnx

        model = onnx.load(path)
        texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in metadata.items()}
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
    return onnx_runner(path)


def require_onnx() -> None:
    """Raises UserError where ONNX's packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs a package that is not here ({error}): pip install 'polyvit[export]'"
        ) from None


def onnx_runner(path: Path) -> Runner:
    """An .onnx file in ONNX Runtime, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *media: session.run(None, dict(zip(names, media, strict=True)))[0]


def quantise(path: Path, target: Path) -> Runner:
    """Dynamic int8: weights of matrix products as int8, one scale a column; activations are scaled at run time.
    Returns what runs it.

    Weights lie in -64..64: a CPU without VNNI adds two products with activations of up to 255 in 16 bits, where
    larger ones would be clipped silently.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # The exporter noted shapes before it transposed weights; the quantiser infers them again.
    del model.graph.value_info[:]
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(
            model, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    finally:
        logging.getLogger().removeFilter(_no_advice)
    return onnx_runner(target)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


# --------------------------------------------------------------------------------------------- figures


def latency_ms(run: Runner, *media: np.ndarray, seconds: float = 2.0) -> float:
    """Median milliseconds of `run` on `media` [B, ...]: calls for `seconds`, at least 10, after two to warm up.

    Of a slow model as many as ten times the seconds hold.
    """
    times: list[float] = []
    for _ in range(2):
        run(*media)
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or (len(times) < 10 and spent < 10 * seconds):
        start = time.perf_counter()
        run(*media)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def difference(run: Runner, reference: Runner, spec: InputSection | ClipInput, batch: int = 3) -> float:
    """Largest difference of logits or features on noise, relative to the largest where that is above 1."""
    media = example_inputs(spec, batch, seed=1).values()
    wanted = reference(*media)
    return float(np.abs(run(*media) - wanted).max() / max(1.0, np.abs(wanted).max()))


def accuracy(runs: Mapping[str, Runner], minibatches: Iterable[Minibatch], config: RunConfig, name: str) -> Any:
    """The task's evaluation with each of `runs`: {run: {metric, value, examples, loss, ...}}."""
    task = config.tasks[name]
    spec = config.model.input(task.modality)
    states = {key: MetricState(task.metric == "map") for key in runs}
    for minibatch in minibatches:
        if not minibatch.rows:
            continue
        media = feed_media(minibatch.inputs, spec)
        labels = torch.from_numpy(minibatch.labels)
        for key, run in runs.items():
            logits = average_views(torch.from_numpy(run(*media)), minibatch.views, task)
            losses = example_losses(logits, labels, task.loss)
            states[key].update(logits.numpy(), minibatch.labels, losses.numpy())
    results = {key: {"metric": task.metric, "examples": s.examples, **s.results()} for key, s in states.items()}
    return {key: {**each, "value": each.get(task.metric)} for key, each in results.items()}


def feed_media(inputs: Mapping[str, np.ndarray], spec: InputSection) -> tuple[np.ndarray, ...]:
    """The exported model's inputs for a minibatch's: media of its tokens, or its arrays in the model's order."""
    if "tokens" in inputs:
        return (media_of(inputs["tokens"], spec),)
    arrays = (inputs[name] for name in spec.arrays)
    return tuple(a if a.dtype == np.uint8 else a.astype(np.float32) for a in arrays)


# ----------------------------------------------------------------------------------------- description


def description(config: RunConfig, name: str, classes: Sequence[str], step: int) -> dict[str, Any]:
    """`task.json`: what goes in and comes out, and how media become the input."""
    task = config.tasks[name]
    spec = config.model.input(task.modality)
    return {
        "task": name,
        "modality": task.modality,
        **_inputs_description(task, spec),
        "output": {
            "name": "logits",
            "shape": ["batch", task.num_classes],
            "probabilities": "sigmoid, each class for itself" if task.loss == "sigmoid" else "softmax",
        },
        "views": task.eval_views,
        "views_averaged": getattr(task, "eval_average", None),
        "settings": {
            "input": spec.model_dump(mode="json"),
            "augment": task.augment.model_dump(mode="json"),
        },
        "step": step,
        "classes": list(classes),
    }


def part_description(config: RunConfig, part: Part, channels: int, step: int) -> dict[str, Any]:
    """`part.json` of a CNN alone: what goes in and comes out, and how a sequence's clips are prepared."""
    name = task_of_part(config, part)
    task = config.tasks[name]
    spec = config.model.input(task.modality)
    whole = _inputs_description(task, spec)["inputs"]
    (given,) = (each for each in whole if each["name"] == ARRAYS[part])
    return {
        "part": part,
        "input": {**given, "shape": ["batch", *given["shape"][2:]], "one": "clip of a sequence"},
        "output": {"name": ClipCNN.output, "shape": ["batch", channels]},
        "settings": {"input": spec.model_dump(mode="json"), "augment": task.augment.model_dump(mode="json")},
        "settings_of": name,
        "step": step,
    }


def _inputs_description(task: TaskConfig, spec: InputSection) -> dict[str, Any]:
    """`input` of a model that takes one array, or `inputs` in order: name, shape, type, how media become it."""
    try:
        preparation = codec_of(spec).preparation(task, spec)
    except UserError as error:
        preparation = error.message
    inputs = [
        {"name": name, "shape": ["batch", *array.shape[1:]], "dtype": str(array.dtype), "preparation": preparation}
        for name, array in example_inputs(spec, 1).items()
    ]
    return {"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}
