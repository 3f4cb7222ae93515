"""The nine datasets' files as their real archives unpack: names, tables, pickles, and what is drawn for what.

In: a `Job`, one task to write. Out: the files under its folder. Design:
- File names, csv columns, comment lines and pickles are those of the real sets; ids and start times are
  invented, and rows that only fill a table to its real length are named `synthetic placeholder`.
- The classes are the first ones of each table in `classes`; every split takes them in turn, so counts are even.
- One generator per example, from (seed, task, split, index): an example does not depend on the others.
- Nothing technical (file format, rate, width) goes with a class: it follows other periods than the labels do.
"""

import csv
import io
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvit.synthetic import media
from polyvit.synthetic.classes import (
    AUDIOSET,
    CIFAR10,
    CIFAR100_COARSE_NAMES,
    CIFAR100_FINE_NAMES,
    CIFAR100_PAIRS,
    IMAGENET,
    KINETICS,
    MOMENTS,
    PETS,
    PETS_HEADER,
    RESISC45,
    VGGSOUND,
)

MAX_CLASSES = 8
Progress = Callable[[str, int, int], None]

SPLITS: dict[str, tuple[str, ...]] = {
    "imagenet": ("train", "val"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "pets": ("trainval", "test"),
    "resisc45": ("train", "val", "test"),
    "kinetics400": ("train", "val"),
    "moments_in_time": ("training", "validation"),
    "audioset": ("balanced_train", "eval"),
    "vggsound": ("train", "test"),
}
"""Split names as each dataset writes them; the first is for training."""
AV_SPLITS: dict[str, tuple[str, ...]] = {
    "kinetics700": ("train", "val"),
    "kinetics_sounds": ("train", "val"),
    "ucf101": ("train", "test"),
    "esc50": ("train", "test"),
    "charades": ("train", "test"),
}
"""The same of the sets of videos with sound, and of what is trained from them (`av_layouts`)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example to make: `index` counts in its split, `number` in its class over all splits, from 1."""

    split: str
    index: int
    label: int
    number: int
    rng: media.Generator


@dataclass(frozen=True, slots=True)
class Job:
    """One task to write into `folder`."""

    task: str
    folder: Path
    seed: int
    classes: int
    train: int
    evaluation: int
    side: int
    progress: Progress | None

    def counts(self) -> dict[str, int]:
        names = (SPLITS | AV_SPLITS)[self.task]
        return {name: self.train if name == names[0] else self.evaluation for name in names}

    def items(self, classes: int = 0) -> Iterator[Item]:
        """Every example of every split; reports progress after each."""
        classes, total, done, before = classes or self.classes, sum(self.counts().values()), 0, 0
        for part, (split, count) in enumerate(self.counts().items()):
            for index in range(count):
                entropy = [self.seed, zlib.crc32(self.task.encode()), part, index]
                number = 1 + before + index // classes
                yield Item(split, index, index % classes, number, np.random.default_rng(entropy))
                done += 1
                if self.progress:
                    self.progress(self.task, done, total)
            before += -(-count // classes)

    def save(self, name: str, content: bytes | str) -> None:
        save(self.folder / name, content)

    def hue(self, label: int) -> float:
        """A hue in [0, 1) for a class; hues are spread evenly over the classes."""
        return label / self.classes


def save(path: Path, content: bytes | str) -> None:
    """Write one file, with the folders above it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """CSV with quotes only where needed and bare line feeds."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------ pictures


def _imagenet(job: Job) -> None:
    """train/<wnid>/<wnid>_<n>.JPEG, val/<wnid>/ILSVRC2012_val_<n>.JPEG; LOC_synset_mapping.txt."""
    # Placeholders sort behind every real wnid, so the real classes keep their true line numbers.
    fill = [(f"n9{row:07d}", f"synthetic placeholder {row}") for row in range(len(IMAGENET), 1000)]
    mapping = "".join(f"{wnid} {names}\n" for wnid, names in (*IMAGENET, *fill))
    job.save("LOC_synset_mapping.txt", mapping)
    for item in job.items():
        wnid, _ = IMAGENET[item.label]
        height, width = (int(job.side * item.rng.uniform(1, 1.5)) for _ in range(2))
        shape, fill_with = media.SHAPES[item.label], media.TEXTURES[item.label % 4]
        picture = media.textured_shape(item.rng, (height, width), shape, fill_with, job.hue(item.label))
        # The real set holds one PNG under a .JPEG name (n02105855_2933); here it is one in fifteen.
        content = media.encode_image(picture, "PNG" if item.index % 15 == 5 else "JPEG")
        name = f"{wnid}_{item.number}" if item.split == "train" else f"ILSVRC2012_val_{item.index + 1:08d}"
        job.save(f"{item.split}/{wnid}/{name}.JPEG", content)


def _cifar_row(item: Item, blobs: bool, angle: float, hue: float) -> bytes:
    """3072 bytes: the red plane, then green, then blue, row by row."""
    return media.small_pattern(item.rng, blobs, angle, hue).transpose(2, 0, 1).tobytes()


def _cifar10(job: Job) -> None:
    """cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}."""
    rows: dict[str, list[tuple[bytes, int, str]]] = {"train": [], "test": []}
    for item in job.items():
        blobs, angle = item.label % 2 == 1, np.pi * item.label / job.classes
        name = f"{CIFAR10[item.label]}_s_{item.number:06d}.png"
        rows[item.split].append((_cifar_row(item, blobs, angle, job.hue(item.label)), item.label, name))
    parts = {f"data_batch_{k + 1}": (f"training batch {k + 1} of 5", rows["train"][k::5]) for k in range(5)}
    parts["test_batch"] = ("testing batch 1 of 1", rows["test"])
    for name, (title, part) in parts.items():
        batch = {
            "batch_label": title,
            "labels": [label for _, label, _ in part],
            "data": np.frombuffer(b"".join(row for row, _, _ in part), np.uint8).reshape(-1, 3072),
            "filenames": [filename for _, _, filename in part],
        }
        job.save(f"cifar-10-batches-py/{name}", media.encode_pickle(batch))
    meta = {"num_cases_per_batch": -(-job.train // 5), "label_names": list(CIFAR10), "num_vis": 3072}
    job.save("cifar-10-batches-py/batches.meta", media.encode_pickle(meta))


def _cifar100(job: Job) -> None:
    """cifar-100-python/{train,test,meta}: a hue per coarse class, grating or blobs for its two fine ones."""
    rows: dict[str, list[tuple[str, int, int, bytes]]] = {"train": [], "test": []}
    fine_names = CIFAR100_FINE_NAMES.split()
    for item in job.items(2 * job.classes):
        coarse, blobs = item.label // 2, item.label % 2
        fine = CIFAR100_PAIRS[coarse][blobs]
        pixels = _cifar_row(item, bool(blobs), np.pi / 4, job.hue(coarse))
        name = f"{fine}_s_{item.number:06d}.png"
        rows[item.split].append((name, fine_names.index(fine), coarse, pixels))
    for split, part in rows.items():
        batch = {
            "filenames": [name for name, _, _, _ in part],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": [fine for _, fine, _, _ in part],
            "coarse_labels": [coarse for _, _, coarse, _ in part],
            "data": np.frombuffer(b"".join(row for _, _, _, row in part), np.uint8).reshape(-1, 3072),
        }
        job.save(f"cifar-100-python/{split}", media.encode_pickle(batch))
    meta = {"fine_label_names": fine_names, "coarse_label_names": CIFAR100_COARSE_NAMES.split()}
    job.save("cifar-100-python/meta", media.encode_pickle(meta))


def _pets(job: Job) -> None:
    """images/<Breed>_<n>.jpg; annotations/{list,trainval,test}.txt: image, class id, species, breed id."""
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for item in job.items():
        breed, species, breed_id, coat, hue, value = PETS[item.label]
        size = (int(job.side * item.rng.uniform(1, 1.3)), int(job.side * item.rng.uniform(1, 1.3)))
        picture = media.pet_face(item.rng, size, species == 1, coat, hue, value)
        job.save(f"images/{breed}_{item.number}.jpg", media.encode_image(picture, "JPEG"))
        lists[item.split].append(f"{breed}_{item.number} {item.label + 1} {species} {breed_id}\n")
    for split, lines in lists.items():
        job.save(f"annotations/{split}.txt", "".join(sorted(lines)))
    job.save("annotations/list.txt", PETS_HEADER + "".join(sorted(lists["trainval"] + lists["test"])))


def _resisc45(job: Job) -> None:
    """NWPU-RESISC45/<class>/<class>_<nnn>.jpg and resisc45-{train,val,test}.txt of bare file names."""
    lists: dict[str, list[str]] = {split: [] for split in SPLITS["resisc45"]}
    for item in job.items():
        name, terrain = RESISC45[item.label]
        picture = media.aerial(item.rng, job.side, terrain, 0.1 + job.hue(item.label))
        file = f"{name}_{item.number:03d}.jpg"
        job.save(f"NWPU-RESISC45/{name}/{file}", media.encode_image(picture, "JPEG"))
        lists[item.split].append(file + "\n")
    for split, lines in lists.items():
        job.save(f"resisc45-{split}.txt", "".join(sorted(lines)))


# --------------------------------------------------------------------------------------- clips and sounds


def invented_id(rng: media.Generator) -> str:
    """11 characters as of a YouTube id; may start with '-', as real ones do."""
    letters = string.ascii_letters + string.digits + "-_"
    return "".join(letters[k] for k in rng.integers(64, size=11))


def _clip(job: Job, item: Item, motion: str, shape: str, hue: float) -> bytes:
    """The bytes of an mp4 of 1.5 to 2 seconds at 16 to 25 frames a second, some wider than high.

    job, item: what to write. motion: one of `media.MOTIONS`. shape: one of `media.SHAPES`. hue: of the shape. Its
    sound is drawn at random.
    """
    rng, rate = item.rng, 16_000
    fps, seconds = int(rng.choice((16, 20, 25))), float(rng.uniform(1.5, 2))
    width = job.side if item.number % 4 else job.side * 4 // 3 // 2 * 2
    clip = media.moving_shape(rng, (job.side, width), int(fps * seconds), motion, shape, hue)
    wave = media.mixture(rng, [str(rng.choice(media.SOUNDS))], seconds, rate)
    return media.encode_mp4(clip, fps, wave, rate)


def _kinetics400(job: Job) -> None:
    """<split>/<label>/<id>_<start>_<end>.mp4 and <split>.csv; the class is the motion, the hue only hints."""
    rows: dict[str, list[Sequence[Any]]] = {
        split: [("label", "youtube_id", "time_start", "time_end", "split")] for split in SPLITS["kinetics400"]
    }
    for item in job.items():
        label, motion = KINETICS[item.label]
        ident, start = invented_id(item.rng), int(item.rng.integers(300))
        shape = str(item.rng.choice(("square", "cross", "bar")))
        hue = job.hue(item.label) + item.rng.normal(0, 0.12)
        path = f"{item.split}/{label}/{ident}_{start:06d}_{start + 10:06d}.mp4"
        job.save(path, _clip(job, item, motion, shape, hue))
        rows[item.split].append((label, ident, start, start + 10, item.split))
    for split, lines in rows.items():
        job.save(f"{split}.csv", csv_text(lines))


def _moments(job: Job) -> None:
    """{training,validation}/<class>/yt-<id>_<n>.mp4; csv rows path,label,agree,disagree without a header."""
    rows: dict[str, list[Sequence[Any]]] = {split: [] for split in SPLITS["moments_in_time"]}
    for item in job.items():
        label, motion, shape = MOMENTS[item.label]
        name = f"{label}/yt-{invented_id(item.rng)}_{int(item.rng.integers(1, 60))}.mp4"
        job.save(f"{item.split}/{name}", _clip(job, item, motion, shape, item.rng.random()))
        rows[item.split].append((name, label, int(item.rng.integers(3, 6)), int(item.rng.integers(2))))
    for split, lines in rows.items():
        job.save(f"{split}Set.csv", csv_text(lines))
    names = sorted(label for label, _, _ in MOMENTS[: job.classes])
    job.save("moments_categories.txt", "".join(f"{name},{index}\n" for index, name in enumerate(names)))


def _recording(item: Item, kinds: list[str], pitch: float) -> tuple[str, bytes]:
    """(extension, bytes): WAV and FLAC in turn, 16 kHz mono, one in thirteen 44.1 kHz stereo."""
    seconds = float(item.rng.uniform(1.6, 2.0))
    rate = 44_100 if item.index % 13 == 3 else 16_000
    wave = media.mixture(item.rng, kinds, seconds, rate, pitch)
    if rate == 44_100:
        wave = np.stack((wave, item.rng.uniform(0.4, 0.9) * wave), axis=1)
    if item.number % 2:
        return "flac", media.encode_sound(wave, rate, "FLAC")
    return "wav", media.encode_sound(wave, rate, "WAV")


def _audioset(job: Job) -> None:
    """audio/<split>_segments/<id>.(wav|flac), <split>_segments.csv, class_labels_indices.csv of 527 rows."""
    rows: dict[str, list[tuple[str, int, list[str]]]] = {split: [] for split in SPLITS["audioset"]}
    for item in job.items():
        ident, start = invented_id(item.rng), 5 * int(item.rng.integers(60))
        others = [k for k in item.rng.permutation(job.classes) if k != item.label]
        chosen = sorted([item.label, *others[: int(item.rng.integers(min(3, job.classes)))]])
        extension, content = _recording(item, [AUDIOSET[k][3] for k in chosen], 1.0)
        job.save(f"audio/{item.split}_segments/{ident}.{extension}", content)
        rows[item.split].append((ident, start, [AUDIOSET[k][1] for k in chosen]))
    for split, lines in rows.items():
        mids = [mid for _, _, labels in lines for mid in labels]
        head = (
            "# Segments csv created by polyvit synth\n"
            f"# num_ytids={len(lines)}, num_segs={len(lines)}, num_unique_labels={len(set(mids))},"
            f" num_positive_labels={len(mids)}\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
        )
        body = [
            f'{ident}, {start}.000, {start + 10}.000, "{",".join(labels)}"\n' for ident, start, labels in lines
        ]
        job.save(f"{split}_segments.csv", head + "".join(body))
    real = {index: (mid, name) for index, mid, name, _ in AUDIOSET}
    full = [(k, *real.get(k, (f"/m/synth{k:03d}", f"synthetic placeholder {k}"))) for k in range(527)]
    names = "".join(f'{index},{mid},"{name}"\n' for index, mid, name in full)
    job.save("class_labels_indices.csv", "index,mid,display_name\n" + names)


def _vggsound(job: Job) -> None:
    """audio/<id>_<start>.(wav|flac|mp4) and vggsound.csv: id, start, label, split, without a header."""
    rows: list[Sequence[Any]] = []
    for item in job.items():
        label, kind = VGGSOUND[item.label]
        ident, start = invented_id(item.rng), int(item.rng.integers(300))
        if item.index % 11 == 7:
            wave = media.mixture(item.rng, [kind], 2.0, 16_000, 1.5)
            extension, content = "mp4", media.encode_mp4(None, 0, wave, 16_000)
        else:
            extension, content = _recording(item, [kind], 1.5)
        job.save(f"audio/{ident}_{start:06d}.{extension}", content)
        rows.append((ident, start, label, item.split))
    job.save("vggsound.csv", csv_text(rows))


WRITERS: dict[str, Callable[[Job], None]] = {
    "imagenet": _imagenet,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "pets": _pets,
    "resisc45": _resisc45,
    "kinetics400": _kinetics400,
    "moments_in_time": _moments,
    "audioset": _audioset,
    "vggsound": _vggsound,
}
