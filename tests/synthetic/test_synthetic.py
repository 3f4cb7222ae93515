"""The toy datasets: true layouts (compared with the real kit), determinism, refusals.

Files are decoded here with PIL, PyAV and soundfile alone: what the library does with them is tested elsewhere.
"""

import csv
import errno
import hashlib
import json
import os
import pickle
import pickletools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from kit import DATA_DIR, needs_data
from PIL import Image

from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.errors import UserError
from polyvit.synthetic import classes, layouts, media
from polyvit.synthetic.write import MARKER, SPLITS, write_example_pair, write_synthetic

SMALL: dict[str, Any] = {"tasks": ["cifar10", "pets", "vggsound"], "train": 12, "evaluation": 4, "side": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine datasets with the default arguments."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder)
    return folder


def files(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_csv(path: Path, **options: Any) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, **options))


def unpickled(path: Path) -> dict[bytes, Any]:
    result: dict[bytes, Any] = pickle.loads(path.read_bytes(), encoding="bytes")
    return result


# ------------------------------------------------------------------------------------------------- layouts


def test_the_nine_tasks_are_the_papers(root: Path) -> None:
    assert set(SPLITS) == set(PAPER_TASKS)
    assert sorted(path.name for path in root.iterdir()) == sorted([MARKER, *SPLITS])


def test_counts_are_returned_and_on_disk(root: Path) -> None:
    counts = write_synthetic(root)
    assert counts["resisc45"] == {"train": 48, "val": 16, "test": 16}
    assert counts["audioset"] == {"balanced_train": 48, "eval": 16}
    media = {
        "imagenet": "*/*/*.JPEG", "pets": "images/*.jpg", "resisc45": "NWPU-RESISC45/*/*.jpg",
        "kinetics400": "*/*/*.mp4", "moments_in_time": "*/*/*.mp4", "audioset": "audio/*/*", "vggsound": "audio/*",
    }  # fmt: skip
    for task, pattern in media.items():
        assert len(list((root / task).glob(pattern))) == sum(counts[task].values()), task


PATHS = {
    "imagenet": r"LOC_synset_mapping\.txt|train/(n\d{8})/\1_(\d+|fullres)\.JPEG"
    r"|val/n\d{8}/(n\d{8}_\d+|ILSVRC2012_val_\d{8})\.JPEG",
    "cifar10": r"cifar-10-batches-py/(data_batch_[1-5]|test_batch|batches\.meta)",
    "cifar100": r"cifar-100-python/(train|test|meta)",
    "pets": r"images/[A-Za-z_]+_\d+\.jpg|annotations/(list|trainval|test)\.txt",
    "resisc45": r"NWPU-RESISC45/([a-z_]+)/\1_\d{3}\.jpg|resisc45-(train|val|test)\.txt",
    "kinetics400": r"(train|val)\.csv|(train|val)/[^/]+/[\w-]{11}_\d{6}_\d{6}\.mp4",
    "moments_in_time": r"moments_categories\.txt|(training|validation)Set\.csv"
    r"|(training|validation)/[^/]+/yt-[\w-]{11}_\d+\.mp4",
    "audioset": r"class_labels_indices\.csv|(balanced_train|eval)_segments\.csv"
    r"|audio/(balanced_train|eval)_segments/[\w-]{11}\.(wav|flac)",
    "vggsound": r"vggsound\.csv|audio/[\w-]{11}_\d{6}\.(wav|flac|mp4)",
}  # fmt: skip


@pytest.mark.parametrize("task", SPLITS)
def test_every_path_is_as_in_the_real_set(root: Path, task: str) -> None:
    def names(folder: Path) -> list[str]:
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    assert [name for name in names(root / task) if not re.fullmatch(PATHS[task], name)] == []
    if (DATA_DIR / task).is_dir():  # real sets may hold names of other sorts too
        real = names(DATA_DIR / task)
        assert sum(bool(re.fullmatch(PATHS[task], name)) for name in real) > len(real) / 2


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        f"cifar10/cifar-10-batches-py/{name}"
        for name in ("data_batch_1", "data_batch_5", "test_batch", "batches.meta")
    ]
    + [f"cifar100/cifar-100-python/{name}" for name in ("train", "test", "meta")],
)
def test_cifar_pickles_have_the_real_keys_types_and_opcodes(root: Path, name: str) -> None:
    ours, real = unpickled(root / name), unpickled(DATA_DIR / name)
    assert list(ours) == list(real)
    for key, value in real.items():
        assert type(ours[key]) is type(value), key
        if isinstance(value, np.ndarray):
            assert (ours[key].dtype, ours[key].shape[1]) == (value.dtype, value.shape[1])
        elif isinstance(value, list):
            assert {type(one) for one in ours[key]} == {type(one) for one in value}, key
    for label in (b"batch_label", b"label_names", b"fine_label_names", b"coarse_label_names", b"num_vis"):
        assert ours.get(label) == real.get(label)

    def names(path: Path) -> set[str]:
        return {str(arg) for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name in ("GLOBAL", "PROTO")}

    assert names(root / name) == names(DATA_DIR / name)


def test_cifar_rows(root: Path) -> None:
    batches = [unpickled(root / f"cifar10/cifar-10-batches-py/data_batch_{k}") for k in range(1, 6)]
    assert [len(batch[b"labels"]) for batch in batches] == [10, 10, 10, 9, 9]
    assert all(batch[b"data"].shape == (len(batch[b"filenames"]), 3072) for batch in batches)
    assert Counter(label for batch in batches for label in batch[b"labels"]) == dict.fromkeys(range(4), 12)


@needs_data
def test_cifar100_coarse_classes_belong_to_the_fine_ones(root: Path) -> None:
    name = "cifar100/cifar-100-python/train"
    real, ours = unpickled(DATA_DIR / name), unpickled(root / name)
    belongs = dict(zip(real[b"fine_labels"], real[b"coarse_labels"], strict=True))
    assert len(set(ours[b"fine_labels"])) == 8
    pairs = set(zip(ours[b"fine_labels"], ours[b"coarse_labels"], strict=True))
    assert all(belongs[fine] == coarse for fine, coarse in pairs if fine in belongs)
    # Also the pairs that the default arguments leave out.
    meta = unpickled(DATA_DIR / "cifar100/cifar-100-python/meta")
    index = {label.decode(): k for k, label in enumerate(meta[b"fine_label_names"])}
    for coarse, pair in enumerate(classes.CIFAR100_PAIRS):
        assert {belongs.get(index[fine], coarse) for fine in pair} == {coarse}  # of those with an example


def test_imagenet_mapping(root: Path) -> None:
    lines = (root / "imagenet/LOC_synset_mapping.txt").read_text().splitlines()
    wnids = [line.split(" ", 1)[0] for line in lines]
    assert len(lines) == 1000
    assert wnids == sorted(set(wnids))
    assert {path.name for path in (root / "imagenet/val").iterdir()} == set(wnids[:4])
    if DATA_DIR.is_dir():
        real = (DATA_DIR / "imagenet/LOC_synset_mapping.txt").read_text().splitlines()
        assert lines[:8] == real[:8]


def test_imagenet_pictures_are_jpeg_but_for_one_in_fifteen(root: Path) -> None:
    paths = sorted((root / "imagenet/train").glob("*/*.JPEG"))
    formats = Counter(Image.open(path).format for path in paths)
    assert formats == {"JPEG": 45, "PNG": 3}
    assert len({Image.open(path).size for path in paths}) > 10
    assert min(min(Image.open(path).size) for path in paths) >= 64


def test_pets_lists(root: Path) -> None:
    folder = root / "pets/annotations"
    lines = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("list", "trainval", "test")}
    comments = [line for line in lines["list"] if line.startswith("#")]
    assert len(comments) == 6
    assert sorted(lines["trainval"] + lines["test"]) == sorted(lines["list"][6:])
    images = {line.split()[0] for line in lines["list"][6:]}
    assert images == {path.stem for path in (root / "pets/images").iterdir()}
    if DATA_DIR.is_dir():
        real = (DATA_DIR / "pets/annotations/list.txt").read_text().splitlines()
        known = {line.split()[0].rpartition("_")[0]: line.split()[1:] for line in real if not line.startswith("#")}
        assert comments == real[:6]
        ours = [(breed, species, index) for breed, species, index, *_ in classes.PETS]
        assert known.keys() & {breed for breed, *_ in ours}
        for number, (breed, species, index) in enumerate(ours, start=1):
            assert known.get(breed) in (None, [str(number), str(species), str(index)])


def test_resisc45_split_files_name_every_picture_once(root: Path) -> None:
    listed = [(root / f"resisc45/resisc45-{split}.txt").read_text().split() for split in ("train", "val", "test")]
    names = [name for part in listed for name in part]
    assert sorted(names) == sorted(path.name for path in (root / "resisc45/NWPU-RESISC45").glob("*/*"))


def test_kinetics_csv(root: Path) -> None:
    for split in ("train", "val"):
        head, *rows = read_csv(root / f"kinetics400/{split}.csv")
        assert head == ["label", "youtube_id", "time_start", "time_end", "split"]
        paths = {f"{row[0]}/{row[1]}_{int(row[2]):06d}_{int(row[3]):06d}.mp4" for row in rows}
        folder = root / "kinetics400" / split
        assert paths == {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
        assert {row[4] for row in rows} == {split}
        if DATA_DIR.is_dir():
            assert read_csv(DATA_DIR / f"kinetics400/{split}.csv")[0] == head


def test_moments_csv(root: Path) -> None:
    categories = read_csv(root / "moments_in_time/moments_categories.txt")
    assert [int(row[1]) for row in categories] == list(range(4))
    assert [row[0] for row in categories] == sorted(row[0] for row in categories)
    for split in ("training", "validation"):
        rows = read_csv(root / f"moments_in_time/{split}Set.csv")
        assert {len(row) for row in rows} == {4}
        assert all(row[0].split("/")[0] == row[1] for row in rows)
        assert all((root / "moments_in_time" / split / row[0]).is_file() for row in rows)
        if DATA_DIR.is_dir():
            assert {len(row) for row in read_csv(DATA_DIR / f"moments_in_time/{split}Set.csv")} == {4}


def test_audioset_csv(root: Path) -> None:
    folder = root / "audioset"
    head, *labels = read_csv(folder / "class_labels_indices.csv")
    assert head == ["index", "mid", "display_name"]
    assert [int(row[0]) for row in labels] == list(range(527))
    assert len({row[1] for row in labels}) == 527
    known = {row[1] for row in labels if "synthetic" not in row[2]}
    for split in ("balanced_train", "eval"):
        lines = (folder / f"{split}_segments.csv").read_text().splitlines()
        assert [line[0] for line in lines[:4]].count("#") == 3
        assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
        for line in lines[3:]:
            assert re.fullmatch(r'[\w-]{11}, \d+\.000, \d+\.000, "[^"]+"', line)
        rows = read_csv(folder / f"{split}_segments.csv", skipinitialspace=True)[3:]
        sizes = Counter(len(row[3].split(",")) for row in rows)
        assert set(sizes) == {1, 2, 3}
        assert {mid for row in rows for mid in row[3].split(",")} <= known
        audio = folder / "audio" / f"{split}_segments"
        assert {row[0] for row in rows} == {path.stem for path in audio.iterdir()}
    if DATA_DIR.is_dir():
        real = read_csv(DATA_DIR / "audioset/class_labels_indices.csv")
        assert head == real[0]
        for index, mid, name, _ in layouts.AUDIOSET:
            assert real[index + 1] == [str(index), mid, name]


def test_vggsound_csv(root: Path) -> None:
    text = (root / "vggsound/vggsound.csv").read_text()
    rows = read_csv(root / "vggsound/vggsound.csv")
    assert {len(row) for row in rows} == {4}
    assert {row[3] for row in rows} == {"train", "test"}
    assert ',"bird chirping, tweeting",' in text
    stems = {f"{row[0]}_{int(row[1]):06d}" for row in rows}
    assert stems == {path.stem for path in (root / "vggsound/audio").iterdir()}


def test_videos_are_h264_with_aac_mono_sound(root: Path) -> None:
    rates, sizes = set(), set()
    for path in sorted((root / "kinetics400/val").glob("*/*")):
        with av.open(str(path)) as box:
            video, audio = box.streams.video[0], box.streams.audio[0]
            assert (video.codec.name, audio.codec.name, audio.layout.name) == ("h264", "aac", "mono")
            fps = float(video.average_rate or 0)
            assert 1.4 <= video.frames / fps <= 2
            rates.add(fps)
            sizes.add((video.height, video.width))
    assert rates <= {16, 20, 25}
    assert len(rates) > 1
    assert sizes == {(64, 64), (64, 84)}


def test_sounds_are_wav_flac_and_mp4_without_pictures(root: Path) -> None:
    kinds: Counter[object] = Counter()
    for path in (*(root / "audioset/audio").glob("*/*"), *(root / "vggsound/audio").iterdir()):
        if path.suffix == ".mp4":
            with av.open(str(path)) as box:
                assert [stream.codec.name for stream in box.streams] == ["aac"]
            kinds["mp4"] += 1
        else:
            info = soundfile.info(path)
            assert 1.5 < info.duration <= 2
            kinds[(info.format, info.samplerate, info.channels)] += 1
    assert set(kinds) == {"mp4", *((form, *rate) for form in ("WAV", "FLAC") for rate in ((16000, 1), (44100, 2)))}
    assert kinds["mp4"] == 5


# --------------------------------------------------------------------------------- determinism, the folder


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "again", tasks=["audioset", "kinetics400", "pets"], train=16, evaluation=1)
    write_synthetic(tmp_path / "other", tasks=["pets"], train=16, evaluation=1, seed=1)
    whole, part, other = files(root), files(tmp_path / "again"), files(tmp_path / "other")
    media = [name for name in part if name.endswith((".mp4", ".wav", ".flac"))]
    train = [name for name in media if "eval" not in name and "/val/" not in name]
    assert len(train) == 32
    # An example does not depend on how many others, or which tasks, are written.
    assert {name: whole[name] for name in train} == {name: part[name] for name in train}
    pets = [name for name in part if name.endswith(".jpg")]
    assert all(part[name] != other[name] for name in pets)


def test_a_second_folder_is_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_synthetic(tmp_path / name, seed=5, train=8, evaluation=2, side=32)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first = write_synthetic(tmp_path, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    calls: list[tuple[str, int, int]] = []
    assert write_synthetic(tmp_path, **SMALL, progress=lambda *a: calls.append(a)) == first
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_an_interrupted_write_is_redone(tmp_path: Path) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if (task, done) == ("pets", 7):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "cut", **SMALL, progress=stop)
    assert json.loads((tmp_path / "cut" / MARKER).read_text())["counts"] is None
    (tmp_path / "cut/pets/images/Abyssinian_1.jpg").write_bytes(b"half")
    write_synthetic(tmp_path / "cut", **SMALL)
    write_synthetic(tmp_path / "whole", **SMALL)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_deleted_task_is_written_again(tmp_path: Path) -> None:
    write_synthetic(tmp_path, **SMALL)
    before = files(tmp_path)
    for path in sorted((tmp_path / "cifar10").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "cifar10").rmdir()
    write_synthetic(tmp_path, **SMALL)
    assert files(tmp_path) == before


def test_progress_counts_every_example_of_a_task(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write_synthetic(tmp_path, **SMALL, progress=lambda *a: calls.append(a))
    assert calls == [(task, done, 16) for task in SMALL["tasks"] for done in range(1, 17)]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_synthetic(tmp_path, **SMALL)
    assert files(tmp_path) == {"mine.txt": hashlib.sha256(b"mine").hexdigest()}
    with pytest.raises(UserError, match="is a file"):
        write_synthetic(tmp_path / "mine.txt", **SMALL)


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    write_synthetic(tmp_path, **SMALL)
    before = files(tmp_path)
    with pytest.raises(UserError, match="other arguments"):
        write_synthetic(tmp_path, **SMALL, seed=1)
    with pytest.raises(UserError, match="other arguments"):
        write_example_pair(tmp_path)
    assert files(tmp_path) == before


def test_all_bad_arguments_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_synthetic(tmp_path / "x", tasks=["cifar"], classes=9, train=4, evaluation=0, side=33, seed=-1)
    text = str(caught.value)
    for part in ("'cifar' is not one of imagenet", "classes=9", "train=4", "evaluation=0", "side=33", "seed=-1"):
        assert part in text
    with pytest.raises(UserError, match="tasks is empty"):
        write_synthetic(tmp_path / "x", tasks=[])
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(layouts, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        write_synthetic(tmp_path, **SMALL)
    monkeypatch.undo()
    write_synthetic(tmp_path, **SMALL)


def test_a_parent_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_synthetic(tmp_path / "file" / "below", **SMALL)


# ----------------------------------------------------------------------------------------- own-data example


def test_example_pair(tmp_path: Path) -> None:
    counts = write_example_pair(tmp_path)
    assert counts == {"shapes": {"train": 24, "val": 12}, "sounds": {"train": 24, "validation": 12}}
    for split, count in counts["shapes"].items():
        pictures = sorted((tmp_path / "shapes" / split).glob("*/*.png"))
        assert Counter(path.parent.name for path in pictures) == dict.fromkeys(media.SHAPES[:3], count // 3)
        assert {Image.open(path).format for path in pictures} == {"PNG"}
    head, *rows = read_csv(tmp_path / "sounds/data.csv")
    assert head == ["path", "label", "split"]
    assert Counter((row[1], row[2]) for row in rows) == {
        (label, split): count // 3 for label in media.SOUNDS[:3] for split, count in counts["sounds"].items()
    }
    assert all(soundfile.info(tmp_path / "sounds" / row[0]).samplerate == 16_000 for row in rows)
    before = files(tmp_path)
    assert write_example_pair(tmp_path) == counts
    assert files(tmp_path) == before


def test_example_pair_is_the_same_in_two_folders(tmp_path: Path) -> None:
    write_example_pair(tmp_path / "a")
    write_example_pair(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
