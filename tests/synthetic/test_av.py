"""Toy videos with sound: sound and picture belong together in time and in kind; a seed gives the same bytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipelines import synth
from polyvit.synthetic import AV_SPLITS, encode_video, song
from polyvit.synthetic.av_media import NOTES
from polyvit.synthetic.write import write_synthetic

RATE, FPS = 8000, 16


def heights(clip_THWC: np.ndarray) -> np.ndarray:
    """Where the coloured shape stands, from the bottom, in each frame; NaN where it can hardly be seen."""
    colour_THW = np.ptp(clip_THWC.astype(int), axis=3) > 80
    rows = clip_THWC.shape[1] - 1 - np.arange(clip_THWC.shape[1])
    counts_TH = colour_THW.sum(axis=2)
    with np.errstate(invalid="ignore"):
        return np.where(counts_TH.sum(1) > 20, (counts_TH * rows).sum(1) / counts_TH.sum(1), np.nan)


@pytest.mark.parametrize("kind", range(8))
def test_sound_and_picture_move_together(kind: int) -> None:
    """A higher shape is a higher sound, and both are strongest at the same times."""
    clip, wave = song(np.random.default_rng(kind), kind, (48, 48), FPS, 8.0, RATE)
    assert clip.shape == (8 * FPS, 48, 48, 3)
    assert wave.shape == (8 * RATE,)
    around = np.convolve(wave**2, np.ones(RATE // FPS), "same")  # a frame shows an instant, not a while
    loud, shown = np.sqrt(around[:: RATE // FPS]), np.ptp(clip.astype(int), axis=3).sum((1, 2))
    assert np.corrcoef(loud, shown)[0, 1] > 0.7
    seconds = wave.reshape(8, -1)
    spectra = np.abs(np.fft.rfft(seconds * np.hanning(RATE)))[:, 150:1000]
    lowest = [int(np.flatnonzero(s > 0.15 * s.max())[0]) for s in spectra]
    stands = np.nanmean(heights(clip).reshape(8, FPS), axis=1)
    assert np.corrcoef(lowest, stands)[0, 1] > 0.9
    assert len({round(pitch / 8) for pitch in lowest}) >= NOTES - 2


def test_kinds_differ_in_colour_and_timbre() -> None:
    made = [song(np.random.default_rng(1), kind, (48, 48), FPS, 2.0, RATE) for kind in range(8)]
    colours = np.array([clip[np.ptp(clip.astype(int), axis=3) > 90].mean(0) for clip, _ in made])
    timbres = np.array([np.log1p(np.abs(np.fft.rfft(wave))[:4000].reshape(100, -1).max(1)) for _, wave in made])
    for numbers in (colours, timbres):
        apart = np.linalg.norm(numbers[:, None] - numbers[None], axis=2) + 1e9 * np.eye(8)
        assert apart.min() > 0.5


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_the_same_seed_gives_the_same_bytes(container: str) -> None:
    clip, wave = song(np.random.default_rng(0), 0, (32, 32), 8, 1.0, RATE)
    first, again = (encode_video(clip, 8, wave, RATE, container) for _ in range(2))  # type: ignore[arg-type]
    assert container == "mkv" or first == again  # Matroska's muxer draws an id
    assert len(first) > 1000


def test_the_command_writes_the_sets_with_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train", "5", "--evaluation", "2", "--classes", "2", "--side", "32"]
    assert synth.main([str(tmp_path / "a"), "--av", *small]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir() if path.is_dir()} == set(AV_SPLITS)
    write_synthetic(tmp_path / "b", tasks=["ucf101", "esc50"], train=5, evaluation=2, classes=2, side=32)
    for name in ("ucf101", "esc50"):
        first, again = (
            {p.relative_to(tmp_path / x).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
             for p in sorted((tmp_path / x / name).rglob("*.*"))}
            for x in "ab"
        )  # fmt: skip
        assert first == again
        assert len(first) > 7
    assert synth.main([str(tmp_path / "c"), "--task", "charades", "--train", "0"]) == 2
