"""MLflow's tables in a new SQLite file are 46 migrations, two seconds of a core: made once, then copied."""

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

UTILS = "mlflow.store.db.utils"
KEPT: list[tempfile.TemporaryDirectory] = []
"""The folder of this process's template, once there is one."""


def _copied(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def _template(utils: Any) -> Path:
    """A store without runs."""
    if not KEPT:
        import sqlalchemy

        folder = tempfile.TemporaryDirectory(prefix="polyvit-mlflow-")
        engine = sqlalchemy.create_engine(f"sqlite:///{folder.name}/mlflow.db")
        getattr(utils, "migrate", utils._initialize_tables)(engine)
        engine.dispose()
        KEPT.append(folder)
    return Path(KEPT[0].name) / "mlflow.db"


def write_tables(storage: Path) -> None:
    """An empty store where a command of another process will look for it, `storage`/mlflow.db."""
    import mlflow.store.db.utils as utils

    storage.mkdir(parents=True, exist_ok=True)
    _copied(_template(utils), storage / "mlflow.db")


def copy_tables_from_now_on() -> None:
    """Once a test has imported MLflow: a new store in this process gets its tables from the template."""
    utils: Any = sys.modules.get(UTILS)
    if utils is None or hasattr(utils, "migrate"):
        return
    utils.migrate = utils._initialize_tables

    def initialise(engine: Any) -> None:
        if engine.dialect.name == "sqlite" and engine.url.database:
            _copied(_template(utils), Path(engine.url.database))
        else:
            utils.migrate(engine)

    utils._initialize_tables = initialise
