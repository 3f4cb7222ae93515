"""One task of a PolyViT as a folder for timm or Hugging Face, loaded by that library and held to our logits.

In: a trained PolyViT, a task, a library. Out: model.safetensors, config.json, the processors' files, README.md.
The only file that imports timm and transformers in the library.
Legend: B batch, T frames, H W C, F mel bins, N tokens, K classes.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from polyvit.config import AudioInput, InputSection, RunConfig
from polyvit.deploy.export import TOLERANCE, Runner, TaskModel, difference, torch_runner
from polyvit.deploy.hub_card import differences, readme
from polyvit.deploy.hub_config import ARCHITECTURES, Library, check_portable, hf_documents, timm_documents
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, PolyViT, normalise
from polyvit.model.pretrained import ast_state, hf_state, task_path, timm_state

PACKAGES: dict[Library, str] = {"timm": "timm", "huggingface": "transformers"}
WEIGHTS = "model.safetensors"
"""The file that both libraries look for."""


def require_library(library: Library) -> None:
    """Raises UserError where the library is not installed."""
    if find_spec(PACKAGES[library]) is None:
        raise UserError(
            f"--to {library} loads what it writes, and {PACKAGES[library]} is not here: pip install 'polyvit[hub]'"
        )


def write_for_library(
    model: MultiTaskModel,
    config: RunConfig,
    name: str,
    classes: Sequence[str],
    library: Library,
    folder: Path,
    result: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one task into `folder`, which exists, and compare: {files, difference, unmasked, notes}.

    classes: K names. result: of the task's last evaluation, for the README.
    unmasked: of AST, the difference without an `attention_mask`; else None. notes: see `hub_card.differences`.
    Raises UserError where the library cannot compute the same, or does not: the weights are deleted then.
    """
    check_portable(config, name, library)
    require_library(library)
    assert isinstance(model, PolyViT)
    spec = config.model.input(config.tasks[name].modality)
    documents = timm_documents(config, name, classes) if library == "timm" else hf_documents(config, name, classes)
    for file, document in documents.items():
        (folder / file).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    save_file(_state(model, name, library), folder / WEIGHTS, {"format": "pt"})
    reference = torch_runner(TaskModel(model, config, name).eval())
    measured = difference(library_runner(folder, library, spec), reference, spec)
    if measured > TOLERANCE:
        (folder / WEIGHTS).unlink()
        raise UserError(
            f"{WEIGHTS}: in {PACKAGES[library]} its logits differ from the model's by {measured:.2g}, more than "
            f"{TOLERANCE:g}; it is deleted"
        )
    audio = isinstance(spec, AudioInput)
    unmasked = difference(library_runner(folder, library, spec, masked=False), reference, spec) if audio else None
    (folder / "README.md").write_text(readme(config, name, library, measured, result))
    return {
        "files": [WEIGHTS, *documents, "README.md"],
        "difference": measured,
        "unmasked": unmasked,
        "notes": differences(config, name, library),
    }


def _state(model: PolyViT, name: str, library: Library) -> dict[str, Tensor]:
    path = task_path(model, name)
    if library == "timm":
        return timm_state(path)
    if isinstance(path.spec, AudioInput):
        return ast_state(path)
    return hf_state(path, "vit" if len(path.spec.patch) == 2 else "vivit")


def library_runner(folder: Path, library: Library, spec: InputSection, masked: bool = True) -> Runner:
    """What the library computes with a folder: media as `export.TaskModel` takes them -> logits [B, K].

    masked: hide AST's distillation token.
    """
    loaded = _load(folder, library, spec)

    def run(*media: np.ndarray) -> np.ndarray:
        """Media -> logits [B, K], with the folder as it was loaded."""
        inputs = library_input(torch.from_numpy(media[0]), spec)
        more = {}
        if isinstance(spec, AudioInput) and masked:
            more["attention_mask"] = torch.ones(len(inputs), 2 + spec.num_tokens)
            more["attention_mask"][:, 1] = 0
        with torch.inference_mode():
            answer = loaded(inputs, **more)
        return (answer if isinstance(answer, Tensor) else answer.logits).numpy()

    return run


def _load(folder: Path, library: Library, spec: InputSection) -> Any:
    if library == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    import transformers

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        architecture = getattr(transformers, ARCHITECTURES[type(spec)])
        return architecture.from_pretrained(folder, local_files_only=True).eval()
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def library_input(media: Tensor, spec: InputSection) -> Tensor:
    """Media [B, *sides, 3] or [B, T, F] -> what the libraries call `pixel_values` or `input_values`, float32:
    [B, 3, H, W], [B, T, 3, H, W], or [B, T, F], normalised and rounded as the feed does."""
    if spec.normalisation is None:
        return normalise(media).movedim(-1, -3)
    mean, std = spec.normalisation
    return ((media - mean) / std).half().float()
