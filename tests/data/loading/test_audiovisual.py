"""The codec of sequences: one augmentation for all clips, and the released evaluation's pixels."""

from typing import Any

import av_kit
import numpy as np
import pytest
from kit import task

from polyvit.config import AudiovisualTask, SequenceInput, validate_config
from polyvit.data.loading.codecs import audiovisual
from polyvit.data.transforms import mask_bands, resized_crop
from polyvit.errors import UserError
from polyvit.synthetic import encode_video, song

SPEC = SequenceInput(clips=3, frames=4, size=(16, 16), mel_bins=12, spectrogram_frames=16, sample_rate=8000)
CLIP, WAVE = song(np.random.default_rng(1), 2, (32, 48), 8, 4.0, 8000)
VIDEO = encode_video(CLIP, 8, WAVE, 8000)
STILL = encode_video(np.repeat(CLIP[:1], 32, axis=0), 8, WAVE, 8000)


def av_task(augment: dict[str, Any] | None = None, **keys: Any) -> AudiovisualTask:
    made = task(
        "kinetics",
        3,
        "audiovisual",
        augment={"spacing": "contiguous", "clip_seconds": 1, **(augment or {})},
        **keys,
    )
    assert isinstance(made, AudiovisualTask)
    return made


def trained(seed: int = 0, data: bytes = VIDEO, **keys: Any) -> dict[str, np.ndarray]:
    return audiovisual.training_arrays(data, av_task(**keys), SPEC, np.random.default_rng(seed))


@pytest.mark.parametrize("streams", ["both", "visual", "audio"])
def test_the_arrays_are_those_of_the_input_section(streams: Any) -> None:
    for crops in (1, 3):
        made = av_task(streams=streams, eval_crops=crops)
        assert made.eval_views == crops
        for views, arrays in (
            (1, audiovisual.training_arrays(VIDEO, made, SPEC, np.random.default_rng(0))),
            (crops, audiovisual.evaluation_arrays(VIDEO, made, SPEC)),
        ):
            for name, spec in SPEC.arrays.items():
                assert arrays[name].shape == (views, *spec.shape)
                assert arrays[name].dtype == spec.dtype
            assert arrays["clips"].any() == (streams != "audio")
            assert arrays["spectrograms"].any() == (streams != "visual")


def test_the_same_generator_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = trained(3), trained(3), trained(4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_one_scale_crop_and_flip_for_all_clips() -> None:
    """Of a still picture all frames of all clips are the same, up to what H.264 makes of them."""
    seen = set()
    for seed in range(12):
        frames = trained(seed, STILL)["clips"].reshape(-1, 16, 16, 3).astype(int)
        assert np.abs(frames - frames[0]).max() <= 20
        assert np.abs(frames - frames[0]).mean() < 2.5
        shifted = np.abs(frames[0][1:] - frames[0][:-1])  # a crop one pixel further
        assert shifted.max() > 40
        assert shifted.mean() > 3.5
        seen.add(frames[0].tobytes())
    assert len(seen) > 8


def test_one_pair_of_masks_for_all_clips() -> None:
    spectrograms = np.ones((5, 40, 30), np.float32)
    widths = []
    for seed in range(300):
        masked = spectrograms.copy()
        mask_bands(masked, 6, 4, -3.0, np.random.default_rng(seed))
        assert (masked == masked[0]).all()
        assert set(np.unique(masked)) <= {1.0, -3.0}
        widths.append(((masked[0] == -3).all(0).sum(), (masked[0] == -3).all(1).sum()))
    assert {w[0] for w in widths} == {0, 1, 2, 3}
    assert {w[1] for w in widths} == {0, 1, 2, 3, 4, 5}


def test_random_crops_reach_every_place() -> None:
    """The release's never take the last row and column; ours may."""
    frame = np.arange(32 * 48, dtype=np.int64).reshape(32, 48, 1)
    assert resized_crop(frame, (32, 48), (16, 32), (16, 16))[-1, -1] == frame[-1, -1]
    flipped = resized_crop(frame, (32, 48), (0, 0), (16, 16), flip=True)
    assert (flipped == resized_crop(frame, (32, 48), (0, 0), (16, 16))[:, ::-1]).all()


def test_bilinear_is_resizing_and_then_cutting() -> None:
    import cv2

    picture = CLIP[3]
    wanted = cv2.resize(picture, (36, 24))[5:21, 9:25].astype(int)
    found = resized_crop(picture, (24, 36), (5, 9), (16, 16), smooth=True).astype(int)
    assert np.abs(found - wanted).max() <= 3


def test_the_released_evaluation_crops() -> None:
    """Nearest, three crops along the longer side: equal pixels."""
    kit = av_kit.arrays("visual_pipeline")
    frames, numbers = kit["in/frames"], kit["out/frame_index"]
    side = kit["out/crop0"].shape[-1]
    size = (side, side)
    height, width = frames.shape[1:3]
    resized = audiovisual._resized(height, width, side, size)
    for number, place in enumerate((0.0, 0.5, 1.0)):
        corner = audiovisual._corner(resized, size, place)
        cut = np.stack([[resized_crop(frames[i], resized, corner, size) for i in row] for row in numbers])
        wanted = np.rint((kit[f"out/crop{number}"] * 0.225 + 0.45) * 255).transpose(0, 2, 3, 4, 1)
        assert (cut == wanted).all()


def test_the_words_of_an_exported_model_name_what_counts() -> None:
    said = audiovisual.preparation(av_task(), SPEC)
    for words in (
        "3 clips of 1 s",
        "one after the other",
        "4 frames",
        "16 x 16",
        "8000 Hz",
        "12 HTK mel",
        "nearest",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"clip_seconds": 0.001}, "spectrogram_frames=128 needs at least as many"),
        ({"resize_sides": [160, 128]}, "give the smaller number first"),
        ({"clip_seconds": 0}, "clip_seconds"),
    ],
)
def test_contradictions_are_named(augment: dict[str, Any], message: str) -> None:
    one = {"modality": "audiovisual", "layout": "kinetics", "num_classes": 5, "steps": 4, "batch": 4}
    with pytest.raises(UserError) as caught:
        validate_config({"model": {"kind": "avbert"}, "tasks": {"one": {**one, "augment": augment}}})
    assert message in str(caught.value)
