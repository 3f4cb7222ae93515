"""A trained model as a folder in the conventions of Hugging Face's hub, and in a repository there.

In: a checkpoint or a run. Out: a packaged model (see `package.py`), which every command reads, with what the hub
looks for beside it: config.json (what the model is, and the class names of each task) and README.md, the model
card under YAML front matter. Back from it: `trained_model.py`. Files for other libraries: `hub.py`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from polyvit import __version__
from polyvit.config import RunConfig, validate_config
from polyvit.deploy.hub_remote import push_folder
from polyvit.deploy.package import write_package
from polyvit.deploy.predict import pad_names, tasks_with_classes
from polyvit.errors import UserError

ARCHITECTURES = {"polyvit": "PolyViT", "avbert": "AVBert"}
"""Of `model.kind`."""
SAVED_FILES = ("model.safetensors", "state.json", "manifest.json", "config.json", "README.md")
"""What `save_pretrained` writes."""
LIBRARY = "polyvit"
"""`library_name` in config.json and README.md."""


def save_pretrained(model: str | Path, folder: str | Path) -> Path:
    """Write a trained model into `folder`, which is created if absent, and return it.

    model: the folder of a run or a checkpoint. Raises UserError where it is neither, or where `folder` cannot be
    written.
    """
    folder = Path(folder)
    refuse_training(folder)
    try:
        document = write_package(Path(model), folder)
        config = validate_config(document["config"])
        (folder / "config.json").write_text(json.dumps(hub_config(config, document), indent=2, ensure_ascii=False))
        card = (folder / "model_card.md").read_text()
        (folder / "README.md").write_text(front_matter(config) + "\n" + card)
        (folder / "model_card.md").unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); give another folder") from None
    return folder


def refuse_training(folder: Path) -> None:
    """Raises UserError for the folder of a run or of a checkpoint that training goes on from: exports have files
    of the same names."""
    for name, what in (("run.json", "a run"), ("history", "a run"), ("optimiser.safetensors", "a checkpoint")):
        if (folder / name).exists():
            raise UserError(f"{folder} is the folder of {what}, whose files would be lost; give another folder")


def push_to_hub(
    model: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Push a trained model to Hugging Face's hub as `save_pretrained` writes it, and return the commit's address.

    model: the folder of a run or a checkpoint. repo_id, private, revision, token: see `push_folder`. Raises
    UserError where there is no such model, and for what the hub refuses.
    """
    with tempfile.TemporaryDirectory(prefix="polyvit-push-") as temporary:
        folder = save_pretrained(model, temporary)
        return push_folder(folder, SAVED_FILES, repo_id, private, revision, token, f"Upload {LIBRARY} model")


def hub_config(config: RunConfig, document: dict[str, Any]) -> dict[str, Any]:
    """config.json. The run's whole config is in state.json, from which the model is built."""
    classes = document.get("classes") or {}
    return {
        "library_name": LIBRARY,
        "polyvit_version": __version__,
        "model_type": config.model.kind,
        "architectures": [ARCHITECTURES[config.model.kind]],
        "model": config.model.model_dump(mode="json"),
        "tasks": {
            name: {
                "modality": task.modality,
                "problem_type": "multi_label_classification"
                if task.loss == "sigmoid"
                else "single_label_classification",
                "id2label": dict(enumerate(pad_names(classes.get(name, ()), task.num_classes))),
            }
            for name in tasks_with_classes(config)
            for task in (config.tasks[name],)
        },
    }


def front_matter(config: RunConfig) -> str:
    """The YAML at the head of README.md: library and tags, a tag for each modality that it classifies."""
    tags = [f"{modality}-classification" for modality in config.modalities]
    return "\n".join(["---", f"library_name: {LIBRARY}", "tags:", *(f"- {tag}" for tag in tags), "---", ""])
