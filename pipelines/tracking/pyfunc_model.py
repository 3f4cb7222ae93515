"""A registered model as MLflow loads it: this file is logged as code, and runs wherever the model is loaded.

It needs the `polyvit` package, which is logged with it, but neither Ray nor anything else of `pipelines`. Files
are decoded in another process, so that a file which crashes its decoder loses only its own row.
In: a list of paths (on the machine that answers) or of bytes, or a table with a row a file: `path` or `content`
(the file's bytes; base64 over HTTP). MLflow would drop a list where the signature had columns, so it has none.
Out: a table with `modality`, `tasks` ({task: [{label, index, probability}, ...]}) and `error`. Parameters: `task`
(names, separated by commas; empty: all of the file's modality), `top_k`, `modality` (one of the model's; empty:
seen from the file).
"""

import base64
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
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

    # MLflow warns of a type of `model_input` other than a table's, and of none; it hands over whatever was sent.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of answers a file of `model_input`; a file that cannot be used has its reason as `error`.

        context: MLflow's, not used. model_input: see `as_files`. params: see above. Raises MlflowException
        for what holds no files.
        """
        options = params or {}
        tasks = [name.strip() for name in str(options.get("task") or "").split(",") if name.strip()]
        modality = options.get("modality") or None
        media = as_files(model_input)
        top_k = int(options.get("top_k") or 5)
        with self.lock:
            answers = list(self.predictor.predict(media, tasks, top_k, modality, self.sandbox.prepare))
        rows = [{"modality": None, "tasks": {}, "error": None, **answer} for answer in answers]
        return pd.DataFrame(rows, columns=["modality", "tasks", "error"], dtype=object)


def as_files(given: Any) -> list[bytes | Path]:
    """What a caller sent, as files: their paths or their contents; b"" for a row that has neither.

    given: a list of paths or of bytes, rows [{"path": ...}], columns {"path": [...]}, or a table. Raises
    MlflowException for anything else.
    """
    if isinstance(given, str | Path | bytes):
        raise _refused(f"a bare {type(given).__name__}: put it into a list")
    if isinstance(given, Mapping):
        whole = all(isinstance(value, str | bytes) for value in given.values())
        given = [given] if whole else pd.DataFrame({key: list(value) for key, value in given.items()})
    if isinstance(given, pd.DataFrame):
        if not len(given) or not {"path", "content"} & set(given.columns):
            raise _refused(f"a table of {len(given)} rows with the columns {[*map(str, given.columns)]}")
        given = given.to_dict("records")
    if not isinstance(given, list | tuple | np.ndarray | pd.Series) or not len(given):
        raise _refused(f"{type(given).__name__}, empty or of no files")
    return [_file(row) for row in given]


def _file(row: Any) -> bytes | Path:
    """One file: a path, bytes, or a row with `path` or `content` (bytes, or base64 as over HTTP)."""
    if not isinstance(row, Mapping):
        row = {"content" if isinstance(row, bytes | bytearray) else "path": row}
    if not {"path", "content"} & set(row):
        raise _refused(f"a row with the keys {[*map(str, row)]}")
    content, path = row.get("content"), row.get("path")
    if isinstance(content, str):
        try:
            content = base64.b64decode(content, validate=True)
        except ValueError:
            raise _refused("a text as content that is not base64") from None
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(path, str | Path) and str(path):
        return Path(path)
    if not _absent(path) or not _absent(content):
        raise _refused(f"a row of {type(path).__name__} as path, {type(content).__name__} as content")
    return b""


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)


def _refused(given: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(
        f"given: {given}. Send a list of paths (where the model runs): ['a.jpg', 'b.mp4'], or a table with a row "
        'a file and a column `path` or `content` (the bytes): pandas.DataFrame({"path": ["a.jpg"]}), or '
        '[{"path": "a.jpg"}]'
    )


mlflow.models.set_model(PolyViTModel())
