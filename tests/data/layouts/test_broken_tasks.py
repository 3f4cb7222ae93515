"""Broken and odd files among the training files of every task that is made of files, from scan to end of run.

The broken and odd ones are made here, and those of the real kit join them where it is there.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from kit import DATA_DIR
from PIL import Image
from small import Heard, fresh

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, load_config
from polyvit.data.index.io import Scan
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.minibatch import Decoder, Minibatch
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.errors import UserError
from polyvit.schedule.plan import Plan
from polyvit.schedule.schedule import build_schedule
from polyvit.synthetic.write import write_synthetic
from polyvit.training.loop import train
from polyvit.training.step import SingleProcess

TASKS = ("imagenet", "pets", "resisc45", "kinetics400", "moments_in_time", "audioset", "vggsound")
TRAIN, BATCH = 48, 8
Files = dict[str, tuple[bytes, str]]
"""{name: (content, "broken", "odd" or "either")}"""


def image_files() -> Files:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    whole = {name: io.BytesIO() for name in ("JPEG", "TIFF", "GIF")}
    for name, buffer in whole.items():
        picture.save(buffer, name)
    jpeg = whole["JPEG"].getvalue()
    return {
        "empty": (b"", "broken"), "page": (b"<html>404 Not Found</html>", "broken"), "cut": (jpeg[:900], "broken"),
        "tiff": (whole["TIFF"].getvalue(), "odd"), "gif": (whole["GIF"].getvalue(), "odd"),
    }  # fmt: skip


def video_files() -> Files:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (0, 80, 160):
            pixels = np.full((48, 64, 3), level, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    clip = buffer.getvalue()
    return {
        "empty": (b"", "broken"), "page": (b"<html>", "broken"), "cut": (clip[: len(clip) // 2], "broken"),
        "three": (clip, "odd"), "picture": (image_files()["gif"][0], "either"),
    }  # fmt: skip


def audio_files() -> Files:
    def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue()

    bad = np.zeros(4000, np.float32)
    bad[7] = np.nan
    return {
        "empty": (b"", "broken"), "page": (b"<html>", "broken"), "nan": (wav(bad), "broken"),
        "none": (wav(bad[:0]), "broken"), "clip": (video_files()["three"][0], "broken"),
        "surround": (wav(np.full((8000, 6), 0.1)), "odd"), "telephone": (wav(np.full(900, 0.1), 8000), "odd"),
    }  # fmt: skip


def kit_files(modality: str) -> Files:
    """The kit's, as its manifest judges them."""
    manifest = DATA_DIR / "broken" / "MANIFEST.csv"
    if not manifest.is_file():
        return {}
    folder = {"image": "images/", "video": "video/", "audio": "audio/"}[modality]
    with manifest.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["file"].startswith(folder)]
    judged = {}
    for row in rows:
        rule = row["what a sound program does"]
        kind = "odd" if row["status"] != "broken" else "either" if "either" in rule or " or " in rule else "broken"
        judged[row["file"]] = ((DATA_DIR / "broken" / row["file"]).read_bytes(), kind)
    return judged


Planted = dict[str, dict[str, str]]
"""{task: {path: "broken", "odd" or "either"}}"""


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted]:
    root = tmp_path_factory.mktemp("broken") / "data"
    write_synthetic(root, tasks=TASKS, classes=2, train=TRAIN, evaluation=8, side=48)
    overrides = [f"tasks.{name}.{key}" for name in TASKS for key in (f"steps={TRAIN // BATCH}", f"batch={BATCH}")]
    overrides += ["model.width=16", "model.depth=2", "model.num_heads=2", "model.mlp_dim=32", f"data.root={root}"]
    whole = load_config("tiny-nine", [*overrides, "data.max_bad_fraction=1", "optim.warmup_steps=2"])
    config = whole.model_copy(update={"tasks": {name: whole.tasks[name] for name in TASKS}})
    roots = {name: root / name for name in TASKS}
    scans = {name: scan(config.tasks[name], roots[name], name) for name in TASKS}  # before the damage
    made = {"image": image_files(), "video": video_files(), "audio": audio_files()}
    where: Planted = {}
    for name in TASKS:
        modality = config.tasks[name].modality
        files = {**made[modality], **kit_files(modality)}
        victims = scans[name].split("train")[: len(files)]
        assert len(victims) == len(files)
        where[name] = {}
        for example, (content, kind) in zip(victims, files.values(), strict=True):
            (roots[name] / example.path).write_bytes(content)
            where[name][example.path] = kind
    return config, scans, roots, where


def inline(
    planted: tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted], rank: int = 0, world_size: int = 1
) -> InlineFeed:
    config, scans, roots, _ = planted
    sizes = {name: len(found.split("train")) for name, found in scans.items()}
    plan = Plan(build_schedule(config.schedule, config.tasks, config.seed), config.tasks, sizes, config.seed)
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    decoder = Decoder(config.tasks, inputs, roots, config.seed)
    return InlineFeed(Requests.of(config, plan, scans, rank, world_size), decoder)


def joined(parts: list[Minibatch]) -> tuple[object, ...]:
    return (
        np.concatenate([part.inputs["tokens"] for part in parts]).tobytes(),
        np.concatenate([part.labels for part in parts]).tobytes(),
        tuple(key for part in parts for key in part.keys),
        tuple(entry for part in parts for entry in part.bad),
        sum(part.undecodable for part in parts),
    )


def test_the_broken_are_named_the_odd_are_used_and_the_plan_stands(
    planted: tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted],
) -> None:
    """All seven tasks; by one worker, and by two."""
    config, scans, _, where = planted
    first = [made for (made,) in inline(planted).train(1)]
    assert len(first) == sum(task.steps for task in config.tasks.values())
    assert all(made.rows == BATCH for made in first)
    assert all(np.isfinite(made.inputs["tokens"].astype(np.float32)).all() for made in first)
    for name in TASKS:
        reasons = {entry.path: entry.reason for made in first for entry in made.bad if entry.task == name}
        used = {key for made in first if made.task == name for key in made.keys}
        keys = {example.path: example.key for example in scans[name].examples}
        size = len(scans[name].split("train"))
        # Steps of TRAIN examples are an epoch; a layout that carves has fewer, and meets all of them too.
        assert size <= TRAIN
        for path, kind in where[name].items():
            if kind == "broken":
                assert len(reasons[path]) > 8, (name, path)
                assert "/" not in reasons[path].replace("RIFF/WAVE", ""), reasons[path]  # no path of this machine
            if kind == "odd":
                assert keys[path] in used, (name, path, reasons.get(path))
                assert path not in reasons
        assert set(reasons) <= {path for path, kind in where[name].items() if kind != "odd"}
        assert sum(made.undecodable for made in first if made.task == name) >= list(where[name].values()).count(
            "broken"
        )
    alone = [joined([made]) for made in first]
    ranks = [inline(planted, rank, 2).train(1) for rank in range(2)]
    assert [joined([part for (part,) in parts]) for parts in zip(*ranks, strict=True)] == alone


def run(config: RunConfig, feed: InlineFeed) -> tuple[TrainState, Mapping[str, float]]:
    model, optimiser, schedule = fresh(config)
    state = train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), TrainState(), Heard())
    return state, state.scores()


def only(
    planted: tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted], *names: str, bad: float
) -> tuple[RunConfig, InlineFeed]:
    """A config of some of the tasks, and their feed."""
    config, scans, roots, where = planted
    data = config.data.model_copy(update={"max_bad_fraction": bad})
    some = config.model_copy(update={"tasks": {name: config.tasks[name] for name in names}, "data": data})
    return some, inline((some, {name: scans[name] for name in names}, roots, where))


@pytest.mark.usefixtures("one_thread")
def test_a_run_goes_through_and_lists_them(
    planted: tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted],
) -> None:
    config, feed = only(planted, "pets", "moments_in_time", "vggsound", bad=0.9)
    state, scores = run(config, feed)
    assert {"pets", "moments_in_time", "vggsound", "mean"} <= set(scores)
    for name in config.tasks:
        found = {entry.path for entry in state.quarantine if entry.task == name}
        broken = {path for path, kind in planted[3][name].items() if kind == "broken"}
        assert broken <= found
        assert state.read[name] == TRAIN
        # Planned examples alone are counted, those that come round again each time.
        assert len(broken) <= state.bad[name] <= TRAIN * 0.9


@pytest.mark.usefixtures("one_thread")
def test_above_the_limit_the_run_ends_and_names_files(
    planted: tuple[RunConfig, dict[str, Scan], dict[str, Path], Planted],
) -> None:
    config, feed = only(planted, "pets", bad=0.05)
    with pytest.raises(
        UserError, match=r"task pets: \d+ of the 48 examples read so far cannot be decoded"
    ) as caught:
        run(config, feed)
    assert "data.max_bad_fraction=0.05" in caught.value.message
    named = [line.split(": ")[1] for line in caught.value.problems if line.startswith("pets: ")]
    assert 1 <= len(named) <= 8
    assert all(planted[3]["pets"][path] != "odd" for path in named)
