"""Linear probes on made-up features: what they must find, what they must not, and what they must not look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import task as make_task
from sklearn.linear_model import LogisticRegression

from polyvit.config import ImageInput, ImageTask, TaskConfig
from polyvit.data.loading.minibatch import Minibatch, Quarantined, multi_hot
from polyvit.errors import UserError
from polyvit.evaluation.features import (
    DamagedFeatures,
    Features,
    features_key,
    gather_features,
    read_features,
    write_features,
)
from polyvit.evaluation.linear_probe import ProbeSettings, carve_out, choose_lr, fit_heads, probe

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, WIDTH = 4, 16
TASK = make_task("imagefolder", CLASSES)
FAST = ProbeSettings(epochs=30)


def features_of(labels: np.ndarray, features: np.ndarray, prefix: str = "train") -> Features:
    return Features(features.astype(np.float32), labels, tuple(f"{prefix}/{i}" for i in range(len(labels))))


def separable(count: int, seed: int, prefix: str = "train", noise: float = 0.3) -> Features:
    """Class means far apart in a space whose dimensions differ a hundredfold in scale and lie off zero."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % CLASSES
    means = 3.0 * np.eye(CLASSES, WIDTH)
    features = means[targets] + noise * rng.normal(size=(count, WIDTH))
    return features_of(
        np.eye(CLASSES, dtype=np.uint8)[targets], features * np.logspace(-1, 1, WIDTH) + 5.0, prefix
    )


def several(count: int, seed: int, prefix: str = "train") -> Features:
    """Several labels an example, each the sign of a dimension; at least one."""
    features = np.random.default_rng(seed).normal(size=(count, WIDTH))
    labels = (features[:, :CLASSES] > 0.3).astype(np.uint8)
    labels[~labels.any(axis=1), 0] = 1
    return features_of(labels, features, prefix)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_separable_features_are_solved(loss: str) -> None:
    task = make_task("imagefolder", CLASSES, loss=loss)
    result = probe(task, separable(120, 0), separable(60, 1, "held"), FAST)
    assert result.value == result.scores["top1"] == 1.0
    assert (result.metric, result.chance) == ("top1", 0.25)
    assert (result.train_examples, result.eval_examples) == (120, 60)
    assert result.lr in FAST.lrs
    assert list(result.tried) == sorted(FAST.lrs)
    assert result.tried[result.lr] == max(value for value in result.tried.values() if value is not None)


def test_labels_at_random_stay_near_chance() -> None:
    """There is nothing to find, so a higher value would be a leak."""
    rng = np.random.default_rng(0)
    splits = [
        features_of(
            multi_hot([(k,) for k in rng.integers(0, CLASSES, n)], CLASSES), rng.normal(size=(n, WIDTH)), name
        )
        for n, name in ((400, "train"), (800, "held"))
    ]
    result = probe(TASK, *splits, FAST)
    assert result.value is not None
    # Four deviations of a guess over 800 examples: 4 * sqrt(0.25 * 0.75 / 800).
    assert abs(result.value - 0.25) < 0.062


def test_multi_label_map() -> None:
    task = make_task("csv", CLASSES, "audio", loss="sigmoid", metric="map")
    train, held = several(300, 0), several(200, 1, "held")
    result = probe(task, train, held, FAST)
    assert result.value == result.scores["map"]
    assert result.value > 0.97
    assert result.chance == pytest.approx(held.labels.mean(axis=0).mean())
    shuffled = replace(held, labels=held.labels[np.random.default_rng(2).permutation(200)])
    worse = probe(task, train, shuffled, FAST)
    assert worse.value == pytest.approx(worse.chance, abs=0.12)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    train, held = separable(150, 0, noise=3.0), separable(60, 1, "held", noise=3.0)
    torch.manual_seed(1)
    first = probe(TASK, train, held, FAST)
    torch.manual_seed(2)
    second = probe(TASK, train, held, FAST)
    assert torch.equal(first.head.weight, second.head.weight)
    assert torch.equal(first.head.bias, second.head.bias)
    assert (first.lr, first.tried, first.scores) == (second.lr, second.tried, second.scores)
    other = fit_heads(TASK, train, [first.lr], replace(FAST, seed=1))
    assert not torch.equal(first.head.weight, other.weight)


def test_evaluation_labels_do_not_reach_the_head() -> None:
    train, held = separable(150, 0, noise=4.0), separable(80, 1, "held", noise=4.0)
    permuted = replace(held, labels=held.labels[np.random.default_rng(0).permutation(80)])
    first, second = probe(TASK, train, held, FAST), probe(TASK, train, permuted, FAST)
    assert torch.equal(first.head.weight, second.head.weight)
    assert (first.lr, first.tried) == (second.lr, second.tried)
    assert first.value != second.value


def test_the_head_is_that_of_logistic_regression() -> None:
    """The optimum of noisy features is unique; long enough, the probe gets there. The head is for raw features."""
    train, held = separable(400, 0, noise=3.0), separable(100, 1, "held", noise=3.0)
    head = fit_heads(TASK, train, [0.1], ProbeSettings(epochs=400, batch=400))
    logits = head.logits(torch.from_numpy(held.features))[0]
    scaled = (train.features - train.features.mean(0)) / train.features.std(0)
    exact = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-8).fit(scaled, train.labels.argmax(1))
    expected = exact.predict_proba((held.features - train.features.mean(0)) / train.features.std(0))
    # 400 steps end near the optimum, not on it.
    assert np.abs(logits.softmax(-1).numpy() - expected).max() < 0.02


def test_heads_side_by_side_equal_heads_alone() -> None:
    train = separable(90, 0, noise=2.0)
    together = fit_heads(TASK, train, [0.01, 0.1], FAST)
    for i, lr in enumerate([0.01, 0.1]):
        alone = fit_heads(TASK, train, [lr], FAST)
        # The same sums in another matrix product: float32 rounding over 30 steps.
        torch.testing.assert_close(together.weight[i], alone.weight[0], rtol=1e-4, atol=1e-5)


def test_the_carve_out_is_by_key_and_of_train() -> None:
    keys = [f"k{i}" for i in range(50)]
    fitted, held = carve_out(keys, 0.2)
    assert len(held) == 10
    assert sorted([*fitted, *held]) == list(range(50))
    order = np.random.default_rng(0).permutation(50)
    _, other = carve_out([keys[i] for i in order], 0.2)
    assert {keys[order[i]] for i in other} == {keys[i] for i in held}
    assert [len(part) for part in carve_out(keys[:2], 0.2)] == [1, 1]
    assert [len(part) for part in carve_out(keys[:3], 1.0)] == [1, 2]


def test_a_rate_that_diverges_is_not_chosen() -> None:
    train = separable(120, 0)
    lr, tried = choose_lr(TASK, train, replace(FAST, lrs=(1e38, 0.1)))
    assert lr == 0.1
    assert tried[1e38] is None
    with pytest.raises(UserError, match="no learning rate of 1e\\+38, 2e\\+38 gives a finite loss"):
        choose_lr(TASK, train, replace(FAST, lrs=(1e38, 2e38)))
    assert choose_lr(TASK, train, replace(FAST, lrs=(0.5,))) == (0.5, {})


def test_a_constant_dimension_is_left_out() -> None:
    train, held = separable(120, 0), separable(60, 1, "held")
    train.features[:, 3] = 7.0
    held.features[:, 3] = np.random.default_rng(0).normal(scale=1e6, size=60)
    result = probe(TASK, train, held, FAST)
    assert torch.equal(result.head.weight[0, 3], torch.zeros(CLASSES))


def test_examples_without_a_label_do_not_count() -> None:
    train, held = separable(122, 0), separable(60, 1, "held")
    train.labels[:2] = 0
    held.labels[:5] = 0
    result = probe(TASK, train, held, FAST)
    assert (result.train_examples, result.eval_examples, result.value) == (120, 55, 1.0)
    train.labels[1:] = 0
    with pytest.raises(UserError, match="at least 2 labelled"):
        probe(TASK, train, held, FAST)


# ------------------------------------------------------------------------------------------------ the cache file


@pytest.fixture
def found() -> Features:
    """With an example of no label and two of several, and one that was left out."""
    features = replace(several(70, 3), bad=(Quarantined("t", "k", "k.png", "image: broken"),))
    features.labels[4] = 0
    return features


def test_a_features_file_reads_back(tmp_path: Path, found: Features) -> None:
    path = tmp_path / "new" / "f.parquet"
    write_features(found, path, "key")
    again = read_features(path, "key", 71, CLASSES)
    assert (again.keys, again.bad) == (found.keys, found.bad)
    assert again.features.tobytes() == found.features.tobytes()
    assert again.labels.tobytes() == found.labels.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["f.parquet"]
    none = found.rows(np.arange(0))
    write_features(none, path, "key")
    assert read_features(path, "key", 1, CLASSES).features.shape == (0, WIDTH)


def test_a_features_file_that_is_not_it_is_refused(tmp_path: Path, found: Features) -> None:
    path = tmp_path / "f.parquet"
    with pytest.raises(FileNotFoundError):
        read_features(path, "key", 71, CLASSES)
    write_features(found, path, "key")
    with pytest.raises(DamagedFeatures, match="other features"):
        read_features(path, "another", 71, CLASSES)
    with pytest.raises(DamagedFeatures, match="71 examples, the split has 70"):
        read_features(path, "key", 70, CLASSES)
    with pytest.raises(DamagedFeatures):
        read_features(path, "key", 71, 2)  # labels beyond the classes
    whole = path.read_bytes()
    at = whole.index(found.features[10:20].tobytes()) + 7
    damaged = [b"", b"no parquet", whole[: len(whole) // 2], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamagedFeatures):
            read_features(path, "key", 71, CLASSES)


def test_writing_that_fails_leaves_the_file_and_no_other(
    tmp_path: Path, found: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.parquet"
    write_features(found, path, "key")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("polyvit.evaluation.features.pq.write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_features(found, path, "other")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.parquet"]


def test_the_key_is_of_what_features_depend_on() -> None:
    def key(task: TaskConfig = TASK, spec: ImageInput | None = None, **given: str) -> str:
        values = {"model": "m", "index": "i", "root": "/r", "split": "train", "precision": "float32", **given}
        return features_key(
            values["model"], values["index"], Path(values["root"]), values["split"], task, spec or ImageInput(),
            values["precision"],
        )  # fmt: skip

    assert isinstance(TASK, ImageTask)
    cut = TASK.model_copy(update={"augment": TASK.augment.model_copy(update={"eval_resize": "crop"})})
    others = [key(cut), key(spec=ImageInput(size=(32, 32)))]
    others += [key(**{name: "x"}) for name in ("model", "index", "root", "split", "precision")]
    assert len({key(), *others}) == 1 + len(others)
    # What the head alone depends on, or neither.
    same = TASK.model_copy(update={"loss": "sigmoid", "steps": 9, "eval_split": "test", "lr_coef": 0.5})
    assert key(same) == key()


def test_minibatches_are_gathered_in_order() -> None:
    bad = Quarantined("t", "b", "b.png", "broken")
    parts = []
    for keys, entries in ((("a", "c"), (bad,)), ((), ()), (("d",), ())):
        labels = multi_hot([(1,)] * len(keys), CLASSES)
        parts.append((np.full((len(keys), 2), len(keys), np.float32), Minibatch(
            0, "t", {"tokens": np.zeros((len(keys), 1, 1), np.uint8)}, labels, keys, 0, 3, entries,
        )))  # fmt: skip
    found = gather_features(parts, 2, CLASSES)
    assert (found.keys, found.bad, found.features[:, 0].tolist()) == (("a", "c", "d"), (bad,), [2, 2, 1])
    assert gather_features([], 2, CLASSES).features.shape == (0, 2)
