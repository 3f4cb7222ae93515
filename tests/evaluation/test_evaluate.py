"""Evaluation over several views: what is decoded, how it is averaged, the same result for any number of ranks."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from arrays_kit import evaluation_tokens, evaluation_views, example_tokens
from PIL import Image
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from small import ArrayFeed, fresh, small_config, small_plan

from polyvit.config import RunConfig
from polyvit.data.index.io import Example, Scan
from polyvit.data.loading.minibatch import Decoder, Minibatch, Quarantined, Request
from polyvit.data.loading.requests import EVAL_BATCH, InlineFeed, Requests, split_requests
from polyvit.evaluation.evaluator import average_views, evaluate, merged, totals
from polyvit.model.polyvit import PolyViT
from polyvit.model.tokenizer import normalise
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")

MANY = (
    "tasks.clip.eval_clips=3", "tasks.clip.eval_crops=3", "tasks.sound.eval_clips=4",
    "tasks.sound.eval_average=probabilities", "tasks.word.eval_clips=2",
    # Five of its six classes count for top-5, and the loss is softmax.
    "tasks.clip.num_classes=6",
)  # fmt: skip
COUNTS = {"picture": 5, "clip": 8, "sound": 7, "word": 4}
BAD = {"clip": "clip_2", "sound": "sound_3"}


def noise_video(rng: np.random.Generator, frames: int) -> bytes:
    """Frames of 24 x 40 pixels of coarse noise."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 24, "yuv420p"
        for _ in range(frames):
            coarse = rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(coarse.repeat(8, 0).repeat(8, 1), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, clips of 9 to 23 frames, recordings of 0.2 to 1.6 s; one clip and one recording are damaged."""
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for i in range(COUNTS["picture"]):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture_{i}.png")
    for i in range(COUNTS["clip"]):
        (folder / f"clip_{i}.mp4").write_bytes(noise_video(rng, 9 + 2 * i))
    for task in ("sound", "word"):
        for i in range(COUNTS[task]):
            samples = rng.normal(size=3200 * (i + 1)) * np.linspace(0.01, 0.3, 3200 * (i + 1))
            soundfile.write(folder / f"{task}_{i}.wav", samples, 16_000)
    (folder / "clip_2.mp4").write_bytes(b"no video")
    (folder / "sound_3.wav").write_bytes(b"no sound")
    return folder


ENDINGS = {"picture": "png", "clip": "mp4", "sound": "wav", "word": "wav"}


def scans(config: RunConfig) -> dict[str, Scan]:
    """Labels in turn; sounds have two of them."""
    scans_by_task = {}
    for name, task in config.tasks.items():
        examples = [
            Example(
                f"{name}_{i}", f"{name}_{i}.{ENDINGS[name]}",
                tuple(sorted({i % task.num_classes, i * i % 5 if name == "sound" else i % task.num_classes})),
                "validation",
            )
            for i in range(COUNTS[name])
        ]  # fmt: skip
        scans_by_task[name] = Scan(examples, [str(k) for k in range(task.num_classes)])
    return scans_by_task


def decoder(config: RunConfig, root: Path) -> Decoder:
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    return Decoder(config.tasks, inputs, dict.fromkeys(config.tasks, root), seed=0)


def minibatches(config: RunConfig, root: Path, rank: int = 0, size: int = 1) -> list[Minibatch]:
    requests = Requests.of(config, small_plan(config), scans(config), rank, size)
    return list(InlineFeed(requests, decoder(config, root)).evaluation())


def lively(config: RunConfig) -> PolyViT:
    """A model whose heads are not zero."""
    model = PolyViT(config.model, config.tasks, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return model


class Rank:
    """One rank of a world: keeps what it would send, and receives what the others kept."""

    def __init__(self, rank: int, size: int, others: list[Any]) -> None:
        self.rank, self.size, self.others, self.sent = rank, size, others, None

    def sum_(self, flat: torch.Tensor) -> None:
        raise AssertionError("an evaluation sums nothing")

    def gather(self, value: Any) -> list:
        self.sent = value
        return [value, *self.others]


def evaluated(config: RunConfig, root: Path, size: int) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """The merged result of `size` ranks, as rank 0 has it."""
    model, sent = lively(config), []
    for rank in range(1, size):
        world = Rank(rank, size, [])
        evaluate(model, minibatches(config, root, rank, size), config, world)
        sent.append(world.sent)
    return evaluate(model, minibatches(config, root, 0, size), config, Rank(0, size, sent))


# ------------------------------------------------------------------------------------------------- averaging

LOGITS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, 3.0], [1.0, 1.0]])  # two examples of two views


def test_logits_are_averaged_by_default() -> None:
    """scenic's ViViT test step."""
    config = small_config()
    for name in ("clip", "sound", "word"):
        assert average_views(LOGITS, 2, config.tasks[name]).tolist() == [[0.5, 0.5], [0.5, 2.0]]


def test_probabilities_by_hand() -> None:
    config = small_config("tasks.clip.eval_average=probabilities", "tasks.sound.eval_average=probabilities")
    e = np.e
    expected = (e**2 / (e**2 + 1) + 1 / (1 + e**2)) / 2, (1 / (1 + e**3) + 0.5) / 2
    softmax = average_views(LOGITS, 2, config.tasks["clip"]).exp()  # log probabilities
    torch.testing.assert_close(softmax[:, 0], torch.tensor(expected, dtype=torch.float32))
    sigmoid = average_views(LOGITS, 2, config.tasks["sound"]).sigmoid()
    torch.testing.assert_close(sigmoid, LOGITS.sigmoid().unflatten(0, (2, 2)).mean(dim=1))
    assert float(sigmoid[0, 0]) == pytest.approx((1 / (1 + e**-2) + 1 / (1 + e)) / 2)


def test_probabilities_near_one_stay_apart() -> None:
    """In float32 both classes have probability 1; their order is that of what is missing to 1."""
    task = small_config("tasks.sound.eval_average=probabilities").tasks["sound"]
    averaged = average_views(torch.tensor([[40.0, 50.0], [40.0, 50.0]]), 2, task)
    torch.testing.assert_close(averaged, torch.tensor([[40.0, 50.0]]))


def test_one_view_is_left_as_it_is() -> None:
    config = small_config("tasks.clip.eval_average=probabilities")
    assert all(average_views(LOGITS, 1, task) is LOGITS for task in config.tasks.values())


def test_protocol() -> None:
    assert {name: task.protocol for name, task in small_config().tasks.items()} == {
        "picture": "1 view, whole image", "clip": "1 clip x 1 crop", "sound": "1 clip", "word": "1 clip",
    }  # fmt: skip
    config = small_config(*MANY, "tasks.picture.augment.eval_resize=crop")
    assert {name: task.protocol for name, task in config.tasks.items()} == {
        "picture": "1 view, centre crop", "clip": "3 clips x 3 crops, logits averaged",
        "sound": "4 clips, probabilities averaged", "word": "2 clips, logits averaged",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- decoding


def test_which_views() -> None:
    one, many = small_config().tasks, small_config(*MANY).tasks
    assert [evaluation_views(task) for task in one.values()] == [[(None, "centre")]] * 4
    assert evaluation_views(many["clip"]) == [
        ((i, 3), crop) for i in range(3) for crop in ("left", "centre", "right")
    ]
    assert evaluation_views(many["sound"]) == [((i, 4), "centre") for i in range(4)]
    for tasks in (one, many):
        assert all(len(evaluation_views(task)) == task.eval_views for task in tasks.values())


@pytest.mark.parametrize("name", ["clip", "sound"])
def test_every_view_is_the_window_that_its_name_says(root: Path, name: str) -> None:
    """Also inside a segment of the file, and where the file is shorter than the views together."""
    config = small_config(*MANY)
    task, spec = config.tasks[name], config.model.input(config.tasks[name].modality)
    media = (root / f"{name}_6.{ENDINGS[name]}").read_bytes()
    for segment in ((0.0, -1.0), (0.3, 1.2), (0.5, 0.7)):
        tokens = evaluation_tokens(media, task, spec, *segment)
        views = [example_tokens(media, task, spec, None, *segment, *view) for view in evaluation_views(task)]
        assert np.array_equal(tokens, np.stack(views))
    whole = evaluation_tokens(media, task, spec)
    assert len({view.tobytes() for view in whole}) == task.eval_views


def test_a_request_decodes_all_views_and_leaves_a_broken_example_out_whole(root: Path) -> None:
    config = small_config(*MANY)
    examples = scans(config)["clip"].examples[:4]
    minibatch = decoder(config, root).decode(Request(0, "clip", examples, global_batch=4))
    assert minibatch.keys == ("clip_0", "clip_1", "clip_3")
    assert (minibatch.inputs["tokens"].shape, minibatch.labels.shape, minibatch.views) == ((27, 8, 384), (3, 6), 9)
    assert [entry.key for entry in minibatch.bad] == ["clip_2"]
    media = (root / "clip_3.mp4").read_bytes()
    assert np.array_equal(
        minibatch.inputs["tokens"][18:], evaluation_tokens(media, config.tasks["clip"], config.model.video)
    )
    nothing = decoder(config, root).decode(Request(0, "clip", examples[2:3], global_batch=1))
    assert (nothing.inputs["tokens"].shape, nothing.labels.shape) == ((0, 8, 384), (0, 6))


def test_training_has_one_view(root: Path) -> None:
    config = small_config(*MANY)
    examples = scans(config)["clip"].examples[:2]
    minibatch = decoder(config, root).decode(Request(1, "clip", examples, (0, 0), global_batch=2))
    assert (minibatch.inputs["tokens"].shape, minibatch.views) == ((2, 8, 384), 1)


def test_views_count_in_the_size_of_a_minibatch() -> None:
    config = small_config(*MANY)
    splits = {
        name: [Example(f"{i:03d}", "p", (0,), "test") for i in range(100)] for name in ("picture", "clip", "sound")
    }
    sizes = {name: set() for name in splits}
    for request in split_requests(config, splits, 0, 1):
        sizes[request.task].add(len(request.examples))
    assert {name: max(found) for name, found in sizes.items()} == {"picture": 64, "clip": 7, "sound": 16}
    assert all(max(found) * config.tasks[name].eval_views <= EVAL_BATCH for name, found in sizes.items())
    huge = small_config("tasks.clip.eval_clips=100")
    assert {len(r.examples) for r in split_requests(huge, {"clip": splits["clip"]}, 0, 1)} == {1}


# -------------------------------------------------------------------------------------------------- measuring


def answers(config: RunConfig, root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores [B, K] averaged by NumPy, in float64, from one view at a time, and labels."""
    model, spec = lively(config).eval(), config.model.input(config.tasks[name].modality)
    task, scores, labels = config.tasks[name], [], []
    for example in scans(config)[name].examples:
        if example.key in BAD.values():
            continue
        media, views = (root / example.path).read_bytes(), []
        for view, crop in evaluation_views(task):
            tokens = example_tokens(media, task, spec, None, view=view, crop=crop)
            with torch.no_grad():
                views.append(
                    model({"tokens": normalise(torch.from_numpy(tokens[None]))}, name)[0].double().numpy()
                )
        stacked = np.stack(views)
        average = getattr(task, "eval_average", "logits")
        scores.append((stacked if average == "logits" else 1 / (1 + np.exp(-stacked))).mean(axis=0))
        labels.append(np.isin(np.arange(task.num_classes), example.labels))
    return np.stack(scores), np.stack(labels)


def test_metrics_are_scikit_learns_on_the_averages(root: Path) -> None:
    config = small_config(*MANY)
    results, bad = evaluated(config, root, 1)
    assert sorted(entry.key for entry in bad) == sorted(BAD.values())
    for name, result in results.items():
        assert result["examples"] == COUNTS[name] - (name in BAD)
        assert result["skipped"] == (name in BAD)
        assert result["protocol"] == config.tasks[name].protocol
    scores, labels = answers(config, root, "clip")
    targets, classes = labels.argmax(axis=1), range(6)
    assert results["clip"]["top1"] == pytest.approx(top_k_accuracy_score(targets, scores, k=1, labels=classes))
    assert results["clip"]["top5"] == pytest.approx(top_k_accuracy_score(targets, scores, k=5, labels=classes))
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    assert results["clip"]["loss"] == pytest.approx(-log_p[labels].mean(), rel=1e-4)
    scores, labels = answers(config, root, "sound")
    occurring = np.flatnonzero(labels.any(axis=0))
    expected = np.mean([average_precision_score(labels[:, k], scores[:, k]) for k in occurring])
    assert results["sound"]["map"] == results["sound"]["value"] == pytest.approx(expected)
    loss = -(np.log(scores) * labels + np.log(1 - scores) * ~labels).sum(axis=1).mean()
    assert results["sound"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_views_change_the_result(root: Path) -> None:
    one, many = (evaluated(small_config("tasks.clip.num_classes=6", *views), root, 1)[0] for views in ((), MANY))
    assert one["picture"] == many["picture"]
    assert all(one[name]["loss"] != many[name]["loss"] for name in ("clip", "sound", "word"))


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_has_the_same_result(root: Path, size: int) -> None:
    """Splits that ranks cannot share evenly, with broken files; 3 ranks of 4 words in minibatches of 2."""
    config = small_config(*MANY)
    alone, bad = evaluated(config, root, 1)
    merged, quarantined = evaluated(config, root, size)
    assert merged.keys() == alone.keys()
    for name, result in alone.items():
        figures = {key: value for key, value in result.items() if isinstance(value, float)}
        assert figures == pytest.approx({key: merged[name][key] for key in figures}, rel=1e-5)
        assert {k: v for k, v in merged[name].items() if k not in figures} == {
            k: v for k, v in result.items() if k not in figures
        }
    assert sorted(quarantined, key=lambda entry: entry.key) == sorted(bad, key=lambda entry: entry.key)


def test_an_example_without_views_counts_nowhere(root: Path) -> None:
    """A minibatch whose files are all broken."""
    config = small_config(*MANY)
    scan = scans(config)["clip"]
    bad_only = replace(scan, examples=scan.examples[2:3])
    requests = split_requests(config, {"clip": bad_only.examples}, 0, 1)
    made = [decoder(config, root).decode(request) for request in requests]
    results, _ = evaluate(lively(config), made, config, SingleProcess())
    assert (results["clip"]["examples"], results["clip"]["skipped"], results["clip"]["value"]) == (0, 1, None)


def test_shares_measure_what_one_process_measures() -> None:
    """As many GPUs as there are, each with every n-th minibatch; contrastive tasks among them are not cut."""
    config = small_config()
    model = fresh(config)[0]
    whole = [minibatch for rank in range(4) for minibatch in ArrayFeed(config, rank, 4).evaluation()]
    together, _ = merged(config, [totals(model, whole, config)])
    apart, bad = merged(config, [totals(model, whole[rank::3], config) for rank in range(3)])
    assert bad == []
    for name, result in together.items():
        assert apart[name]["examples"] == result["examples"] == 10
        assert apart[name]["value"] == result["value"]
        assert apart[name]["loss"] == pytest.approx(result["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("have", "requests", "shares"),
    [({"CPU": 64.0, "GPU": 8.0}, 100, 8), ({"CPU": 4.0, "GPU": 8.0}, 100, 3), ({"CPU": 64.0, "GPU": 8.0}, 2, 2),
     ({"CPU": 1.0, "GPU": 1.0}, 5, 1)],
)  # fmt: skip
def test_every_gpu_measures(have: dict[str, float], requests: int, shares: int) -> None:
    from pipelines.batch.evaluate_job import gpu_shares

    assert gpu_shares(small_config(), have, requests) == shares
