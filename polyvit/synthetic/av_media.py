"""Toy videos whose sound and picture belong together, in kind and in time.

In: a kind, a length and a `numpy` generator. Out: clip_THWC, uint8, and its wave [S] in [-1, 1]; or file bytes.

A video is a song of one note a second. The kind gives the shape, its colour and that of the light it stands in,
and the resonance of its sound: which of the note's harmonics are loud. The note gives how high the shape stands
and how high the sound is. At each beat the shape grows and brightens and the sound is struck, both fading at the
same rate. From second to second the note moves by the same number of steps, so that what is missing of a second
can be guessed from the other stream, and from the seconds around it. All else is random: where the shape stands
from side to side, its size, the ground's clouds, the beat's phase, the loudness. Kinds differ by much and all
else by little, so that minutes of pre-training meet them before what tells one video from another. Shapes: T
frames, H W C.
"""

import io
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np

from polyvit.synthetic.classes import SONGS
from polyvit.synthetic.media import (
    X264_REPEATABLE,
    Floats,
    Generator,
    Pixels,
    blend,
    colour,
    grid,
    ground,
    shape_mask,
    to_pixels,
)

NOTES = 8
"""From the lowest to the highest; the step from second to second is odd, so that eight seconds have them all."""
LOWEST_HZ = 220.0
PER_OCTAVE = 4
"""Notes of an octave: the highest is 740 Hz."""
RESONANCE_WIDTH = 0.35
"""Of a kind's resonance: the logarithm of how far off a harmonic is 1 / e as loud."""
FUNDAMENTAL = 0.25
"""How loud the note itself is at least, of any kind."""
BEATS = 2
"""A second."""
FADE_S = 0.18
"""After which a beat has faded to 1 / e."""
Container = Literal["mp4", "avi", "mkv"]


def song(
    rng: Generator, kind: int, size: tuple[int, int], fps: int, seconds: float, rate: int
) -> tuple[Pixels, Floats]:
    """(clip_THWC, wave [S]) of a video of one kind.

    rng: for all that does not follow from the kind. kind: a row of `SONGS`. size: (height, width) in pixels. fps:
    frames a second. rate: samples a second.
    """
    first, step, phase = int(rng.integers(NOTES)), int(rng.choice((1, 3, 5, 7))), rng.random() / BEATS
    frame_times = np.arange(int(seconds * fps)) / fps
    sample_times = np.arange(int(seconds * rate)) / rate
    clip = _picture(rng, kind, size, _notes(frame_times, first, step), _beat(frame_times, phase))
    return clip, _sound(rng, kind, _notes(sample_times, first, step), _beat(sample_times, phase), rate)


def _notes(times: Floats, first: int, step: int) -> Floats:
    """The note at each time, 0 to NOTES - 1."""
    return np.asarray((first + step * np.floor(times)) % NOTES)


def _beat(times: Floats, phase: float) -> Floats:
    """1 at each beat, fading to 0 until the next."""
    return np.asarray(np.exp(-((times + phase) % (1 / BEATS)) / FADE_S))


def _picture(rng: Generator, kind: int, size: tuple[int, int], notes: Floats, beat: Floats) -> Pixels:
    shape, hue, _ = SONGS[kind]
    y, x = grid(*size)
    back = ground(rng, *size, hue=hue, saturation=0.8, value=0.35)
    hue, at_x, half = hue + rng.normal(0, 0.02), rng.uniform(-0.2, 0.2), rng.uniform(0.5, 0.6)
    clip = np.empty((len(notes), *size, 3), np.uint8)
    for target, note, strength in zip(clip, notes, beat, strict=True):
        at_y = 0.35 - 0.7 * note / (NOTES - 1)
        mask = shape_mask(shape, y - at_y, x - at_x, half * (0.85 + 0.3 * strength))
        target[:] = to_pixels(blend(back, colour(hue, 0.8, 0.6 + 0.4 * strength), mask), rng, 0.015)
    return clip


def _sound(rng: Generator, kind: int, notes: Floats, beat: Floats, rate: int) -> Floats:
    hertz = LOWEST_HZ * 2 ** (notes / PER_OCTAVE) * rng.uniform(0.98, 1.02)
    turns = 2 * np.pi * np.cumsum(hertz) / rate
    resonance, wave, power = SONGS[kind][2], np.zeros(len(notes)), np.zeros(len(notes))
    for harmonic in range(1, int(rate / 2 / LOWEST_HZ)):
        loudness = np.exp(-((np.log(harmonic * hertz / resonance) / RESONANCE_WIDTH) ** 2))
        loudness = (loudness + FUNDAMENTAL * (harmonic == 1)) * (harmonic * hertz < 0.47 * rate)
        wave, power = wave + loudness * np.sin(harmonic * turns), power + loudness**2
    wave = wave / np.sqrt(power)  # every note is as loud
    wave = wave * beat + 0.01 * rng.standard_normal(len(notes))
    return np.asarray(wave * (rng.uniform(0.5, 0.9) / float(np.abs(wave).max())))


def encode_video(
    clip_THWC: Pixels | None,
    fps: int,
    wave: Floats | None,
    rate: int,
    container: Container = "mp4",
    sound_delay_s: float = 0.0,
    frame_times_s: Floats | None = None,
) -> bytes:
    """The bytes of a video file: H.264 and AAC in MP4 and MKV, MPEG-4 and PCM in AVI, on one thread each.

    In an AVI the delay of MP3's encoder would shift the sound, and nothing in the file would say so.
    clip_THWC: uint8 frames with even sides; None: sound alone. fps: frames a second. wave: float [S] in [-1, 1],
    or None. rate: of the wave, in Hz. sound_delay_s: by how much the sound starts later than the picture.
    frame_times_s: when each frame is shown, where that is not even.
    """
    out = io.BytesIO()
    form = {"mkv": "matroska"}.get(container, container)
    with av.open(out, "w", format=form, options={"fflags": "+bitexact"}) as box:
        video: Any = None
        audio: Any = None
        if clip_THWC is not None:
            if container == "avi":
                video = box.add_stream("mpeg4", rate=fps)
                video.bit_rate = 400_000
            else:
                options = {"crf": "20", "preset": "veryfast", "x264-params": X264_REPEATABLE}
                video = box.add_stream("libx264", rate=fps, options=options)
            video.height, video.width, video.pix_fmt = *clip_THWC.shape[1:3], "yuv420p"
            video.thread_count = 1
            if frame_times_s is not None:
                video.codec_context.time_base = Fraction(1, 1000)
        if wave is not None:
            quick = {} if container == "avi" else {"aac_coder": "fast"}
            audio = box.add_stream(
                "pcm_s16le" if container == "avi" else "aac", rate=rate, layout="mono", options=quick
            )
            if container != "avi":
                audio.bit_rate = 48_000
        packets = [
            *_video_packets(video, clip_THWC, frame_times_s),
            *_sound_packets(audio, wave, rate, sound_delay_s),
        ]
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            box.mux(packet)
    return out.getvalue()


def _video_packets(stream: Any, clip_THWC: Pixels | None, times_s: Floats | None) -> list[Any]:
    packets = []
    for number, picture in enumerate(clip_THWC if clip_THWC is not None else ()):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if times_s is not None:
            frame.pts, frame.time_base = round(1000 * times_s[number]), Fraction(1, 1000)
        packets += stream.encode(frame)
    return packets + (stream.encode() if stream else [])


def _sound_packets(stream: Any, wave: Floats | None, rate: int, delay_s: float) -> list[Any]:
    packets, step = [], 1024  # samples of one AAC frame
    for start in range(0, 0 if wave is None else len(wave), step):
        samples = np.asarray(wave)[None, start : start + step].astype(np.float32)
        form = stream.codec_context.format.name
        if form == "s16":
            samples = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=form, layout="mono")
        frame.sample_rate, frame.pts = rate, start + round(delay_s * rate)
        frame.time_base = Fraction(1, rate)
        packets += stream.encode(frame)
    return packets + (stream.encode() if stream else [])
