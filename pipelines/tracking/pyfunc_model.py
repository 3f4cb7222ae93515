"""A registered model as MLflow loads it: this file is logged as code, and runs wherever the model is loaded.

It needs the `polyvit` package, which is logged with it, but neither Ray nor anything else of `pipelines`. Files
are decoded in another process, so that a file which crashes its decoder loses only its own row.
In: a table with a row a file: `path` (on the machine that answers) or `content` (the file's bytes; base64 over
HTTP). Out: a table with `modality`, `tasks` ({task: [{label, index, probability}, ...]}) and `error`.
Parameters: `task` (names, separated by commas; empty: all of the file's modality), `top_k`, `modality` (one of the
model's; empty: seen from the file).
"""

import threading
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException


class PolyViTModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Loads the release that was logged beside it, and answers."""

    def load_context(self, context: Any) -> None:
        """Read config, class names and weights; the first GPU, if there is one, runs the model."""
        import torch

        from polyvit.deploy import IsolatedDecoder, Predictor  # start-up: torch, where the model is only logged

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor.load(Path(context.artifacts["release"]), device)
        self.sandbox = IsolatedDecoder(self.predictor.config)
        self.lock = threading.Lock()  # a server may ask from several threads; a sandbox takes one file at a time

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of answers a row of `model_input`; a file that cannot be used has its reason as `error`.

        Raises MlflowException for what is no table of files.
        """
        options = params or {}
        tasks = [name.strip() for name in str(options.get("task") or "").split(",") if name.strip()]
        modality = options.get("modality") or None
        if not len(model_input) or not {"path", "content"} & set(model_input.columns):
            raise _refused(f"a table of {len(model_input)} rows without `path` and `content`, or without rows")
        media = [_media(row) for row in model_input.to_dict("records")]
        top_k = int(options.get("top_k") or 5)
        with self.lock:
            answers = list(self.predictor.predict(media, tasks, top_k, modality, self.sandbox.prepare))
        rows = [{"modality": None, "tasks": {}, "error": None, **answer} for answer in answers]
        return pd.DataFrame(rows, columns=["modality", "tasks", "error"], dtype=object)


def _media(row: dict[str, Any]) -> bytes | Path:
    content, path = row.get("content"), row.get("path")
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(path, str) and path:
        return Path(path)
    if isinstance(path, list | tuple | dict) or isinstance(content, str | list | tuple | dict):
        raise _refused(f"a row of {type(path).__name__} as path, {type(content).__name__} as content")
    return b""


def _refused(given: str) -> MlflowException:
    """The error for input that is no table of files. MLflow drops columns that the signature does not have, so a
    string or a list of paths arrives as a table without columns."""
    return MlflowException.invalid_parameter_value(
        f"given: {given}. Send a table with a row a file and a column `path` (a path where the model runs) or "
        '`content` (the bytes): pandas.DataFrame({"path": ["a.jpg", "b.mp4"]}), or [{"path": "a.jpg"}]'
    )


mlflow.models.set_model(PolyViTModel())
