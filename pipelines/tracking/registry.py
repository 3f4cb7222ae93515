"""The MLflow model registry: log a model, move its aliases, fetch it.

In: a checkpoint. Out: a version of a registered model, and its folder when it is asked for. A version is logged
as code (`pyfunc_model.py` and the `polyvit` package) and a release folder (safetensors and JSON): nothing is
pickled, and loading it needs no Ray. Aliases (`champion`) say which version is in use, since MLflow's stages are
deprecated.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polyvit
from pipelines.tracking.runs import experiment_id, not_default, store_problem, tracking_uri
from polyvit.checkpoint import find_checkpoint, read_document
from polyvit.config import RunConfig
from polyvit.deploy import fetch_folder, is_on_hub, write_package
from polyvit.errors import UserError
from polyvit.storage import read_record

for _name in ("mlflow", "mlflow.tracking._model_registry.fluent", "mlflow.store.model_registry"):
    logging.getLogger(_name).setLevel(logging.ERROR)

PREFIX = "models:/"
REQUIREMENTS = (
    "mlflow", "torch", "numpy", "scipy", "pandas", "lazy-loader", "pyarrow", "pydantic", "pyyaml",
    "safetensors", "av", "soundfile", "soxr", "simplejpeg", "opencv-python-headless", "pillow",
)  # fmt: skip
"""What the logged code imports; the versions of this environment are written with it."""
CPU_REQUIREMENTS = "requirements-cpu.txt"
"""An artifact of the model, beside its release."""
X86_ONLY = {"decord": 'platform_machine == "x86_64" or platform_machine == "AMD64"'}
"""Optional packages, written where they are installed, with the platforms that have wheels of them."""
_DESCRIPTION = 5000  # the store's limit


def pip_requirements() -> list[str]:
    """What `pip install` needs for a registered model: exact versions, with markers for optional packages."""
    exact = [f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS]
    for name, platforms in X86_ONLY.items():
        if importlib.util.find_spec(name):
            exact.append(f"{name}=={importlib.metadata.version(name)}; {platforms}")
    return exact


def cpu_requirements() -> list[str]:
    """The same for machines without a GPU: torch's builds for the CPU, on Linux, which bring no CUDA libraries.

    They lie in torch's index of wheels for the CPU and not in the usual one.
    """
    torch, *_ = (line for line in pip_requirements() if line.startswith("torch=="))
    plain = torch.partition("+")[0]
    return [
        "# pip install -r requirements-cpu.txt --extra-index-url URL    (torch's index of wheels for the CPU)",
        *(line for line in pip_requirements() if line != torch),
        f'{plain}+cpu; sys_platform == "linux"',
        f'{plain}; sys_platform != "linux"',
    ]


def registry_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file of the default `storage`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('runs').absolute()}/mlflow.db"


def is_registered(model: str) -> bool:
    """Whether MODEL names a version in the registry and not a folder."""
    return model.startswith(PREFIX)


def is_folder(model: str) -> bool:
    """Whether MODEL names a folder of its own, where a command may put what it measured."""
    return not is_registered(model) and not is_on_hub(model)


def model_folder(model: str) -> Path:
    """The folder of MODEL, as commands take it: a checkpoint, the release of `models:/name@alias`, or what
    `hf://ORG/NAME` holds.

    Raises UserError where there is none.
    """
    if is_registered(model):
        return download(model)
    if is_on_hub(model):
        return find_checkpoint(fetch_folder(model))
    if model.startswith("runs:"):
        raise UserError(f"{model}: give a folder of a run or a checkpoint, models:/NAME@ALIAS or hf://ORG/NAME")
    return find_checkpoint(Path(model).expanduser()).absolute()


def download(model: str) -> Path:
    """The release folder of a registered version; fetched into a temporary folder if it lies elsewhere.

    Raises UserError where the registry has no such version, or one that this package did not log.
    """
    with _store(registry_uri()):
        import mlflow  # start-up: mlflow
        from mlflow.exceptions import MlflowException  # start-up: mlflow

        try:
            if _store_is_missing():
                raise MlflowException("there is no such file")
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{model} cannot be fetched from {registry_uri()} ({error}); see `polyvit register --list`, and "
                "set MLFLOW_TRACKING_URI to the store that holds it"
            ) from None
    release = folder / "artifacts" / "release"
    if not (release / "state.json").is_file():
        raise UserError(f"{model} is no model that `polyvit register` logged; register one, or give a checkpoint")
    return release


def log_model(
    checkpoint: Path, name: str, alias: str | None = None, uri: str | None = None, run_id: str | None = None
) -> dict[str, Any]:
    """Log the release of a checkpoint (or of a run's newest) as a new version of `name`, and give it `alias`.

    checkpoint: its folder, or a run's. name: of the registered model. alias: None: the version gets none.
    uri, run_id: the MLflow store and the run that the version belongs to. None: those of the run that the
    checkpoint lies in, else a new run.

    Returns name, version, alias, run_id, uri, checkpoint. Raises UserError.
    """
    check_alias(alias)
    folder = find_checkpoint(checkpoint).absolute()
    document = read_document(folder)
    config = RunConfig.model_validate(document["config"])
    recorded = run_record(folder)
    if not uri and (problem := store_problem(recorded.get("mlflow_uri", ""))):
        raise UserError(problem)
    uri = uri or recorded.get("mlflow_uri") or tracking_uri(config)
    run_id = run_id or (recorded.get("mlflow_run") if uri == recorded.get("mlflow_uri") else None)
    with tempfile.TemporaryDirectory(prefix="polyvit-release-") as temporary, _store(uri), _user_errors(uri):
        release = Path(temporary) / "release"
        write_package(folder, release)
        (Path(temporary) / CPU_REQUIREMENTS).write_text("\n".join(cpu_requirements()) + "\n")
        version = _log(release, name, config, run_id, _scores(document))
        from mlflow import MlflowClient  # start-up: mlflow

        client = MlflowClient()
        card = (release / "model_card.md").read_text()
        client.update_model_version(name, version["version"], description=card[:_DESCRIPTION])
        for key, value in _scores(document).items():
            client.set_model_version_tag(name, version["version"], key, f"{value:.6g}")
        if alias:
            client.set_registered_model_alias(name, alias, version["version"])
    return {"name": name, **version, "alias": alias, "uri": uri, "checkpoint": str(folder)}


def _scores(document: Mapping[str, Any]) -> dict[str, float]:
    """What a checkpoint's last evaluation says of it: its step, the metric of each task, their mean."""
    evaluated = [each for each in document["evaluations"] if each["step"] == document["global_step"]]
    scores = {"step": float(document["global_step"])}
    for name, result in (evaluated[-1]["tasks"] if evaluated else {}).items():
        if result.get("value") is not None:
            scores[f"{name}/{result['metric']}"] = result["value"]
    values = [value for key, value in scores.items() if key != "step"]
    return {**scores, "mean": sum(values) / len(values)} if values else scores


def run_record(checkpoint: Path) -> dict[str, str]:
    """The run.json of the run that a checkpoint lies in; empty where there is none."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        try:
            return read_record(folder / "run.json", "")
        except UserError:
            continue
    return {}


def _log(
    release: Path, name: str, config: RunConfig, run_id: str | None, scores: Mapping[str, float]
) -> dict[str, str]:
    import mlflow  # start-up: mlflow

    experiment = None if run_id else experiment_id(mlflow.MlflowClient(), config)
    warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
    run_name = None if run_id else f"register {config.name}"
    with mlflow.start_run(run_id=run_id, experiment_id=experiment, run_name=run_name, nested=True) as run:
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"release": str(release), "cpu": str(release.parent / CPU_REQUIREMENTS)},
            code_paths=[str(Path(polyvit.__file__).parent)],
            pip_requirements=pip_requirements(),
            registered_model_name=name,
            signature=_signature(),
            metadata={"tasks": list(config.tasks), "modalities": list(config.modalities)},
        )
        mlflow.log_artifact(str(release / "model_card.md"))
        client = mlflow.MlflowClient()
        if not client.get_logged_model(logged.model_id).params:  # else MLflow has copied those of the run
            client.log_model_params(logged.model_id, {k: str(v)[:500] for k, v in not_default(config).items()})
        for key, value in scores.items():
            if key != "step":
                client.log_metric(
                    run.info.run_id, f"registered/{key}", value, step=int(scores["step"]), model_id=logged.model_id
                )
    return {"version": str(logged.registered_model_version), "run_id": run.info.run_id}


def _signature() -> Any:
    from mlflow.models import ModelSignature  # start-up: mlflow
    from mlflow.types.schema import (  # start-up: mlflow
        Array,
        ColSpec,
        DataType,
        Map,
        Object,
        ParamSchema,
        ParamSpec,
        Property,
        Schema,
    )

    # No columns for the input: MLflow would drop what has none, such as a plain list of paths.
    best = Object(
        [
            Property("label", DataType.string),
            Property("index", DataType.long),
            Property("probability", DataType.double),
        ]
    )
    return ModelSignature(
        outputs=Schema(
            [
                ColSpec(DataType.string, "modality", required=False),
                ColSpec(Map(Array(best)), "tasks"),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("task", DataType.string, ""),
                ParamSpec("top_k", DataType.long, 5),
                ParamSpec("modality", DataType.string, ""),
            ]
        ),
    )


def check_alias(alias: str | None) -> None:
    """Raises UserError for an alias that MLflow would refuse, before anything is registered."""
    if alias is None or (re.fullmatch(r"[A-Za-z0-9_-]+", alias) and not re.fullmatch(r"latest|v\d+", alias, re.I)):
        return
    raise UserError(
        f"the alias {alias!r} is not allowed: letters, digits, - and _, and neither `latest` nor v and a number;"
        " such as champion"
    )


def set_alias(name: str, alias: str, version: str, uri: str | None = None) -> None:
    """Point an alias at a version; another version loses it. Raises UserError."""
    check_alias(alias)
    uri = uri or registry_uri()
    with _store(uri), _user_errors(uri):
        from mlflow import MlflowClient  # start-up: mlflow

        client = MlflowClient()
        client.get_model_version(name, version)
        client.set_registered_model_alias(name, alias, version)


def list_versions(uri: str | None = None) -> list[dict[str, Any]]:
    """Every version of every registered model: name, version, aliases, run_id, created (ms). Raises UserError."""
    uri = uri or registry_uri()
    with _store(uri), _user_errors(uri):
        if _store_is_missing():
            return []
        from mlflow import MlflowClient  # start-up: mlflow

        client = MlflowClient()
        rows = []
        for model in client.search_registered_models():
            versions = client.search_model_versions(f"name='{model.name}'")
            for version in sorted(versions, key=lambda each: int(each.version)):
                aliases = sorted(a for a, v in model.aliases.items() if str(v) == str(version.version))
                rows.append(
                    {
                        "name": model.name,
                        "version": str(version.version),
                        "aliases": aliases,
                        "run_id": version.run_id,
                        "created": version.creation_timestamp,
                    }
                )
        return rows


def _store_is_missing() -> bool:
    """Whether the store is a SQLite file that does not exist; MLflow would create an empty one."""
    import mlflow  # start-up: mlflow

    uri = mlflow.get_tracking_uri()
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


@contextlib.contextmanager
def _store(uri: str) -> Iterator[None]:
    """Use this store for as long as the block lasts; MLflow knows one store for the whole process."""
    import mlflow  # start-up: mlflow

    # MLflow keeps the address in a variable of its own and in the environment; both are put back.
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def _user_errors(uri: str) -> Iterator[None]:
    """Turn what the store refuses into a UserError."""
    from mlflow.exceptions import MlflowException  # start-up: mlflow

    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"the MLflow store {uri} refused ({error}); see `polyvit register --list`, or set MLFLOW_TRACKING_URI"
        ) from None
