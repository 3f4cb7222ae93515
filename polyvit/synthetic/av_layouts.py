"""The files of the toy datasets of videos with sound, as their real archives unpack; see `layouts` for the design.

In: a `Job`, one task to write. Out: the files under its folder. What is drawn is in `av_media`: the kind of a
class has the same shape and timbre in all of them, so that what is learned from one set helps with another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polyvit.synthetic import media
from polyvit.synthetic.av_media import Container, encode_video, song
from polyvit.synthetic.classes import CHARADES, ESC50, KINETICS_700, KINETICS_SOUNDS, UCF101
from polyvit.synthetic.layouts import Item, Job, csv_text, invented_id

FPS, SECONDS, RATE = 8, 6.0, 8_000
UCF_SPLITS, GROUP = 3, 2
"""Lists of UCF-101, and the clips that are cut from one long video, a group: all on one side of each split."""
FOLDS = 5


def _video(job: Job, item: Item, kind: int, seconds: float = SECONDS, container: Container = "mp4") -> bytes:
    """The bytes of a video; without a sound track one in eleven, as downloads are."""
    clip, wave = song(item.rng, kind, (job.side, job.side), FPS, seconds, RATE)
    silent = item.index % 11 == 6
    return encode_video(clip, FPS, None if silent else wave, RATE, container)


def _kinetics(job: Job, labels: Sequence[str]) -> None:
    """<split>/<label>/<id>_<start>_<end>.mp4 and <split>.csv."""
    header = ("label", "youtube_id", "time_start", "time_end", "split")
    rows: dict[str, list[Sequence[Any]]] = {split: [header] for split in job.counts()}
    for item in job.items():
        label, ident, start = labels[item.label], invented_id(item.rng), int(item.rng.integers(300))
        content = _video(job, item, item.label)
        job.save(f"{item.split}/{label}/{ident}_{start:06d}_{start + 10:06d}.mp4", content)
        rows[item.split].append((label, ident, start, start + 10, item.split))
    for split, lines in rows.items():
        job.save(f"{split}.csv", csv_text(lines))


def _ucf101(job: Job) -> None:
    """UCF-101/<Class>/v_<Class>_g<group>_c<clip>.avi, ucfTrainTestlist/{classInd,trainlist0n,testlist0n}.txt."""
    lists: dict[str, list[str]] = {}
    names = sorted(UCF101[: job.classes])
    for item in job.items():
        name = UCF101[item.label]
        group, clip = divmod(item.number - 1, GROUP)
        path = f"{name}/v_{name}_g{group + 1:02d}_c{clip + 1:02d}.avi"
        job.save(f"UCF-101/{path}", _video(job, item, item.label, SECONDS, "avi"))
        for split in range(UCF_SPLITS):
            if group % UCF_SPLITS == split:
                lists.setdefault(f"testlist{split + 1:02d}", []).append(path)
            else:
                lists.setdefault(f"trainlist{split + 1:02d}", []).append(f"{path} {names.index(name) + 1}")
    for name, lines in lists.items():
        job.save(f"ucfTrainTestlist/{name}.txt", "".join(f"{line}\n" for line in sorted(lines)))
    classes = "".join(f"{number} {name}\n" for number, name in enumerate(names, 1))
    job.save("ucfTrainTestlist/classInd.txt", classes)


def _esc50(job: Job) -> None:
    """meta/esc50.csv and audio/<fold>-<source>-<take>-<target>.wav."""
    rows: list[Sequence[Any]] = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for item in job.items():
        fold, source = 1 + (item.number - 1) % FOLDS, 100_000 + int(item.rng.integers(100_000))
        _, wave = song(item.rng, item.label, (2, 2), 1, 5.0, RATE)
        name = f"{fold}-{source}-A-{item.label}.wav"
        job.save(f"audio/{name}", media.encode_sound(wave, RATE, "WAV"))
        rows.append((name, fold, item.label, ESC50[item.label], item.label < 2, source, "A"))
    job.save("meta/esc50.csv", csv_text(rows))


def _charades(job: Job) -> None:
    """Charades_v1_480/<id>.mp4, Charades_v1_{train,test}.csv, Charades_v1_classes.txt of 157 rows.

    Each video has two actions, one after the other, with their times; a few have only one.
    """
    header = (
        "id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions",
        "actions", "length",
    )  # fmt: skip
    rows: dict[str, list[Sequence[Any]]] = {split: [header] for split in job.counts()}
    for item in job.items():
        ident = "".join(str(item.rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))) for _ in range(5))
        kinds = [item.label] if item.index % 7 == 4 else [item.label, (item.label + 1) % job.classes]
        half = SECONDS / len(kinds)
        parts = [song(item.rng, kind, (job.side, job.side), FPS, half, RATE) for kind in kinds]
        clip, wave = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        job.save(f"Charades_v1_480/{ident}.mp4", encode_video(clip, FPS, wave, RATE))
        actions = ";".join(f"c{kind:03d} {k * half:.2f} {(k + 1) * half:.2f}" for k, kind in enumerate(kinds))
        script = 'A person, at home, says "hello".'
        rows[item.split].append(
            (ident, "SYNT", "Living room", 6, 7, "Yes", script, "clothes", script, actions, f"{SECONDS:.2f}")
        )
    for split, lines in rows.items():
        job.save(f"Charades_v1_{split}.csv", csv_text(lines))
    names = [*CHARADES, *(f"synthetic placeholder {number}" for number in range(len(CHARADES), 157))]
    job.save("Charades_v1_classes.txt", "".join(f"c{k:03d} {name}\n" for k, name in enumerate(names)))


AV_WRITERS: dict[str, Callable[[Job], None]] = {
    "kinetics700": lambda job: _kinetics(job, KINETICS_700),
    "kinetics_sounds": lambda job: _kinetics(job, KINETICS_SOUNDS),
    "ucf101": _ucf101,
    "esc50": _esc50,
    "charades": _charades,
}
