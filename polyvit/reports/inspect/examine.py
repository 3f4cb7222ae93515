"""What one example is: what its header and its decoded media tell, and what is wrong with it.

In: an example's media, as `data.source.load` gives them, and its task. Out: `MediaInfo`. Called in
a child process (`examine_worker.py`), because media may be hostile; it decodes with the functions of training.
Which examples are looked at: `sample_positions`.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyvit.config import AudioInput, ImageTask, ModelInput, TaskConfig, VideoInput, VideoTask
from polyvit.data.loading import Media
from polyvit.data.transforms import example_rng
from polyvit.errors import BadMedia

SILENT_DB = -60.0
"""A recording whose RMS is below this is silent: a thousandth of full scale, under a quiet room's noise."""
ZERO_DB = -200.0
"""Stands for the level of digital zero."""
FLAT = 8
"""A picture shows nothing where each colour channel spans no more levels than this: JPEG and H.264 turn one
colour into a few neighbouring ones."""
STILL = 1e-3
"""Share of a clip's pixels that differ from its first frame, below which nothing moves: 13 x 13 of 420 x 420."""
BLACK = 16
"""No pixel of a black picture or video is as bright as this; video black is 16 in limited range."""
_PAGE = (b"<!doctype html", b"<html", b"<?xml")  # what a failed download leaves under a media file's name
CLIP_FRAMES = 16
"""Frames of a video, spread over its length, that are decoded."""


@dataclass(frozen=True)
class MediaInfo:
    """One example; None where it has no such thing or it is not known.

    form: file format or codec. seconds: of the example's own segment. fps: frames a second; frames: of the whole
    file. sample_rate: Hz. level_db: RMS in dBFS, ZERO_DB for digital zero. contrast: largest difference within a
    colour, of 255. brightest: of 255. still: every frame of the video is the same. reason: why it cannot be
    used; "" where it can.
    """

    bytes: int | None = None
    form: str | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    fps: float | None = None
    frames: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    level_db: float | None = None
    contrast: int | None = None
    brightest: int | None = None
    still: bool | None = None
    reason: str = ""

    @property
    def silent(self) -> bool:
        """Of a recording: nothing is to be heard."""
        return self.level_db is not None and self.level_db < SILENT_DB

    @property
    def flat(self) -> bool:
        """Of a picture or video: one colour, or black."""
        return self.contrast is not None and (self.contrast <= FLAT or (self.brightest or 0) < BLACK)

    def document(self) -> dict[str, Any]:
        """What is known, as data."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}


def examine(
    media: Media, task: TaskConfig, spec: ModelInput, start_s: float = 0.0, end_s: float = -1.0
) -> MediaInfo:
    """What is known of one example. Never raises for what is in the media.

    media: encoded bytes, or an image's pixels uint8 [H, W, 3]. task, spec: its task, and the model's input for it.
    start_s, end_s: the example's segment in seconds; end_s < 0: to the end (see `example_tokens`).

    Raises TypeError where task, spec and media are of different modalities.
    """
    known: dict[str, Any] = {}
    try:
        if isinstance(task, ImageTask):
            _examine_image(media, known)
        elif isinstance(media, np.ndarray):
            raise TypeError(f"pixels without a file are for image tasks; this one is {task.modality}")
        elif isinstance(task, VideoTask) and isinstance(spec, VideoInput):
            _examine_video(media, known, spec.frames, task.augment.frame_stride, (start_s, end_s))
        elif isinstance(spec, AudioInput):
            _examine_audio(media, known, spec.sample_rate, (start_s, end_s))
        else:
            raise TypeError(f"a task of modality {task.modality} cannot take a {type(spec).__name__}")
    except BadMedia as error:
        page = isinstance(media, bytes) and media[:64].lstrip().lower().startswith(_PAGE)
        known["reason"] = error.reason + (" (it is a web page)" if page else "")
    except MemoryError:
        known["reason"] = "decoding needs too much memory"
    return MediaInfo(bytes=len(media) if isinstance(media, bytes) else None, **known)


# Each fills `known` as far as it comes: a header may tell what the media behind it no longer hold. What a header
# that cannot be read does not tell, the decoder names.


def _examine_image(media: Media, known: dict[str, Any]) -> None:
    if isinstance(media, np.ndarray):
        image_HWC = media
        known.update(form="pixels", height=media.shape[0], width=media.shape[1])
    else:
        from PIL import Image

        from polyvit.data.decode import decode_image  # start-up: only this decoder

        with contextlib.suppress(Exception), Image.open(io.BytesIO(media)) as picture:
            known.update(form=picture.format, width=picture.width, height=picture.height)
        image_HWC = decode_image(media)
    known.update(contrast=_contrast(image_HWC), brightest=int(image_HWC.max()))


def _examine_video(
    media: bytes, known: dict[str, Any], count: int, stride: int, segment_s: tuple[float, float]
) -> None:
    from polyvit.data.decode import read_clip  # start-up: only this decoder

    with contextlib.suppress(Exception):
        _read_video_header(media, known, segment_s)
    count = min(CLIP_FRAMES, count)
    if known.get("seconds") and known.get("fps"):
        stride = max(1, int(known["seconds"] * known["fps"]) // count)
    clip_THWC = read_clip(media, count, stride, None, *segment_s)
    known.update(contrast=_contrast(clip_THWC), brightest=int(clip_THWC.max()))
    known["still"] = known.get("frames", 0) > 1 and _moving(clip_THWC) < STILL


def _read_video_header(media: bytes, known: dict[str, Any], segment_s: tuple[float, float]) -> None:
    import av

    with av.open(io.BytesIO(media), "r") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        known.update(form=context.name, width=context.width, height=context.height)
        seconds = container.duration / av.time_base if container.duration else None
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        if seconds is not None:
            known["seconds"] = _length(seconds, segment_s)
        if stream.average_rate:
            known["fps"] = float(stream.average_rate)
        if stream.frames or (seconds and stream.average_rate):
            known["frames"] = stream.frames or round((seconds or 0.0) * known["fps"])


def _examine_audio(media: bytes, known: dict[str, Any], sample_rate: int, segment_s: tuple[float, float]) -> None:
    from polyvit.data.decode import decode_waveform  # start-up: only this decoder

    with contextlib.suppress(Exception):
        _read_audio_header(media, known)
    waveform_S = decode_waveform(media, sample_rate, *segment_s)
    power = float(np.mean(np.square(waveform_S, dtype=np.float64)))
    level_db = 10 * math.log10(power) if power > 10 ** (ZERO_DB / 10) else ZERO_DB
    known.update(seconds=len(waveform_S) / sample_rate, level_db=level_db)


def _read_audio_header(media: bytes, known: dict[str, Any]) -> None:
    import av
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(media))
        known.update(form=info.format, sample_rate=info.samplerate, channels=info.channels)
    except soundfile.LibsndfileError:
        with av.open(io.BytesIO(media), "r") as container:
            context = container.streams.audio[0].codec_context
            known.update(form=context.name, sample_rate=context.sample_rate, channels=context.channels)


def _length(seconds: float, segment_s: tuple[float, float]) -> float:
    """Of a segment of something that lasts `seconds`."""
    start_s, end_s = segment_s
    return max(0.0, (min(end_s, seconds) if end_s >= 0 else seconds) - start_s)


def _moving(clip_THWC: np.ndarray) -> float:
    """The largest share of pixels that differ from the first frame, by more than coding makes them differ."""
    first_HWC = clip_THWC[0].astype(np.int16)
    return max(float(np.mean(np.abs(frame_HWC - first_HWC) > FLAT)) for frame_HWC in clip_THWC)


def _contrast(pixels: np.ndarray) -> int:
    """Largest range of one colour, over all pixels of all frames. pixels: [..., 3]."""
    axes = tuple(range(pixels.ndim - 1))
    return int(np.max(np.ptp(pixels, axis=axes)))


def sample_positions(sizes: dict[str, int], most: int | None, seed: int, name: str) -> dict[str, Sequence[int]]:
    """Which examples of each split are decoded: ascending positions, at most `most` over all splits; None: all.

    Splits share alike, and what a small one leaves goes to the others. The same for the same seed and task.
    """
    if most is None or sum(sizes.values()) <= most:
        return {split: range(size) for split, size in sizes.items()}
    shares: dict[str, int] = {}
    left = most
    for i, split in enumerate(sorted(sizes, key=lambda split: sizes[split])):
        shares[split] = min(sizes[split], left // (len(sizes) - i))
        left -= shares[split]
    drawn = {}
    for split, size in sizes.items():
        rng = example_rng(seed, name, 0, f"inspect {split}")
        drawn[split] = np.sort(rng.choice(size, shares[split], replace=False)).tolist()
    return drawn
