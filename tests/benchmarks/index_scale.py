"""What an index of millions of rows costs: building it, reading it, starting a run on it; time and peak memory.

    python tests/benchmarks/index_scale.py FOLDER [--rows 2000000] [--layouts csv,parquet,shards]

Every stage is a process of its own, so that its peak resident memory is its own. FOLDER gets the data: the csv's
rows are segments of 20,000 empty-looking files, the Parquet and tar media are a few bytes, the folder's files are
hard links. `build` is a scan with the index written, `again` finds nothing changed, `start` reads the index,
plans, and makes the requests of the first 100 steps as they travel to decoding processes. `cpu_s` is what the
seconds would be on an idle machine. Writes FOLDER/index_scale.json.
"""

import argparse
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

STAGES = ("build", "again", "start")
CLASSES = 1000


def make_csv(root: Path, rows: int) -> None:
    """Segments of recordings, 100 a file."""
    with (root / "data.csv").open("w") as table:
        table.write("path,label,split,start,end\n")
        for n in range(rows // 100):
            path = root / f"audio/{n // 1000:03d}/{n:06d}.wav"
            if n % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"RIFF")
            split = "validation" if n % 50 == 0 else "train"
            for start in range(100):
                label = f"class_{(n * 7 + start) % CLASSES:04d}"
                table.write(f"audio/{n // 1000:03d}/{n:06d}.wav,{label},{split},{start},{start + 1}\n")


def make_parquet(root: Path, rows: int) -> None:
    """Tables of 100,000 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for n in range(0, rows, 100_000):
        labels = pa.array([(n + i) * 7 % CLASSES for i in range(100_000)])
        split = "validation" if n == 0 else "train"
        media = pa.array([b"\xff\xd8\xff"] * 100_000, pa.binary())
        table = pa.table({"image": media, "label": labels})
        pq.write_table(table, root / f"{split}-{n:08d}.parquet", row_group_size=1000)


def make_webdataset(root: Path, rows: int) -> None:
    """Tar shards of 20,000 samples without an index beside them."""
    for n in range(0, rows, 20_000):
        split = "validation" if n == 0 else "train"
        with tarfile.open(root / f"{split}-{n // 20_000:06d}.tar", "w") as tar:
            for i in range(20_000):
                for extension, content in (("cls", str((n + i) * 7 % CLASSES).encode()), ("jpg", b"\xff\xd8\xff")):
                    member = tarfile.TarInfo(f"{n + i:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def make_shards(root: Path, rows: int) -> None:
    """Shards of 20,000 samples with their index; the tar files are holes of the right size, which nobody reads."""
    from polyvit.data.index.io import Example, Scan, write_index

    classes = [f"class_{label:04d}" for label in range(CLASSES)]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    for n in range(0, rows, 20_000):
        split, number = ("validation" if n == 0 else "train"), n // 20_000
        name = f"{split}-{number:06d}.tar"
        examples = [
            Example(
                f"{split}/{i // 1000:05d}/{i:09d}.jpg", name, (i * 7 % CLASSES,), split, "tar", (i - n) * 512, 500
            )
            for i in range(n, n + 20_000)
        ]
        with (root / name).open("wb") as file:
            file.truncate(20_000 * 512)
        write_index(Scan(examples, classes), root / f"{name}.index", {"bytes": 20_000 * 512})


def make_imagefolder(root: Path, rows: int) -> None:
    """Hard links, at most 30,000 to one file."""
    for split, share in (("train", 0.98), ("val", 0.02)):
        for label in range(CLASSES):
            folder = root / split / f"class_{label:04d}"
            folder.mkdir(parents=True)
            first = folder / "n00000000_00000000.JPEG"
            first.write_bytes(b"\xff\xd8\xff")
            for n in range(1, int(rows * share) // CLASSES):
                os.link(first, folder / f"n{label:08d}_{n:08d}.JPEG")


MAKERS = {
    "shards": make_shards,
    "csv": make_csv,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
    "imagefolder": make_imagefolder,
}


def stage(name: str, layout: str, folder: Path) -> dict[str, float]:
    """One stage in this process: seconds after the imports, peak memory of the process in GB."""
    from pydantic import TypeAdapter

    from polyvit.config import RunConfig, TaskConfig
    from polyvit.data.index.io import read_index
    from polyvit.data.layouts.index_cache import write_task_index
    from polyvit.data.loading.requests import Requests
    from polyvit.schedule.plan import Plan
    from polyvit.schedule.schedule import build_schedule

    modality, known = ("audio" if layout == "csv" else "image"), {"shards": "webdataset"}.get(layout, layout)
    keys = {"modality": modality, "layout": known, "num_classes": CLASSES}
    options = {"start_column": "start", "end_column": "end"} if layout == "csv" else {}
    document = {**keys, "options": options, "steps": 1000, "batch": 64}
    task: TaskConfig = TypeAdapter(TaskConfig).validate_python(document)
    began, used, target = time.perf_counter(), time.process_time(), folder / f"{layout}.parquet"
    rows = 0
    if name in ("build", "again"):
        cache = folder / "cache"
        reused = write_task_index(task, folder / layout, "task", target, cache)
        assert reused == (name == "again"), f"{name}: reused={reused}"
    else:
        scan = read_index(target)
        config = RunConfig(tasks={"task": task})
        sizes = {"task": len(scan.split("train"))}
        plan = Plan(build_schedule(config.schedule, config.tasks, 0), config.tasks, sizes, 0)
        requests = Requests.of(config, plan, {"task": scan}, 0, 1)
        sent = [pickle.dumps(request) for step in range(1, 101) for request in requests.at(step)]
        rows, bytes_a_request = len(scan.examples), sum(map(len, sent)) / len(sent)
        assert bytes_a_request < 100_000
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu_s = round(time.process_time() - used, 2)
    return {"seconds": round(seconds, 2), "cpu_s": cpu_s, "peak_gb": round(peak / 1e9, 3), "rows": rows}


def main() -> None:
    """Make what is not there, measure every stage, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--layouts", default="csv,parquet,shards")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(stage(*arguments.stage, arguments.folder)))
        return
    results = {}
    for layout in arguments.layouts.split(","):
        root = arguments.folder / layout
        if not root.is_dir():
            root.mkdir(parents=True)
            MAKERS[layout](root, arguments.rows)
            time.sleep(3)  # what changed within two seconds has no stamp
        for name in STAGES:
            command = [sys.executable, __file__, str(arguments.folder), "--stage", name, layout]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[f"{layout} {name}"] = json.loads(output)
            print(f"{layout:12} {name:6} {output.strip()}", flush=True)
    document = {"rows": arguments.rows, "load": os.getloadavg(), "results": results}
    (arguments.folder / "index_scale.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
