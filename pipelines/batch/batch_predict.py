"""Ray Data: predictions for any number of files, in parts that are never done twice.

    paths --[decode: child processes of Ray tasks]--> tokens --[model: an actor pool]--> answers --> Parquet

In: a sorted list of paths. Out: DIR/part-00000.parquet ..., `part_size` rows each in the list's order: `path`,
`modality`, `error`, and for each task a column named like it, a list of {label, index, probability} or null. A
file that cannot be used is a row with its reason in `error`. A part is written beside and renamed when all its
rows are there; DIR/job.json says which job it is, and a job that is started again does the parts that are
missing. The driver holds the list of paths and the answers of the parts in work.
"""

import hashlib
import json
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.runtime import console
from polyvit.checkpoint import load_trained
from polyvit.config import Modality, RunConfig
from polyvit.data.layouts.scanning import DEEPEST
from polyvit.data.loading import check_readable
from polyvit.deploy import IsolatedDecoder, Limits, Predictor, check_tasks, class_names, read_media
from polyvit.errors import BadMedia, UserError
from polyvit.storage import is_hidden, read_record, write_whole

FILES_A_TASK = 16
"""Files that one decoding task takes, and one forward pass at most."""
SAY_EVERY_S = 5.0
_OWN_COLUMNS = ("path", "modality", "error")
_ANSWER = pa.list_(pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())]))


@dataclass(frozen=True)
class PredictJob:
    """What a job is asked for.

    output: folder of the answers. tasks: none: all. top_k: classes of each task. modality: take every file as
    this; None: detect it. part_size: files of one Parquet file. file_seconds: time limit for decoding one file.
    """

    output: Path
    tasks: tuple[str, ...] = ()
    top_k: int = 5
    modality: Modality | None = None
    part_size: int = 1000
    file_seconds: float = 60.0

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.output / f"part-{number:05d}.parquet"


# ------------------------------------------------------------------------------------------- the list


def list_files(folder_or_list: str, column: str = "path") -> list[str]:
    """Absolute paths: of every file below a folder, sorted; or those of a .txt (one a line), .csv or .parquet, in
    its order, relative ones seen from its folder. Raises UserError.
    """
    source = Path(folder_or_list).expanduser().absolute()
    if source.is_dir():
        paths = sorted(str(path) for path in _below(source))
    elif source.is_file():
        paths = [str(source.parent / line) for line in _listed(source, column)]
    else:
        raise UserError(f"--input {folder_or_list}: no such file or folder")
    if not paths:
        raise UserError(f"--input {folder_or_list}: no file in it")
    return paths


def _below(source: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones; links to folders are not followed."""
    waiting = [(source, 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > DEEPEST:
            console.print(
                f"{folder}: more than {DEEPEST} folders in each other; the rest is left out", style="yellow"
            )
            continue
        for path in folder.iterdir():
            if is_hidden(path.name):
                continue
            if path.is_file():
                yield path
            elif path.is_dir() and not path.is_symlink():
                waiting.append((path, depth + 1))


def _listed(source: Path, column: str) -> Iterable[str]:
    if source.suffix not in (".txt", ".csv", ".parquet"):
        raise UserError(f"--input {source}: give a folder, or a .txt, .csv or .parquet of paths")
    try:
        if source.suffix == ".txt":
            return [line.strip() for line in source.read_text("utf-8-sig").splitlines() if line.strip()]
        if source.suffix == ".csv":
            text = pyarrow.csv.ConvertOptions(column_types={column: pa.string()})
            table = pyarrow.csv.read_csv(source, convert_options=text)
        else:
            table = pq.read_table(source)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"--input {source} cannot be read ({error})") from None
    if column not in table.column_names:
        raise UserError(
            f"--input {source} has no column {column!r}, but {', '.join(table.column_names)}; --column"
        )
    return [str(value) for value in table.column(column).to_pylist() if value]


# --------------------------------------------------------------------------------------------- the job


def predict_files(folder: Path, paths: Sequence[str], job: PredictJob) -> dict[str, Any]:
    """Do the parts that are missing. `folder`: a checkpoint's. Returns files, parts, done_before, failed.

    Raises UserError where the output folder holds another job.
    """
    from pipelines.runtime import cluster  # start-up: Ray

    model, config, document = load_trained(folder)
    check_readable(config)
    tasks = check_tasks(config, job.tasks)
    if clash := [name for name in config.tasks if name in _OWN_COLUMNS]:
        raise UserError(f"task {clash[0]} has the name of a column of the answers; leave it out with --task")
    count = -(-len(paths) // job.part_size)
    _claim(job, folder, paths)
    missing = [number for number in range(count) if not job.part(number).exists()]
    if missing:
        console.print(f"{len(missing)} of {count} parts to do: starting Ray ...")
        columns = [n for n in config.tasks if n in tasks or not tasks]
        schema = pa.schema([*((name, pa.string()) for name in _OWN_COLUMNS), *((n, _ANSWER) for n in columns)])
        with cluster():
            predictor = Predictor(model, config, class_names(folder, config, document))
            answers = _answers(predictor, paths, missing, job, tasks)
            _write(answers, missing, len(paths), job, schema)
    failed = sum(_failures(job.part(number)) for number in range(count))
    done_before = count - len(missing)
    return {"files": len(paths), "parts": count, "done_before": done_before, "failed": failed}


def _claim(job: PredictJob, folder: Path, paths: Sequence[str]) -> None:
    """Write or check job.json: one folder, one model, one list, one set of questions."""
    with (folder / "model.safetensors").open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    input_hash = hashlib.sha256("\n".join(paths).encode()).hexdigest()
    asked = {
        "model": model, "input": input_hash, "files": len(paths), "tasks": list(job.tasks), "top_k": job.top_k,
        "modality": job.modality, "part_size": job.part_size,
    }  # fmt: skip
    record = job.output / "job.json"
    try:
        job.output.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            write_whole(record, json.dumps(asked, indent=1) + "\n")
            return
    except OSError as error:
        raise UserError(f"--output {job.output} cannot be used ({error}); give another folder") from None
    known = read_record(record, "delete it to go on with the same job; for another job give another --output")
    if differ := [key for key in asked if known.get(key) != asked[key]]:
        raise UserError(
            f"--output {job.output} holds another job: {', '.join(differ)} differ; give another folder, or go on "
            "with the same model, input and options"
        )


def _answers(
    predictor: Predictor, paths: Sequence[str], missing: Sequence[int], job: PredictJob, tasks: Sequence[str]
) -> Any:
    """The answers of the missing parts, as an iterator of Arrow tables (part, row, path, answer in JSON)."""
    config, size = predictor.config, job.part_size
    tables = []
    for number in missing:
        own = list(paths[number * size : (number + 1) * size])
        tables.append(pa.table({"part": [number] * len(own), "row": range(len(own)), "path": own}))
    asked = {
        "config": config.model_dump_json(), "tasks": tuple(tasks), "modality": job.modality,
        "seconds": job.file_seconds,
    }  # fmt: skip
    return through_the_model(predictor, tables, asked, Answerer, job.top_k).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    )


def through_the_model(
    predictor: Predictor, tables: Sequence[pa.Table], asked: dict[str, Any], stage: type, *arguments: Any
) -> Any:
    """A Ray dataset of files that are decoded in children of their own, and then given to the model's actors.

    tables: with a column `path`, a block each. asked: see `decode_files`. stage: an actor's class, which is built
    of a list that holds a reference to the predictor, of `arguments`, and of the device.
    """
    import ray

    decode_cpus, gpus = predictor.config.data.decode_cpus, int(ray.cluster_resources().get("GPU", 0))
    decoded = ray.data.from_arrow(list(tables)).map_batches(
        decode_files,  # type: ignore[arg-type]
        batch_size=FILES_A_TASK,
        batch_format="pyarrow",
        num_cpus=decode_cpus,
        fn_kwargs={"asked": asked},
    )
    return decoded.map_batches(
        stage,
        batch_size=FILES_A_TASK,
        batch_format="pyarrow",
        # In a list, so that a restarted actor can fetch it again.
        fn_constructor_args=([ray.put(predictor)], *arguments, "cuda" if gpus else "cpu"),
        num_gpus=1 if gpus else 0,
        # Not the decoders' number: Ray Data would fuse the two stages into one, and decode in this actor.
        num_cpus=0 if decode_cpus == 1 else 1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=max(1, gpus or int(ray.cluster_resources()["CPU"]) // 4)
        ),
    )


def on_device(predictor: list[Any], device: str) -> Predictor:
    """In an actor: the driver's predictor, from a list that holds a reference to it, on this device."""
    import ray

    on_driver = ray.get(predictor[0])
    return Predictor(on_driver.model, on_driver.config, on_driver.classes, device)


@lru_cache(maxsize=1)
def _isolated_decoder(config: str, seconds: float) -> IsolatedDecoder:
    """One for the life of a Ray worker process."""
    return IsolatedDecoder(RunConfig.model_validate_json(config), Limits(decode_seconds=seconds))


def decode_files(table: pa.Table, asked: dict[str, Any]) -> pa.Table:
    """Add `prepared`: pickled `Prepared`, or the reason why not; to be read in this job only."""
    decoder = _isolated_decoder(asked["config"], asked["seconds"])
    prepared = []
    for path in table.column("path").to_pylist():
        try:
            result: Any = decoder.prepare(read_media(Path(path)), asked["tasks"], asked["modality"])
        except BadMedia as error:
            result = error.reason
        prepared.append(pickle.dumps(result, protocol=5))
    return table.append_column("prepared", pa.array(prepared, pa.large_binary()))


class Answerer:
    """The model, in an actor of its own."""

    def __init__(self, predictor: list[Any], top_k: int, device: str) -> None:
        self.top_k, self.predictor = top_k, on_device(predictor, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `prepared` by `answer`, in JSON."""
        prepared = [pickle.loads(value.as_py()) for value in table.column("prepared")]
        answers = [json.dumps(answer) for answer in self.predictor.answers(prepared, self.top_k)]
        return table.drop_columns("prepared").append_column("answer", pa.array(answers, pa.large_string()))


def _write(answers: Any, missing: Sequence[int], files: int, job: PredictJob, schema: pa.Schema) -> None:
    """Gather the rows of each part, in whatever order they come, and write it when it is whole."""
    sizes = {n: min(job.part_size, files - n * job.part_size) for n in missing}
    waiting: dict[int, dict[int, dict[str, Any]]] = {}
    done, total, said, began = 0, sum(sizes.values()), time.monotonic(), time.monotonic()
    for table in answers:
        for each in table.to_pylist():
            rows = waiting.setdefault(each["part"], {})
            answer = json.loads(each["answer"])
            known = {"path": each["path"], "modality": answer.get("modality"), "error": answer.get("error")}
            rows[each["row"]] = known | answer.get("tasks", {})
            done += 1
            if len(rows) == sizes[each["part"]]:
                _write_part(job.part(each["part"]), waiting.pop(each["part"]), schema)
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            console.print(f"{done} of {total} files, {done / (said - began):.1f} a second")
    if waiting:
        raise RuntimeError(f"{len(waiting)} parts came back with rows missing: {sorted(waiting)[:5]}")


def _write_part(path: Path, rows: dict[int, dict[str, Any]], schema: pa.Schema) -> None:
    beside = path.with_suffix(".writing")
    pq.write_table(pa.Table.from_pylist([rows[i] for i in sorted(rows)], schema), beside)
    beside.replace(path)


def _failures(path: Path) -> int:
    column = pq.read_table(path, columns=["error"]).column("error")
    return len(column) - column.null_count
