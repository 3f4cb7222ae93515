"""The data report's parts: facts of one example, what is said of a task, the page."""

import io
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from kit import task
from PIL import Image
from small import small_config

from polyvit.config import AudioInput, ImageInput, VideoInput
from polyvit.data.index.io import Example, Problem, Scan
from polyvit.reports.inspect.examine import ZERO_DB, MediaInfo, examine, sample_positions
from polyvit.reports.inspect.examine_worker import Examiner
from polyvit.reports.inspect.findings import Finding, find_problems
from polyvit.reports.inspect.page import write_page
from polyvit.reports.inspect.task_report import ExampleReport, TaskReport, distribution, report_task
from polyvit.synthetic.media import encode_mp4

IMAGE, VIDEO = ImageInput(size=(16, 16)), VideoInput(frames=4, size=(16, 16), tubelet_size=(2, 8, 8))
AUDIO = AudioInput(frames=32, mel_bins=16)
NOISE_THWC = np.random.default_rng(1).integers(0, 256, (12, 4, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


def picture(array_HWC: np.ndarray, form: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(array_HWC).save(target, form)
    return target.getvalue()


def sound(waveform_S: np.ndarray, rate: int = 16000) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, waveform_S, rate, format="WAV", subtype="FLOAT")
    return target.getvalue()


# --------------------------------------------------------------------------------------------------- facts


def test_facts_of_a_picture() -> None:
    config = task("imagefolder")
    array_HWC = np.zeros((30, 40, 3), np.uint8)
    array_HWC[0, 0] = (200, 3, 0)
    content = picture(array_HWC)
    info = examine(content, config, IMAGE)
    assert info == MediaInfo(bytes=len(content), form="PNG", width=40, height=30, contrast=200, brightest=200)
    assert not info.flat
    assert examine(array_HWC, config, IMAGE) == replace(info, bytes=None, form="pixels")
    # Colours that do not vary are one colour, however far apart the three numbers are.
    assert examine(picture(np.full((9, 9, 3), (255, 120, 0), np.uint8), "JPEG"), config, IMAGE).flat
    dark = examine(np.random.default_rng(0).integers(0, 16, (9, 9, 3), dtype=np.uint8), config, IMAGE)
    assert dark.flat
    assert dark.contrast is not None
    assert dark.contrast > 8


def test_what_is_broken_has_a_reason_and_what_its_header_told() -> None:
    config = task("imagefolder")
    whole = picture(NOISE_THWC[0], "JPEG")
    cut = examine(whole[: len(whole) * 9 // 10], config, IMAGE)
    assert (cut.width, cut.height, cut.form) == (48, 32, "JPEG")
    assert "Premature end" in cut.reason
    assert not cut.flat
    assert examine(b"<!DOCTYPE html><p>404", config, IMAGE).reason.endswith("(it is a web page)")
    assert "web page" not in examine(b"\0\1\2\3 what", config, IMAGE).reason
    assert examine(b"", config, IMAGE).reason == "image: the file is empty"


def test_facts_of_a_video() -> None:
    config = task("kinetics", modality="video")
    info = examine(encode_mp4(NOISE_THWC, 10, None, 16000), config, VIDEO)
    assert (info.width, info.height, info.frames, info.reason) == (48, 32, 12, "")
    assert info.fps == pytest.approx(10)
    assert info.seconds == pytest.approx(1.2, abs=0.01)
    assert not info.flat
    assert info.still is False
    segment = examine(encode_mp4(NOISE_THWC, 10, None, 16000), config, VIDEO, 0.5, 9.0)
    assert segment.seconds == pytest.approx(0.7, abs=0.01)
    black = examine(encode_mp4(np.zeros_like(NOISE_THWC), 10, None, 16000), config, VIDEO)
    assert black.flat
    still = examine(encode_mp4(NOISE_THWC[:1].repeat(12, axis=0), 10, None, 16000), config, VIDEO)
    assert still.still is True
    assert not still.flat


def test_facts_of_a_recording() -> None:
    config = task("csv", modality="audio")
    tone_S = 0.1 * np.sin(2 * np.pi * 400 * np.arange(32000) / 16000)
    info = examine(sound(np.stack([tone_S, tone_S], axis=1)), config, AUDIO)
    assert (info.seconds, info.sample_rate, info.channels, info.form) == (2.0, 16000, 2, "WAV")
    assert info.level_db == pytest.approx(20 * math.log10(0.1 / math.sqrt(2)), abs=1e-3)
    assert not info.silent
    assert examine(sound(tone_S), config, AUDIO, 0.5, 1.25).seconds == 0.75
    assert examine(sound(tone_S * 0.014), config, AUDIO).silent  # -60.1 dBFS
    assert not examine(sound(tone_S * 0.0142), config, AUDIO).silent  # -59.96 dBFS
    nothing = examine(sound(np.zeros(800)), config, AUDIO)
    assert nothing.level_db == ZERO_DB
    assert nothing.silent
    assert examine(sound(np.zeros(0)), config, AUDIO) == MediaInfo(
        bytes=len(sound(np.zeros(0))), form="WAV", sample_rate=16000, channels=1, reason="audio: no samples"
    )


def test_samples_share_alike_and_follow_the_seed() -> None:
    sizes = {"train": 1000, "validation": 10, "test": 400}
    assert {s: list(p) for s, p in sample_positions({"train": 3, "test": 2}, 5, 1, "t").items()} == {
        "train": [0, 1, 2], "test": [0, 1]
    }  # fmt: skip
    assert sample_positions(sizes, None, 1, "t")["train"] == range(1000)
    drawn = sample_positions(sizes, 100, 1, "t")
    assert {split: len(positions) for split, positions in drawn.items()} == {
        "train": 45,
        "validation": 10,
        "test": 45,
    }
    for split, positions in drawn.items():
        assert list(positions) == sorted(set(positions))
        assert max(positions) < sizes[split]
    assert drawn == sample_positions(sizes, 100, 1, "t")
    assert drawn != sample_positions(sizes, 100, 2, "t")


# ------------------------------------------------------------------------------------------------- the child


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    process = Examiner(small_config(), "image", seconds=30.0)
    yield process
    process.close()


def test_facts_come_from_the_child_as_from_here(examiner: Examiner) -> None:
    config = small_config()
    tone_S = 0.1 * np.sin(np.arange(16000))
    for media in (picture(NOISE_THWC[0]), b"no picture"):
        assert examiner.examine(media, "picture") == examine(media, config.tasks["picture"], config.model.image)
    listener = Examiner(config, "audio", seconds=30.0)
    assert listener.examine(sound(tone_S), "sound") == examine(
        sound(tone_S), config.tasks["sound"], config.model.audio
    )
    assert listener.examine(sound(tone_S), "sound", 0.25, 0.5).seconds == 0.25
    listener.close()
    assert examiner.examine(NOISE_THWC[0], "picture").form == "pixels"


def test_a_file_that_kills_the_decoder_is_named_and_the_next_one_is_looked_at(examiner: Examiner) -> None:
    content = picture(NOISE_THWC[0])
    assert examiner.examine(content, "picture").reason == ""
    os.kill(examiner.pid, signal.SIGSEGV)
    assert examiner.examine(content, "picture") == MediaInfo(
        bytes=len(content), reason="the decoder died on it (SIGSEGV)"
    )
    assert examiner.examine(content, "picture").reason == ""


# ------------------------------------------------------------------------------------------------- findings


def example(key: str, split: str, *labels: int, **more: float) -> Example:
    return Example(key, f"{key}.jpg", labels, split, **more)  # type: ignore[arg-type]


def report(
    examples: list[Example],
    digests: dict[str, str] | None = None,
    info: dict[str, MediaInfo] | None = None,
    problems: tuple[Problem, ...] = (),
    classes: tuple[str, ...] = ("cat", "dog", "hen house"),
    name: str = "pets",
    classes_file: str | None = None,
    **keys: object,
) -> TaskReport:
    """A report of examples whose content is their key unless `digests` says otherwise, and that look sound."""
    keys = {"num_classes": len(classes), "modality": "image", "classes": classes_file, **keys}
    config = task("imagefolder" if keys["modality"] == "image" else "kinetics", **keys)  # type: ignore[arg-type]
    spec = IMAGE if keys["modality"] == "image" else VIDEO
    sound_one = MediaInfo(bytes=9, width=20, height=20, contrast=99, brightest=200)
    examined = [
        ExampleReport(e.key, e.path, e.split, e.labels, ((digests or {}).get(e.key, e.key)).encode(),
             (info or {}).get(e.key, sound_one))
        for e in examples
    ]  # fmt: skip
    return report_task(name, config, spec, "root", Scan(list(examples), list(classes), list(problems)), examined)


def plenty(first: str = "", **keys: object) -> list[Example]:
    """Six training and two held-out examples a class."""
    return [
        example(f"{first}{split}{k}{i}", split, k)
        for split, n in (("train", 6), ("validation", 2))
        for k in range(3)
        for i in range(n)
    ]


def found(*reports: TaskReport) -> dict[str, Finding]:
    findings = find_problems(small_config(), {each.name: each for each in reports})
    order = [finding.severity for finding in findings]
    assert order == sorted(order, key=("error", "warning", "note").index)
    assert len({(f.task, f.kind) for f in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


def test_nothing_is_said_of_good_data() -> None:
    assert found(report(plenty())) == {}


def test_a_leak_between_splits_is_an_error_and_where_it_is_small_a_warning() -> None:
    leak = found(report(plenty(), {"train00": "same", "validation01": "same"}))["leak"]
    assert (leak.severity, leak.count) == ("error", 1)
    assert leak.says == "also in another split, byte for byte: 1 of 6 held-out examples"
    assert leak.examples == ("train: train00.jpg = validation: validation01.jpg",)
    many = [example(f"v{i:03}", "validation", i % 3) for i in range(200)]
    assert found(report([*plenty(), *many], {"train00": "same", "v000": "same"}))["leak"].severity == "warning"


def test_copies_within_a_split_and_under_two_labels() -> None:
    kinds = found(report(plenty(), {"train00": "x", "train01": "x", "train02": "x", "train10": "x"}))
    assert kinds.keys() == {"repeated", "two labels"}
    assert (kinds["repeated"].count, kinds["two labels"].count) == (3, 1)


def test_held_out_examples_that_another_task_trains_on() -> None:
    other = report(plenty("other"), {"othertrain00": "same"}, name="birds")
    kinds = found(report(plenty(), {"validation00": "same"}), other)
    assert kinds.keys() == {"leak to a task"}
    assert kinds["leak to a task"].task == "pets"
    assert kinds["leak to a task"].examples == ("validation00.jpg (trained in birds)",)


def test_labels_against_the_config() -> None:
    kinds = found(report([e for e in plenty() if e.split != "train" or e.labels != (2,)], num_classes=9))
    assert kinds["unseen classes"].severity == "error"
    assert kinds["unseen classes"].examples == ("hen house",)
    assert kinds["empty classes"].count == 6
    listed = found(report(plenty(), num_classes=9, classes_file="names.txt"))["class file"]
    assert listed.says == "names.txt names 3 classes, the config has 9"
    assert listed.do == "Complete the file, or set tasks.pets.num_classes=3."
    kinds = found(report([e for e in plenty() if e.split == "train" or e.labels != (1,)]))
    assert kinds["not evaluated"].examples == ("dog",)
    several = [*plenty(), example("z", "train", 0, 1)]
    assert found(report(several))["multi-label"].severity == "error"
    assert "multi-label" not in found(report(several, loss="sigmoid"))


def test_rare_and_frequent_classes() -> None:
    kinds = found(report([*plenty(), *(example(f"more{i}", "train", 1) for i in range(54))]))
    assert kinds["uneven"].says == "uneven: 'dog' has 60 training examples, the middle class 6"
    assert "83%" in kinds["uneven"].do  # 60 of 72
    few = [e for e in plenty() if e.key not in ("train20", "train21")]
    assert found(report(few))["rare classes"].examples == ("hen house",)


def test_broken_files_are_an_error_where_a_run_would_stop() -> None:
    bad = MediaInfo(reason="image: cut short")
    assert found(report(plenty(), info={"train00": bad}))["broken"].severity == "warning"  # 1 of 24
    kinds = found(report(plenty(), info={f"train0{i}": bad for i in range(3)}))  # 3 of 24
    assert kinds["broken"].severity == "error"
    assert "data.max_bad_fraction=0.1, here it is 0.12" in kinds["broken"].do
    assert kinds["broken"].examples[0] == "train00.jpg: image: cut short"


def test_empty_content() -> None:
    info = {
        "train00": MediaInfo(contrast=3, brightest=200), "train01": MediaInfo(level_db=-60.1),
        "train02": MediaInfo(contrast=99, brightest=200, still=True),
        "train03": MediaInfo(contrast=0, brightest=0, still=True), "train04": MediaInfo(level_db=-59.9),
    }  # fmt: skip
    kinds = found(report(plenty(), info=info))
    assert kinds["one colour"].examples == ("train00.jpg", "train03.jpg")
    assert kinds["silent"].examples == ("train01.jpg",)
    assert kinds["still"].examples == ("train02.jpg",)


def test_what_the_scan_left_out_and_the_class_that_was_meant() -> None:
    problems = (
        Problem("label", "train.csv:3", "unknown label 'Hen_House'"),
        Problem("label", "train.csv:4", "unknown label 'Hen_House'"),
        Problem("missing", "a.jpg", "listed in train.csv:9, not on disk"),
    )
    kinds = found(report(plenty(), problems=problems))
    assert kinds["left out: label"].do.startswith("'Hen_House' (2x) may be class 'hen house'.")
    assert "tasks.pets.classes" in kinds["left out: label"].do
    assert kinds["left out: missing"].count == 1
    assert (
        "may be class"
        not in found(report(plenty(), problems=(Problem("label", "x", "unknown label 'zebra'"),)))[
            "left out: label"
        ].do
    )


def test_pieces_of_one_source_in_two_splits() -> None:
    pieces = [example("f#0", "train", 0, start=0.0, end=2.0), example("f#2", "validation", 0, start=2.0, end=4.0)]
    cut = [replace(each, path="f.wav") for each in pieces]
    kinds = found(report([*plenty(), *cut]))
    assert kinds["shared source"].examples == ("f.wav: train, validation",)
    videos = [
        example(f"{split}/abcdefghijk_00000{i}_00001{i}", split, 0)
        for i, split in enumerate(("train", "validation", "test"))
    ]
    kinds = found(report([*plenty(), *videos], modality="video", eval_split="validation"))
    assert kinds["shared source"].examples == ("abcdefghijk: test, train, validation",)


def test_media_against_the_input_of_the_model() -> None:
    tiny = MediaInfo(width=7, height=90, contrast=99, brightest=200)
    kinds = found(report(plenty(), info={e.key: tiny for e in plenty()}))
    assert kinds["small"].says == "24 of 24 looked at: pictures smaller than half the model's input (16 pixels)"
    large = replace(tiny, width=65, height=65)
    assert "large" in found(report(plenty(), info={e.key: large for e in plenty()}))
    assert found(report(plenty(), info={"train00": large, "train01": large})) == {}  # under a tenth
    clip = MediaInfo(width=20, height=20, fps=10.0, seconds=0.7, frames=70, contrast=99, brightest=200)
    kinds = found(report(plenty(), info={e.key: clip for e in plenty()}, modality="video"))
    assert "shorter than 7 frames (4 at stride 2)" not in str(kinds)  # exactly 7 frames in its segment
    short = replace(clip, seconds=0.6)
    kinds = found(report(plenty(), info={e.key: short for e in plenty()}, modality="video"))
    assert "clips shorter than 7 frames (4 at stride 2)" in kinds["short"].says


def test_counts_and_distributions_as_data() -> None:
    bad = MediaInfo(reason="image: cut short")
    document = report([*plenty(), example("z", "test", 0, 2)], info={"train00": bad}, loss="sigmoid").document()
    assert document["classes"] == {
        "cat": {"train": 6, "validation": 2, "test": 1},
        "dog": {"train": 6, "validation": 2, "test": 0},
        "hen house": {"train": 6, "validation": 2, "test": 1},
    }
    assert (document["train"], document["validation"], document["test"], document["multi_label_examples"]) == (
        18,
        6,
        1,
        1,
    )
    assert document["broken"] == [
        {"key": "train00", "path": "train00.jpg", "split": "train", "reason": "image: cut short"}
    ]
    assert (document["decoded"], document["hashed"]) == (25, 25)
    assert distribution(np.arange(101.0)) == {"min": 0.0, "p5": 5.0, "median": 50.0, "p95": 95.0, "max": 100.0}


# ---------------------------------------------------------------------------------------------------- page


def test_the_page_holds_everything_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    pets = report(plenty(), {"train00": "x", "validation00": "x"}, classes=("<b>cat</b>", "dog", "hen"))
    Image.new("RGB", (30, 20)).save(tmp_path / "pets_sheet.png")
    config, reports = small_config(), {"pets": pets}
    sheets = {"pets": {"pets_sheet.png": "what <it> shows"}}
    files = write_page(config, reports, find_problems(config, reports), sheets, tmp_path, "polyvit inspect 'a b'")
    assert files.keys() == {"report.html", "pets_numbers.png", "pets_sheet.png"}
    page = files["report.html"].read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "what &lt;it&gt; shows" in page
    assert "train00.jpg = validation: validation00.jpg" in page
    assert 'src="http' not in page
    assert "<script" not in page
    assert "<b>cat" not in page
    pixels = np.asarray(Image.open(files["pets_numbers.png"]).convert("RGB"))
    assert pixels.std() > 10
