"""The toy datasets' content is learnable: plain features and a linear classifier beat chance on every task.

Features: pictures 8 x 8 RGB and a colour histogram; clips at eight times where the moving thing is and
how large; sounds the mean and deviation of 32 log bands and of their differences in time.
Fitted on the training split, scored on the evaluation split: 16 examples of 4 classes (chance 0.25), 8 classes in
CIFAR-100.
"""

import csv
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from polyvit.synthetic.write import write_synthetic

Array = npt.NDArray[np.float64]
Examples = list[tuple[Array, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine datasets with the default arguments but for the seed."""
    folder = tmp_path_factory.mktemp("content")
    write_synthetic(folder, seed=11)
    return folder


# ------------------------------------------------------------------------------------------------ features


def picture_features(picture: Image.Image) -> Array:
    rgb = picture.convert("RGB")
    thumbnail = np.asarray(rgb.resize((8, 8), Image.Resampling.BOX), float).ravel() / 255
    cells = np.asarray(rgb.resize((32, 32))).reshape(-1, 3) // 64 @ np.array([16, 4, 1])
    return np.concatenate([thumbnail, np.bincount(cells, minlength=64) / len(cells)])


def clip_features(path: Path) -> Array:
    """At eight times: middle, deviation and share of the pixels that differ from the clip's median picture."""
    with av.open(str(path)) as box:
        clip = np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]).astype(float)
    frames = clip[np.linspace(0, len(clip) - 1, 8).astype(int)]
    differs = (np.abs(frames - np.median(clip, axis=0)).max(axis=-1) > 40) + 1e-6
    rows, columns = np.arange(clip.shape[1])[:, None] / clip.shape[1], np.arange(clip.shape[2]) / clip.shape[2]
    numbers = []
    for moving in differs:
        weight = moving / moving.sum()
        y, x = (weight * rows).sum(), (weight * columns).sum()
        spread = np.sqrt((weight * (rows - y) ** 2).sum()), np.sqrt((weight * (columns - x) ** 2).sum())
        numbers.append((y, x, *spread, moving.mean()))
    return np.asarray(numbers).ravel()


def sound_features(path: Path) -> Array:
    if path.suffix == ".mp4":
        with av.open(str(path)) as box:
            wave, rate = np.concatenate([frame.to_ndarray()[0] for frame in box.decode(audio=0)]), 16_000
    else:
        wave, rate = soundfile.read(path, always_2d=True)
        wave = wave.mean(axis=1)
    size = rate // 40
    frames = wave[: len(wave) // size * size].reshape(-1, size) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames))[:, : 8000 * size // rate]
    edges = np.unique(np.geomspace(1, power.shape[1], 33).astype(int))
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-2)
    return np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)])


# ------------------------------------------------------------------------------------------------ examples


def by_folder(pattern: str) -> Callable[[Path, bool], Examples]:
    """Pictures or clips whose folder is the class; the pattern's alternatives are training|evaluation."""
    features = clip_features if pattern.endswith(".mp4") else lambda path: picture_features(Image.open(path))

    def read(root: Path, train: bool) -> Examples:
        task, splits, rest = pattern.split("/", 2)
        split = splits.split("|")[0 if train else 1]
        return [(features(path), path.parent.name) for path in sorted((root / task / split).glob(rest))]

    return read


def cifar(folder: str, train: str, test: str, key: str) -> Callable[[Path, bool], Examples]:
    def read(root: Path, is_train: bool) -> Examples:
        examples: Examples = []
        for path in sorted((root / folder).glob(train if is_train else test)):
            batch = pickle.loads(path.read_bytes(), encoding="latin1")
            pictures = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            examples += [
                (picture_features(Image.fromarray(rgb)), str(label))
                for rgb, label in zip(pictures, batch[key], strict=True)
            ]
        return examples

    return read


def pets(root: Path, train: bool) -> Examples:
    lines = (root / "pets/annotations" / ("trainval.txt" if train else "test.txt")).read_text().splitlines()
    rows = [line.split() for line in lines]
    return [(picture_features(Image.open(root / f"pets/images/{row[0]}.jpg")), row[1]) for row in rows]


def resisc45(root: Path, train: bool) -> Examples:
    names = (root / f"resisc45/resisc45-{'train' if train else 'test'}.txt").read_text().split()
    folder = root / "resisc45/NWPU-RESISC45"
    paths = [folder / name.rpartition("_")[0] / name for name in names]
    return [(picture_features(Image.open(path)), path.parent.name) for path in paths]


def vggsound(root: Path, train: bool) -> Examples:
    with (root / "vggsound/vggsound.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[3] == ("train" if train else "test")]
    examples = []
    for ident, start, label, _ in rows:
        (path,) = (root / "vggsound/audio").glob(f"{ident}_{int(start):06d}.*")
        examples.append((sound_features(path), label))
    return examples


def audioset(root: Path, train: bool) -> Examples:
    split = "balanced_train" if train else "eval"
    with (root / f"audioset/{split}_segments.csv").open(newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))[3:]
    examples = []
    for ident, _, _, mids in rows:
        (path,) = (root / f"audioset/audio/{split}_segments").glob(f"{ident}.*")
        examples.append((sound_features(path), mids))
    return examples


# --------------------------------------------------------------------------------------------------- tests


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("read", "floor"),
    [
        pytest.param(by_folder("imagenet/train|val/*/*.JPEG"), 0.8, id="imagenet"),
        pytest.param(
            cifar("cifar10/cifar-10-batches-py", "data_batch_*", "test_batch", "labels"),
            0.8,
            id="cifar10",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            cifar("cifar100/cifar-100-python", "train", "test", "fine_labels"),
            0.8,
            id="cifar100",
            marks=pytest.mark.slow,
        ),
        slow(pets, 0.8, id="pets"),
        slow(resisc45, 0.8, id="resisc45"),
        slow(by_folder("kinetics400/train|val/*/*.mp4"), 0.8, id="kinetics400"),
        pytest.param(
            by_folder("moments_in_time/training|validation/*/*.mp4"),
            0.8,
            id="moments_in_time",
            marks=pytest.mark.slow,
        ),
        pytest.param(vggsound, 0.8, id="vggsound"),
    ],
)
def test_a_linear_classifier_learns_it(root: Path, read: Callable[[Path, bool], Examples], floor: float) -> None:
    x, y = zip(*read(root, True), strict=True)
    eval_x, eval_y = zip(*read(root, False), strict=True)
    assert (len(x), len(eval_x)) == (48, 16)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(np.stack(x), y)
    accuracy = model.score(np.stack(eval_x), eval_y)
    assert accuracy >= floor


@pytest.mark.slow
def test_audioset_labels_are_learnt_one_by_one(root: Path) -> None:
    x, labels = zip(*audioset(root, True), strict=True)
    eval_x, eval_labels = zip(*audioset(root, False), strict=True)
    mids = sorted({mid for row in labels for mid in row.split(",")})
    y, eval_y = (
        np.array([[mid in row.split(",") for mid in mids] for row in part]) for part in (labels, eval_labels)
    )
    classifier = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=1000))
    model = make_pipeline(StandardScaler(), classifier).fit(np.stack(x), y)
    scores = model.predict_proba(np.stack(eval_x))
    mean_ap = average_precision_score(eval_y, scores, average="macro")
    constant = eval_y.mean()
    assert mean_ap >= constant + 0.3


HEIGHT, SIZE = 0, 4
"""Places among the five numbers of a frame: middle row (0 top, 1 bottom), share of moving pixels."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (
            "kinetics400",
            {
                "climbing a rope": (HEIGHT, -1, -0.3),
                "abseiling": (HEIGHT, 0.3, 1),
                "inflating balloons": (SIZE, 0.05, 1),
                "blowing out candles": (SIZE, -1, -0.05),
            },
        ),
        (
            "moments_in_time",
            {
                "ascending": (HEIGHT, -1, -0.3),
                "bouncing": (HEIGHT, -0.25, 0.25),
                "rolling": (HEIGHT, -0.1, 0.1),
                "inflating": (SIZE, 0.05, 1),
            },
        ),
    ],
)
def test_motion_matters(root: Path, task: str, changes: dict[str, tuple[int, float, float]]) -> None:
    """Played backwards, a falling thing rises: the class is in time, not in the pictures alone."""
    for label, (feature, low, high) in changes.items():
        paths = sorted((root / task).glob(f"*/{label}/*.mp4"))
        clips = np.stack([clip_features(path).reshape(8, 5) for path in paths])
        change = clips[:, -1, feature] - clips[:, 0, feature]
        assert len(paths) == 16
        assert low < change.mean() < high, label
