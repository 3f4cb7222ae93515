"""From media files to labels with probabilities, along the path of an evaluation.

In: a file's bytes or path, and which tasks to answer. Out: for each task its best classes. A file is decoded and
cut into tokens by `prepare`, which needs the config alone and so can run in another process than the model;
`Predictor` runs the model on what several files gave. Preprocessing and averaging over views are the
evaluation's own functions (`evaluation_tokens`, `average_views`), with each task's
`eval_*` settings. Legend: V views of one file, W views of several, N tokens, P patch_dim, D width, K classes.
"""

import io
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyvit.checkpoint import find_checkpoint, load_trained
from polyvit.config import NO_STREAM, Modality, RunConfig, TaskConfig
from polyvit.data.decode import bad_media, detect_modality, streams_of
from polyvit.data.index import index_classes
from polyvit.data.loading import (
    EVAL_BATCH,
    AnyMedia,
    Arrays,
    Waveform,
    check_readable,
    concatenated,
    example_arrays,
)
from polyvit.errors import BadMedia, UserError
from polyvit.evaluation import average_views
from polyvit.model import MultiTaskModel, autocast, normalise
from polyvit.objectives import one_answer
from polyvit.storage import LFS_POINTER, is_lfs_pointer

TOP_K = 5
MOST_BYTES = 2 * 2**30
"""The largest file that is read: a file is held in memory, here and in the process that decodes it."""
FILES_AT_ONCE = 16
"""Files whose tokens are held at a time: 16 clips of 32 x 224 x 224 pixels are 77 MB."""


@dataclass(frozen=True)
class Group:
    """Tasks whose evaluation prepares a file in the same way, and its named arrays [V, ...] for them."""

    tasks: tuple[str, ...]
    arrays: Arrays


@dataclass(frozen=True)
class Prepared:
    """A file ready for the model."""

    modality: Modality
    groups: tuple[Group, ...]


Decode = Callable[[bytes, Sequence[str], Modality | None], Prepared]
"""A function like `prepare`: a file's bytes, the tasks asked for (none: all), a modality (None: detect it)."""

# ------------------------------------------------------------------------------------- files to tokens


def check_tasks(config: RunConfig, tasks: Sequence[str], modality: Modality | None = None) -> tuple[str, ...]:
    """The names of the tasks, each once. Raises UserError for a task or modality that the model does not have."""
    if modality not in (None, *config.modalities):
        raise UserError(f"the model has no modality {modality!r}; it has {', '.join(config.modalities)}")
    if unknown := [name for name in tasks if name not in config.tasks]:
        raise UserError(f"the model has no task {unknown[0]!r}; it has {', '.join(config.tasks)}")
    if idle := [name for name in tasks if config.tasks[name].loss == "contrastive"]:
        have = ", ".join(tasks_with_classes(config)) or "none; train one from this checkpoint with init.path"
        raise UserError(f"task {idle[0]} is pre-training, without classes; tasks that have some: {have}")
    return tuple(dict.fromkeys(tasks))


def tasks_with_classes(config: RunConfig) -> list[str]:
    """The tasks that can answer: all but contrastive ones."""
    return [name for name, task in config.tasks.items() if task.loss != "contrastive"]


def prepare(
    data: AnyMedia, config: RunConfig, tasks: Sequence[str] = (), modality: Modality | None = None
) -> Prepared:
    """Decode a file as the evaluation of `tasks` does (none named: all tasks of its modality).

    data: the file's bytes, or what needs no decoding (`AnyMedia`). modality: None: detected from the content. Of
    the tasks named, those of the file's modality answer, and of audiovisual ones those whose
    streams the file has; where only audio tasks are named, a video's sound track is taken. Raises BadMedia with a
    reason.
    """
    asked = tasks or tasks_with_classes(config)
    if isinstance(data, bytes):
        detected = detect_modality(data)
        modality = modality or _taken_as(detected, {config.tasks[name].modality for name in asked})
    else:
        detected = "audio" if isinstance(data, Waveform) else "video" if data.ndim == 4 else "image"
        modality = modality or detected
    wanted = [name for name in asked if config.tasks[name].modality == modality]
    if not wanted or (modality == "audiovisual" and detected == "image"):
        have = ", ".join(tasks) if tasks else ", ".join(config.modalities)
        what = "asked for" if tasks else "the model takes"
        kind = detected if modality == "audiovisual" else modality
        raise BadMedia(f"no task for this file: it is {kind}; {what}: {have}")
    groups: dict[tuple[str, ...], list[str]] = {}
    if modality == "audiovisual" and not isinstance(data, bytes):
        raise BadMedia("audiovisual: an array has no sound beside its picture; give the file or its bytes")
    for name in _with_streams(data, wanted, config) if isinstance(data, bytes) else wanted:
        groups.setdefault(_sight(config.tasks[name]), []).append(name)
    spec = config.model.input(modality)
    return Prepared(
        modality,
        tuple(
            Group(tuple(names), example_arrays(data, config.tasks[names[0]], spec, None))
            for names in groups.values()
        ),
    )


def _taken_as(detected: Modality, asked: set[Modality]) -> Modality:
    """The modality as which a file of the detected one is read, for tasks of the modalities asked for."""
    if detected != "image" and asked == {"audiovisual"}:
        return "audiovisual"  # a video with its sound; a recording, or a silent video, for one CNN alone
    return "audio" if detected == "video" and asked == {"audio"} else detected


def _with_streams(data: bytes, names: Sequence[str], config: RunConfig) -> list[str]:
    """Of the tasks, those whose streams the file has by its header. Raises BadMedia where there is none."""
    needed = {name: config.tasks[name].needed_streams for name in names}
    if not any(needed.values()):
        return list(names)
    with bad_media("container"):
        held = streams_of(io.BytesIO(data))
    if able := [name for name in names if needed[name] <= held]:
        return able
    lacking = [NO_STREAM[stream] for stream in sorted(set().union(*needed.values()) - held)]
    raise BadMedia(f"no task for this file: it has {' and '.join(lacking)}; asked for: {', '.join(names)}")


def _sight(task: TaskConfig) -> tuple[str, ...]:
    """The settings of a task that decide its evaluation tokens: equal ones give equal tokens."""
    return task.model_dump_json(include=set(task.evaluation_keys)), *sorted(task.needed_streams)


def read_media(path: Path) -> bytes:
    """A file's bytes. Raises BadMedia where it cannot be read."""
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadMedia("file is a device, a pipe or a socket; give a regular file")
            if status.st_size > MOST_BYTES:
                raise BadMedia(f"file has {status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise BadMedia("file is missing") from None
    except OSError as error:
        raise BadMedia(f"file cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadMedia("file cannot be read: its name holds a NUL byte") from None
    if len(data) > MOST_BYTES:
        raise BadMedia(f"file has more than {MOST_BYTES:,} bytes, which are the most that are read")
    if is_lfs_pointer(data):
        raise BadMedia(LFS_POINTER)
    return data


# ------------------------------------------------------------------------------------- tokens to labels


class Predictor:
    """A model with its config and the names of its classes, ready to answer; see `load`.

    Raises UserError where this version cannot read files for the model.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        config: RunConfig,
        classes: Mapping[str, Sequence[str]] | None = None,
        device: str = "cpu",
    ) -> None:
        check_readable(config)
        self.model, self.config, self.device = model.to(device).eval(), config, device
        known = classes or {}
        self.classes = {
            name: pad_names(known.get(name, ()), task.num_classes) for name, task in config.tasks.items()
        }

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Predictor":
        """From the folder of a checkpoint or of a run. Raises UserError where `path` is neither."""
        checkpoint = find_checkpoint(path)
        model, config, document = load_trained(checkpoint)
        return cls(model, config, class_names(checkpoint, config, document), device)

    def predict(
        self,
        media: Iterable[bytes | Path],
        tasks: Sequence[str] = (),
        top_k: int = TOP_K,
        modality: Modality | None = None,
        decode: Decode | None = None,
    ) -> Iterator[dict[str, Any]]:
        """One answer a file, in order: {"modality", "tasks": {task: [{"label", "index", "probability"}, ...]}}, or
        {"error": reason}. Raises UserError for tasks that the model does not have, before anything is read.

        media: bytes of files, or their paths. tasks: which of the model's tasks answer; none: all of the file's
        modality. top_k: classes of each task. modality: take every file as this; None: detect it. decode:
        `IsolatedDecoder.prepare`, for files of unknown origin; None: `prepare`, in this process.
        """
        named = check_tasks(self.config, tasks, modality)
        here = decode or (lambda data, names, kind: prepare(data, self.config, names, kind))
        return self._predict(iter(media), named, top_k, modality, here)

    def _predict(
        self,
        media: Iterator[bytes | Path],
        tasks: Sequence[str],
        top_k: int,
        modality: Modality | None,
        decode: Decode,
    ) -> Iterator[dict[str, Any]]:
        while chunk := list(itertools.islice(media, FILES_AT_ONCE)):
            prepared: list[Prepared | str] = []
            for item in chunk:
                try:
                    data = read_media(item) if isinstance(item, Path) else item
                    prepared.append(decode(data, tasks, modality))
                except BadMedia as error:
                    prepared.append(error.reason)
            yield from self.answers(prepared, top_k)

    def answers(self, prepared: Sequence[Prepared | str], top_k: int = TOP_K) -> list[dict[str, Any]]:
        """Answers as `predict` gives them; a reason in place of a prepared file becomes its error."""
        whole = [item for item in prepared if isinstance(item, Prepared)]
        logits = iter(self.logits(whole))
        results: list[dict[str, Any]] = []
        for item in prepared:
            if isinstance(item, str):
                results.append({"error": item})
                continue
            by_task = next(logits)
            if wrong := [name for name, logits_K in by_task.items() if not logits_K.isfinite().all()]:
                results.append(
                    {"error": f"the model's answer is not finite (task {', '.join(wrong)}); check its weights"}
                )
                continue
            best = {name: self.best(name, logits_K, top_k) for name, logits_K in by_task.items()}
            results.append({"modality": item.modality, "tasks": best})
        return results

    def logits(self, prepared: Sequence[Prepared]) -> list[dict[str, Tensor]]:
        """logits_K of every task of every file, float32 on the CPU, views averaged as the task's evaluation does.

        Files of one shape share forward passes; tasks that prepare a file in the same way share its features.
        """
        results: list[dict[str, Tensor]] = [{} for _ in prepared]
        alike: dict[tuple[Modality, tuple[str, ...]], list[tuple[int, Arrays]]] = {}
        for i, item in enumerate(prepared):
            for group in item.groups:
                alike.setdefault((item.modality, group.tasks), []).append((i, group.arrays))
        for (modality, tasks), items in alike.items():
            views = len(next(iter(items[0][1].values())))
            for part in _parts(items, max(1, EVAL_BATCH // views)):
                arrays = concatenated([arrays for _, arrays in part])
                for name, logits_WK in self._forward(arrays, modality, tasks).items():
                    logits_BK = average_views(logits_WK, views, self.config.tasks[name])
                    for (i, _), logits_K in zip(part, logits_BK, strict=True):
                        results[i][name] = logits_K
        order = {name: place for place, name in enumerate(self.config.tasks)}
        return [dict(sorted(each.items(), key=lambda pair: order[pair[0]])) for each in results]

    def features(self, prepared: Sequence[Prepared]) -> list[Tensor]:
        """features_D of every file, float32 on the CPU: the mean over its views, as the first of its tasks takes
        them."""
        results: dict[int, Tensor] = {}
        alike: dict[tuple[Modality, int], list[int]] = {}
        for i, item in enumerate(prepared):
            views = len(next(iter(item.groups[0].arrays.values())))
            alike.setdefault((item.modality, views), []).append(i)
        for (modality, views), places in alike.items():
            for part in _parts(places, max(1, EVAL_BATCH // views)):
                features_WD = self._features(concatenated([prepared[i].groups[0].arrays for i in part]), modality)
                features_BD = features_WD.view(len(part), views, -1).mean(dim=1)
                results.update(zip(part, features_BD, strict=True))
        return [results[i] for i in range(len(prepared))]

    @torch.inference_mode()
    def _features(self, arrays: Arrays, modality: Modality) -> Tensor:
        with autocast(torch.device(self.device), self.config.train.precision):
            return self.model.forward_features(self._inputs(arrays), modality).float().cpu()

    def _inputs(self, arrays: Arrays) -> dict[str, Tensor]:
        return {name: normalise(torch.from_numpy(array).to(self.device)) for name, array in arrays.items()}

    @torch.inference_mode()
    def _forward(self, arrays: Arrays, modality: Modality, tasks: Sequence[str]) -> dict[str, Tensor]:
        inputs = self._inputs(arrays)
        with autocast(torch.device(self.device), self.config.train.precision):
            answers = self.model.answers(inputs, modality, tasks)
            losses = {name: self.config.tasks[name].loss for name in tasks}
            return {name: one_answer(each.float(), losses[name]).cpu() for name, each in answers.items()}

    def best(self, task: str, logits_K: Tensor, top_k: int) -> list[dict[str, Any]]:
        """The `top_k` most probable classes, best first. logits_K: float32 [K].

        Of a sigmoid task each probability stands for itself. Raises UserError for a `top_k` that is no number of
        classes.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"top_k={top_k!r}: give a whole number of 1 or more")
        sigmoid = self.config.tasks[task].loss == "sigmoid"
        probabilities_K = logits_K.sigmoid() if sigmoid else logits_K.softmax(dim=-1)
        # By logits: probabilities near 1 round to ties.
        order = logits_K.argsort(descending=True, stable=True)[:top_k].tolist()
        return [
            {"label": self.classes[task][k], "index": k, "probability": float(probabilities_K[k])} for k in order
        ]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ------------------------------------------------------------------------------------- names of classes


def class_names(checkpoint: Path, config: RunConfig, document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Class names of every task: what `state.json` says, else the index of the run that the checkpoint lies in.

    A task of which neither is known is left out; `Predictor` calls its classes by their numbers.
    """
    in_checkpoint = document.get("classes") or {}
    names = {name: list(in_checkpoint[name]) for name in config.tasks if in_checkpoint.get(name)}
    for name in config.tasks:
        path = checkpoint.absolute().parent / "index" / f"{name}.parquet"
        if name not in names and path.is_file():
            names[name] = index_classes(path)
    return names


def pad_names(names: Sequence[str], num_classes: int) -> list[str]:
    """As many names as the head has classes; a class without one is called by its number."""
    return [*names[:num_classes], *(str(k) for k in range(len(names), num_classes))]


def as_json_line(answer: Mapping[str, Any]) -> str:
    """An answer on one line, probabilities to six places."""
    shown: dict[str, Any] = dict(answer)
    if "tasks" in shown:
        shown["tasks"] = {
            name: [{**entry, "probability": round(entry["probability"], 6)} for entry in best]
            for name, best in shown["tasks"].items()
        }
    return json.dumps(shown, ensure_ascii=False, allow_nan=False)
