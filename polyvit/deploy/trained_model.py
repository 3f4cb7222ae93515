"""A trained model in three lines of Python: `load`, then labels, embeddings and tensors of whatever is at hand.

In: a run's folder, a checkpoint, a folder of `save_pretrained`, a registered model, or a repository of Hugging
Face's hub; then paths, bytes, Pillow pictures, arrays, tensors (`media_inputs.py`). Out: answers as `polyvit
predict` gives them, embeddings [D], and what a training loop of one's own needs. Everything runs in this process,
decoding too; files of strangers belong into `polyvit predict` or `polyvit serve`, which decode in a process apart.
Legend: B inputs, D width, K classes, V views of one input, W = B * V.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from polyvit.config import InputSection, RunConfig, TaskConfig
from polyvit.data.loading import example_arrays
from polyvit.deploy.hub_remote import fetch_folder, is_on_hub
from polyvit.deploy.media_inputs import MediaInput, as_media, is_many
from polyvit.deploy.predict import (
    FILES_AT_ONCE,
    TOP_K,
    Predictor,
    Prepared,
    check_tasks,
    prepare,
    tasks_with_classes,
)
from polyvit.deploy.pretrained import LIBRARY, push_to_hub, save_pretrained
from polyvit.errors import BadMedia, UserError
from polyvit.evaluation import average_views
from polyvit.model import MultiTaskModel, normalise
from polyvit.objectives import one_answer
from polyvit.storage import read_record

Answer = dict[str, Any]
"""{"modality": ..., "tasks": {task: [{"label", "index", "probability"}, ...]}}, or {"error": reason} in a list."""
REGISTERED = "models:/"


class TaskTransform:
    """One input to the tensor that the model takes for one task, as its evaluation prepares it; can be pickled.

    Use it as a torchvision transform, for instance `ImageFolder(folder, transform=model.transform("pets"))`, and
    give the batch to the model: `model(batch, "pets")`.
    """

    def __init__(self, name: str, task: TaskConfig, spec: InputSection) -> None:
        self.name, self.task, self.spec = name, task, spec

    def __call__(self, x: MediaInput) -> Tensor | dict[str, Tensor]:
        """Normalised tokens, float32 [N, P], or [V, N, P] where the task evaluates several views; of an
        audiovisual task {"clips", "spectrograms"}. Raises BadMedia for what cannot be decoded.
        """
        arrays = example_arrays(as_media(x), self.task, self.spec, None)
        tensors = {name: normalise(torch.from_numpy(array)) for name, array in arrays.items()}
        if self.task.eval_views == 1:
            tensors = {name: tensor[0] for name, tensor in tensors.items()}
        return tensors if len(tensors) > 1 else next(iter(tensors.values()))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in self.spec.arrays.items())
        return f"TaskTransform({self.name!r}: {self.task.modality} -> {shapes})"


class TrainedModel:
    """A trained model, ready to use; see `polyvit.load`.

    predictor: the model behind it. module: the `torch.nn.Module`, in eval mode. config: the run's config.
    tasks: {name: modality} of every task that has classes. folder: where it was loaded from.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.predictor = predictor
        self.folder = folder
        self.tasks: dict[str, str] = {
            name: self.config.tasks[name].modality for name in tasks_with_classes(self.config)
        }

    @property
    def module(self) -> MultiTaskModel:
        """The `torch.nn.Module`: `module(inputs, task)` gives logits."""
        return self.predictor.model

    @property
    def config(self) -> RunConfig:
        """The config of the run that trained it."""
        return self.predictor.config

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.predictor.device

    def classes(self, task: str) -> list[str]:
        """The names of a task's classes, in the order of its logits; a class without a name is its number."""
        check_tasks(self.config, [task])
        return list(self.predictor.classes[task])

    @overload
    def predict(self, x: list[Any], task: str | Sequence[str] = (), top_k: int = TOP_K) -> list[Answer]: ...
    @overload
    def predict(self, x: MediaInput, task: str | Sequence[str] = (), top_k: int = TOP_K) -> Answer: ...
    def predict(
        self, x: MediaInput | list[Any], task: str | Sequence[str] = (), top_k: int = TOP_K
    ) -> Answer | list[Answer]:
        """The most probable classes of every task of the input's modality, as `polyvit predict` gives them.

        x: one input (a path, bytes, a Pillow picture, an array [H, W, 3] or [T, H, W, 3], a tensor [3, H, W] or
        [T, 3, H, W], or (samples, rate)), or a list of them, also of several modalities. task: only this task, or
        these. top_k: classes of each task, best first.

        Of one input returns {"modality", "tasks": {task: [{"label", "index", "probability"}, ...]}} and raises
        BadMedia where it cannot be used. Of a list returns a list, with {"error": reason} for what cannot be used.
        Raises UserError for a task that the model does not have, and for what is no input at all.
        """
        tasks = check_tasks(self.config, [task] if isinstance(task, str) else task)
        if not is_many(x):
            return self.predictor.answers([prepare(as_media(x), self.config, tasks)], top_k)[0]
        answers: list[Answer] = []
        for prepared in self._chunks(x, tasks):
            answers += self.predictor.answers(prepared, top_k)
        return answers

    def embed(self, x: MediaInput | Iterable[Any], task: str | None = None) -> np.ndarray:
        """Embeddings: what the heads read, the class token after the final norm, the mean over views.

        x: as `predict`. task: whose preparation is used, where tasks of a modality prepare in several ways; None:
        the first task of the input's modality.

        Returns float32 [D] of one input, [B, D] of a list. Raises BadMedia for an input that cannot be used, which
        of a list names its position.
        """
        tasks = check_tasks(self.config, [] if task is None else [task])
        if not is_many(x):
            return self.predictor.features([prepare(as_media(x), self.config, tasks)])[0].numpy()
        rows, count = [np.zeros((0, self.config.model.feature_width), np.float32)], 0
        for prepared in self._chunks(x, tasks):
            for i, item in enumerate(prepared):
                if isinstance(item, str):
                    raise BadMedia(f"input {count + i} of the list: {item}")
            usable = [item for item in prepared if isinstance(item, Prepared)]
            rows.append(torch.stack(self.predictor.features(usable)).numpy())
            count += len(prepared)
        return np.concatenate(rows)

    def transform(self, task: str) -> TaskTransform:
        """A callable from one input to the tensor that the model takes for `task`; see `TaskTransform`."""
        check_tasks(self.config, [task])
        section = self.config.tasks[task]
        return TaskTransform(task, section, self.config.model.input(section.modality))

    def __call__(self, batch: Tensor | Mapping[str, Tensor], task: str) -> Tensor:
        """Logits, float32 [B, K], of a batch of what `transform(task)` gave; with gradients, unless torch is told
        not to record them.

        batch: [B, ...] of one view each, or [B, V, ...], averaged as the task's evaluation does.
        """
        check_tasks(self.config, [task])
        section = self.config.tasks[task]
        spec, views = self.config.model.input(section.modality), section.eval_views
        inputs = batch if isinstance(batch, Mapping) else {next(iter(spec.arrays)): batch}
        for name, tensor in inputs.items():
            expected = [views, *spec.arrays[name].shape][1 if views == 1 else 0 :]
            if list(tensor.shape[1:]) != expected:
                shape = list(tensor.shape)
                raise UserError(f"{name} {shape}: task {task} takes {['B', *expected]}, as transform gives them")
        if views > 1:
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        logits_WK = one_answer(self.module(inputs, task).float(), section.loss)
        return average_views(logits_WK, views, section) if views > 1 else logits_WK

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model, all its tasks, into `folder`; see `polyvit.save_pretrained`."""
        return save_pretrained(self.folder, folder)

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, revision: str | None = None, token: str | None = None
    ) -> str:
        """Push the model, all its tasks, to Hugging Face's hub and return the commit's address; it comes back with
        `polyvit.load("hf://ORG/NAME")`.

        repo_id: ORG/NAME, or NAME for the token's owner; created where it does not exist. private: of a repository
        that is created; None: as the owner's settings say. revision: a branch, created where it does not exist;
        None: main. token: None: HF_TOKEN, or that of `hf auth login`.

        Raises UserError where huggingface_hub (extra `hub`) or a token is missing, and for what the hub refuses.
        """
        return push_to_hub(self.folder, repo_id, private, revision, token)

    def __repr__(self) -> str:
        tasks = ", ".join(
            f"{name} ({modality}, {self.config.tasks[name].num_classes} classes)"
            for name, modality in self.tasks.items()
        )
        return f"TrainedModel({self.config.name!r} on {self.device}: {tasks})"

    def _chunks(self, inputs: Iterable[Any], tasks: Sequence[str]) -> Iterator[list[Prepared | str]]:
        """Prepared inputs, a reason in place of each that cannot be used, as many as are held at a time."""
        waiting = enumerate(inputs)
        while chunk := list(islice(waiting, FILES_AT_ONCE)):
            prepared: list[Prepared | str] = []
            for place, item in chunk:
                try:
                    prepared.append(prepare(as_media(item), self.config, tasks))
                except BadMedia as error:
                    prepared.append(error.reason)
                except UserError as error:
                    raise UserError(f"item {place} of the list: {error.message}", error.problems) from None
            yield prepared


def from_pretrained(
    folder: str | Path, device: str | None = None, revision: str | None = None, token: str | None = None
) -> TrainedModel:
    """The model that `save_pretrained` or `push_to_hub` wrote, ready to use, as `load` gives it.

    folder: where it lies, or `hf://ORG/NAME`. device: see `load`. revision: a branch, tag or commit of the hub's.
    token: for the hub; None: HF_TOKEN, or that of `hf auth login`. Raises UserError where it is of another
    library.
    """
    if is_on_hub(folder):
        address = f"{folder}@{revision}" if revision else str(folder)
        folder = fetch_folder(address, token)
    elif revision or token:
        raise UserError(
            f"{folder}: revision and token are of the hub's repositories; give hf://ORG/NAME, or neither"
        )
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json; give a folder of save_pretrained or hf://ORG/NAME, or use polyvit.load"
        )
    library = read_record(path, "put back a copy of it").get("library_name")
    if library != LIBRARY:
        raise UserError(
            f"{path} is not of {LIBRARY} (library_name: {library}); as weights to start from: init.path"
        )
    return load(folder, device)


def _device(name: str | None) -> str:
    """Raises UserError for a device that this machine does not have."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without it
        why = str(error).splitlines()[0]
        raise UserError(
            f"device={name!r} cannot be used ({why}); give cpu, or cuda where there is a GPU"
        ) from None
    return name


def load(model: str | Path, device: str | None = None) -> TrainedModel:
    """A trained model, ready to use: `load("runs/NAME").predict("photo.jpg")`.

    model: the folder of a run, a checkpoint or a packaged model (also one of `save_pretrained`),
    `models:/NAME@ALIAS` in the MLflow registry that MLFLOW_TRACKING_URI names, or `hf://ORG/NAME[@REVISION]`, a
    repository of Hugging Face's hub that `push_to_hub` wrote. device: such as "cpu" or "cuda:1";
    None: a GPU where there is one.

    Raises UserError where there is no such model or no such device.
    """
    where = _device(device)
    if str(model).startswith((REGISTERED, "runs:")):
        # By name: the library below does not know MLflow.
        folder = importlib.import_module("pipelines.tracking").model_folder(str(model))
    elif is_on_hub(model):
        return from_pretrained(model, device)
    else:
        folder = Path(model).expanduser()
    return TrainedModel(Predictor.load(folder, where), folder)
