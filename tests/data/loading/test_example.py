"""Media to tokens, one call for every modality."""

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from arrays_kit import example_tokens, token_dtype, token_shape
from kit import DATA_DIR, needs_data
from pydantic import TypeAdapter

from polyvit.config import AudioInput, ImageInput, InputSection, TaskConfig, VideoInput
from polyvit.data.decode.containers import bad_media
from polyvit.data.loading.example import example_arrays
from polyvit.data.transforms.augment import example_rng
from polyvit.data.transforms.patchify import unpatchify_image
from polyvit.errors import BadMedia

IMAGE = ImageInput(size=(32, 32), patch_size=(8, 8))
VIDEO = VideoInput(frames=4, size=(32, 32), tubelet_size=(2, 16, 16))
AUDIO = AudioInput(frames=64, mel_bins=32, mean=-4, std=3)


def task(modality: str, **augment: Any) -> TaskConfig:
    if modality == "audio":
        # The default band of up to 48 bins would often blank these spectrograms of 32.
        augment = {"freq_mask_bins": 8, **augment}
    fields = {"modality": modality, "layout": "csv", "num_classes": 2, "steps": 1, "batch": 1, "augment": augment}
    return TypeAdapter(TaskConfig).validate_python(fields)


@needs_data
@pytest.mark.parametrize(
    ("modality", "spec", "pattern"),
    [
        ("image", IMAGE, "imagenet/train/*/*.JPEG"),
        ("image", ImageInput(size=(32, 32), patch_size=(8, 8), stride=(4, 4)), "pets/images/*.jpg"),
        ("video", VIDEO, "kinetics400/train/*/*.mp4"),
        ("audio", AUDIO, "audioset/audio/*/*.flac"),
        ("audio", AUDIO, "vggsound/audio/*.mp4"),
    ],
)
def test_real_files_become_tokens(modality: str, spec: InputSection, pattern: str) -> None:
    changed = []
    for path in sorted(DATA_DIR.glob(pattern))[:3]:
        data = path.read_bytes()
        first, again, other = (
            example_tokens(data, task(modality), spec, example_rng(0, "t", epoch, path.name))
            for epoch in (0, 0, 1)
        )
        evaluation = example_tokens(data, task(modality), spec, None)
        for tokens_NP in (first, other, evaluation):
            assert tokens_NP.shape == token_shape(spec)
            assert tokens_NP.dtype == token_dtype(task(modality).modality)
            assert np.isfinite(tokens_NP).all()
        assert np.array_equal(first, again)
        changed.append(not np.array_equal(first, other))
    assert (any if modality == "audio" else all)(changed)  # silence stays silence


def test_pixels_need_no_decoding() -> None:
    row_HWC = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tokens_NP = example_tokens(row_HWC, task("image"), IMAGE, None)
    assert np.array_equal(unpatchify_image(tokens_NP, (32, 32), (8, 8)), row_HWC)
    with pytest.raises(BadMedia, match="not uint8"):
        example_tokens(row_HWC.astype(np.float32), task("image"), IMAGE, None)


@needs_data
def test_views_and_crops_are_other_windows() -> None:
    spec, ends, sides = task("video", frame_stride=1), [], []
    for path in sorted(DATA_DIR.glob("kinetics400/train/*/*.mp4"))[:3]:  # one may be short, square or at rest
        data = path.read_bytes()
        ends.append([example_tokens(data, spec, VIDEO, None, view=(i, 2)) for i in range(2)])
        sides.append([example_tokens(data, spec, VIDEO, None, crop=where) for where in ("left", "right")])
    assert not all(np.array_equal(*pair) for pair in ends)
    assert not all(np.array_equal(*pair) for pair in sides)


@pytest.mark.parametrize("train", [True, False])
def test_a_recording_is_cut_to_its_segment(train: bool) -> None:
    """The second second is a tone of its own."""
    times_S = np.arange(16000) / 16000
    tones = [0.5 * np.sin(2 * np.pi * hertz * times_S) for hertz in (300, 3000)]

    def wav(waveform_S: np.ndarray) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, waveform_S, 16000, format="WAV")
        return file.getvalue()

    rng = example_rng(0, "t", 0, "a") if train else None
    cut = example_arrays(wav(np.concatenate(tones)), task("audio"), AUDIO, rng, 1.0, 2.0)
    rng = example_rng(0, "t", 0, "a") if train else None
    alone = example_arrays(wav(tones[1]), task("audio"), AUDIO, rng)
    assert np.array_equal(cut["tokens"], alone["tokens"])


@pytest.mark.parametrize(("modality", "spec"), [("image", IMAGE), ("video", VIDEO), ("audio", AUDIO)])
def test_rubbish_is_bad_media_with_a_stable_reason(modality: str, spec: InputSection) -> None:
    rng = np.random.default_rng(0)
    signatures = (
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"fLaC",
        b"\0\0\0\x18ftypmp42",
    )
    for signature in signatures:
        data = signature + rng.bytes(500)
        reasons = []
        for _ in range(2):
            with pytest.raises(BadMedia) as caught:
                example_tokens(data, task(modality), spec, None)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]
        assert len(reasons[0]) <= 160


def test_a_mismatch_of_task_and_input_is_not_blamed_on_the_media() -> None:
    with pytest.raises(TypeError, match="modality audio"):
        example_tokens(b"", task("audio"), IMAGE, None)
    with pytest.raises(TypeError, match="this task is video"):
        example_tokens(np.zeros((4, 4, 3), np.uint8), task("video"), VIDEO, None)


def test_foreign_errors_become_bad_media_but_memory_errors_and_interrupts_pass() -> None:
    with pytest.raises(BadMedia, match="image: KeyError: 'x'"), bad_media("image"):
        raise KeyError("x")
    for error in (MemoryError, KeyboardInterrupt):
        with pytest.raises(error), bad_media("image"):
            raise error


@pytest.mark.parametrize("codec", ["image", "video", "audio"])
def test_a_decoding_process_loads_no_torch(codec: str) -> None:
    script = (
        f"import sys; import polyvit.data.loading.isolated, polyvit.data.loading.codecs.{codec};"
        "print(*{'torch', 'torchaudio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
