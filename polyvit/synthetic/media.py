"""Toy pictures, clips and sounds that a tiny model can tell apart: content by class, and their file bytes.

In: what to draw and a `numpy` generator. Out: uint8 pictures_HWC and clips_THWC, float sounds in [-1, 1] of
shape (samples) or (samples, channels), and encoded bytes. Position, scale, phase, colour and noise vary
inside a class. All is a pure function of the generator's state, and encoders run on one thread: the same seed
gives the same bytes. `polyvit.synthetic.layouts` decides the classes and the files.
Coordinates y, x run from -1 to 1; hues, phases, colour parts from 0 to 1; frequencies are Hz, times seconds.
Shapes: T frames, H W C.
"""

import colorsys
import io
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

Generator = np.random.Generator
Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "bar", "crescent")
TEXTURES = ("plain", "stripes", "checks", "dots")
TERRAINS = ("rings", "checks", "dots", "terraces", "blocks", "dunes", "crossing", "lane")
MOTIONS = ("up", "down", "grow", "shrink", "sideways", "spin", "bounce", "roll", "swing")
SOUNDS = ("tone", "chirp", "noise", "pulse", "siren", "hum", "thump", "cricket")

SOFT_EDGE = 0.06
"""Width of a drawn edge: about two pixels of a 64-pixel picture, so that shapes do not flicker."""

X264_REPEATABLE = "mbtree=0:rc-lookahead=0:sync-lookahead=0:b-adapt=0:scenecut=0:weightp=0:weightb=0:bframes=2"
"""Without lookahead: with it x264 wrote other bytes in about one of forty encodings of clips this small, even on
one thread (libx264 of PyAV 18.1, x86-64; the pictures differ, so it is not the container)."""


# ------------------------------------------------------------------------------------------------- drawing


def grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Pixel centres y_HW, x_HW, float32: -1 to 1 over the shorter side, more over the longer."""
    unit = min(height, width)
    y = (np.arange(height) + 0.5 - height / 2) * 2 / unit
    x = (np.arange(width) + 0.5 - width / 2) * 2 / unit
    ys, xs = np.meshgrid(y.astype(np.float32), x.astype(np.float32), indexing="ij")
    return ys, xs


def colour(hue: float, saturation: float, value: float) -> Floats:
    """RGB as float32 [3] in [0, 1]; the hue wraps around at 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)), np.float32)


def shape_mask(kind: str, y: Floats, x: Floats, size: float, angle: float = 0.0) -> Floats:
    """Coverage mask_HW in [0, 1] of a shape around the origin.

    kind: one of `SHAPES`. y, x: coordinates_HW. size: half of the shape's width. angle: its turn in radians.
    """
    turn_y, turn_x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    radius, a, b = np.hypot(y, x), np.abs(turn_y), np.abs(turn_x)
    outside = {
        "circle": lambda: radius - size,
        "square": lambda: np.maximum(a, b) - 0.86 * size,
        "triangle": lambda: np.maximum(0.5 * turn_y + 0.87 * b, -turn_y) - 0.6 * size,
        "cross": lambda: np.minimum(np.maximum(a - size, b - 0.3 * size), np.maximum(b - size, a - 0.3 * size)),
        "ring": lambda: np.abs(radius - 0.75 * size) - 0.22 * size,
        "diamond": lambda: 0.8 * (a + b) - 0.85 * size,
        "bar": lambda: np.maximum(a - 0.3 * size, b - 1.1 * size),
        "crescent": lambda: np.maximum(radius - size, 0.75 * size - np.hypot(turn_y, turn_x - 0.55 * size)),
    }
    return np.clip(0.5 - outside[kind]() / SOFT_EDGE, 0, 1)


def texture(kind: str, y: Floats, x: Floats, period: float, angle: float, phase: float) -> Floats:
    """A pattern_HW in [0, 1].

    kind: one of `TEXTURES`. y, x: coordinates_HW. period: in units of the coordinates. angle: its turn in radians.
    phase: its shift in periods.
    """
    if kind == "plain":
        return np.ones_like(y)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + phase
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + phase
    wave_u, wave_v = np.sin(2 * np.pi * u), np.sin(2 * np.pi * v)
    if kind == "stripes":
        return 0.5 + 0.5 * np.tanh(4 * wave_u)
    if kind == "checks":
        return 0.5 + 0.5 * np.tanh(6 * wave_u * wave_v)
    return np.clip(2 * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)) - 0.8, 0, 1)


def soft_noise(rng: Generator, height: int, width: int, cells: int) -> Floats:
    """Smooth noise_HW, float32 in about [0, 1]: `cells` x `cells` random values, enlarged."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32), mode="F")
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def to_pixels(picture: Floats, rng: Generator, noise: float = 0.03) -> Pixels:
    """A picture of any shape in [0, 1] to uint8, after adding Gaussian noise of that standard deviation."""
    noisy = picture + noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def blend(under: Floats, over: Floats, mask_HW: Floats) -> Floats:
    """`over` (a colour [3] or a picture_HWC) on the picture_HWC `under` where the mask is 1."""
    return under + (over - under) * mask_HW[..., None]


def ground(rng: Generator, height: int, width: int, hue: float, saturation: float, value: float) -> Floats:
    """A cloudy picture_HWC of about one colour.

    rng: for the clouds. height, width: pixels. hue, saturation, value: of the colour, 0 to 1.
    """
    clouds = soft_noise(rng, height, width, 6) - 0.5
    return colour(hue, saturation, value) * (1 + 0.35 * clouds[..., None])


# ------------------------------------------------------------------------------------------------ pictures


def textured_shape(rng: Generator, size: tuple[int, int], shape: str, fill: str, hue: float) -> Pixels:
    """A picture_HWC, uint8, of a shape with a pattern inside, somewhere on a grey cloudy ground.

    rng: for place, size and noise. size: (height, width) in pixels. shape: one of `SHAPES`. fill: one of
    `TEXTURES`. hue: of the shape, 0 to 1.
    """
    y, x = grid(*size)
    picture = ground(rng, *size, hue=rng.random(), saturation=0.12, value=rng.uniform(0.25, 0.6))
    dy, dx, half = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.5, 0.75)
    mask = shape_mask(shape, y - dy, x - dx, half, rng.uniform(-0.3, 0.3))
    pattern = texture(fill, y - dy, x - dx, rng.uniform(0.24, 0.36), rng.uniform(0, np.pi), rng.random())
    hue += rng.normal(0, 0.03)
    light, dark = colour(hue, 0.75, rng.uniform(0.8, 1)), colour(hue, 0.9, rng.uniform(0.3, 0.45))
    return to_pixels(blend(picture, blend(np.broadcast_to(dark, picture.shape), light, pattern), mask), rng)


def small_pattern(rng: Generator, blobs: bool, angle: float, hue: float, side: int = 32) -> Pixels:
    """A picture_HWC, uint8: a grating of two colours, or soft blobs.

    rng: for phase, period and noise. blobs: whether blobs are drawn. angle: of the grating, in radians. hue: of
    the lighter colour, 0 to 1. side: height and width in pixels.
    """
    y, x = grid(side, side)
    turn, phase, period = angle + rng.normal(0, 0.08), rng.random(), rng.uniform(0.5, 0.7)
    if blobs:
        pattern = np.zeros_like(y)
        for cy, cx, half in zip(
            rng.uniform(-0.8, 0.8, 4), rng.uniform(-0.8, 0.8, 4), rng.uniform(0.2, 0.3, 4), strict=True
        ):
            pattern = np.maximum(pattern, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * half**2)))
    else:
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * ((np.cos(turn) * x + np.sin(turn) * y) / period + phase))
    hue += rng.normal(0, 0.03)
    dark = colour(hue + 0.08, 0.7, rng.uniform(0.15, 0.3))
    picture = blend(np.broadcast_to(dark, (side, side, 3)), colour(hue, 0.65, rng.uniform(0.85, 1)), pattern)
    return to_pixels(picture, rng, 0.04)


def pet_face(rng: Generator, size: tuple[int, int], cat: bool, coat: str, hue: float, value: float) -> Pixels:
    """A picture_HWC, uint8, of a face on grass; the breed shows in the pattern and colour of the coat.

    rng: for position, size and noise. size: (height, width) in pixels. cat: pointed ears; else hanging ones. coat:
    one of `TEXTURES`. hue, value: colour and brightness of the coat, 0 to 1.
    """
    y, x = grid(*size)
    grass = texture("stripes", y, x, 0.15, rng.uniform(-0.3, 0.3), rng.random())[..., None]
    picture = ground(rng, *size, hue=rng.uniform(0.22, 0.4), saturation=0.45, value=0.5) * (0.85 + 0.15 * grass)
    scale, dy, dx = rng.uniform(0.9, 1.2), rng.uniform(-0.12, 0.18), rng.uniform(-0.2, 0.2)
    y, x = (y - dy) / scale, (x - dx) / scale
    fur, side_x = colour(hue + rng.normal(0, 0.015), 0.6, value * rng.uniform(0.9, 1.1)), np.abs(x)
    pattern = texture(coat, y, x, rng.uniform(0.25, 0.33), rng.uniform(0, np.pi), rng.random())
    coat_HWC = blend(np.broadcast_to(fur * 0.4, picture.shape), fur, pattern)
    if cat:
        ears = shape_mask("triangle", y + 0.5, side_x - 0.36, 0.42)
    else:
        ears = np.clip(0.5 - (np.hypot((y - 0.05) / 2.1, side_x - 0.6) - 0.21) / SOFT_EDGE, 0, 1)
    picture = blend(picture, coat_HWC, shape_mask("circle", y / 1.05, x, 0.55))
    picture = blend(picture, coat_HWC * 0.75, ears)
    eyes = shape_mask("circle", y + 0.1, side_x - 0.22, 0.09)
    nose = shape_mask("circle", y - 0.18, x, 0.08 if cat else 0.13)
    return to_pixels(blend(blend(picture, colour(0.2, 0.2, 0.95), eyes), colour(0.02, 0.3, 0.1), nose), rng)


def aerial(rng: Generator, side: int, terrain: str, hue: float) -> Pixels:
    """A picture_HWC, uint8, seen from above, turned and scaled at random: one of `TERRAINS`, in about `hue`."""
    y, x = grid(side, side)
    angle, phase, scale = rng.uniform(0, 2 * np.pi), rng.random(), rng.uniform(0.85, 1.2)
    cy, cx = rng.uniform(-0.4, 0.4, 2)
    u = (np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)) / scale
    v = (np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)) / scale
    cells = rng.random((64, 64), dtype=np.float32)
    patterns: dict[str, Callable[[], Floats]] = {
        "rings": lambda: 0.5 + 0.5 * np.sin(2 * np.pi * (np.hypot(u, v) / 0.35 + phase)),
        "checks": lambda: texture("checks", v, u, 0.5, 0, phase),
        "dots": lambda: texture("dots", v, u, 0.45, 0, phase),
        "terraces": lambda: 0.5 + 0.5 * np.sin(2 * np.pi * (u / 0.3 + 0.4 * np.sin(3 * v + 6 * phase))),
        "blocks": lambda: cells[np.floor(u / 0.5).astype(int) % 64, np.floor(v / 0.5).astype(int) % 64],
        "dunes": lambda: soft_noise(rng, side, side, 5),
        "crossing": lambda: np.clip(0.5 - (np.minimum(np.abs(u), np.abs(v)) - 0.18) / SOFT_EDGE, 0, 1),
        "lane": lambda: np.clip(0.5 - (np.abs(u) - 0.3) / SOFT_EDGE, 0, 1),
    }
    pattern = patterns[terrain]()
    land = ground(rng, side, side, hue + rng.normal(0, 0.03), 0.45, rng.uniform(0.3, 0.4))
    return to_pixels(blend(land, colour(hue + 0.06, 0.3, rng.uniform(0.7, 0.9)), pattern), rng)


# --------------------------------------------------------------------------------------------------- clips


def moving_shape(
    rng: Generator, size: tuple[int, int], frames: int, motion: str, shape: str, hue: float
) -> Pixels:
    """clip_THWC, uint8, of a shape that moves over a still, cloudy ground.

    rng: for speed, position and noise. size: (height, width) in pixels. frames: T. motion: one of `MOTIONS`.
    shape: one of `SHAPES`. hue: of the shape. No motion is the mirror image of another one, because the real
    recipes flip clips horizontally.
    """
    y, x = grid(*size)
    back = ground(rng, *size, hue=rng.random(), saturation=0.25, value=rng.uniform(0.25, 0.45))
    paint = colour(hue + rng.normal(0, 0.04), 0.75, rng.uniform(0.85, 1))
    half, offset = rng.uniform(0.34, 0.44), rng.uniform(-0.25, 0.25, 2)
    tilt, way, phase = rng.uniform(-0.2, 0.2), rng.choice((-1.0, 1.0)), rng.random()
    clip = np.empty((frames, *size, 3), np.uint8)
    for frame in range(frames):
        dy, dx, zoom, turn = _pose(motion, frame / max(frames - 1, 1), way, phase)
        reach_y, reach_x = 0.2 if dy else 1.0, 0.2 if dx else 1.0
        at_y, at_x = dy + reach_y * offset[0], dx + reach_x * offset[1]
        mask = shape_mask(shape, y - at_y, x - at_x, half * zoom, tilt + turn)
        clip[frame] = to_pixels(blend(back, paint, mask), rng, 0.015)
    return clip


def _pose(motion: str, t: float, way: float, phase: float) -> tuple[float, float, float, float]:
    """(dy, dx, zoom, turn) at t in [0, 1] of a clip; `way` is -1 or 1 where left and right are one class."""
    sweep = 1.3 * t - 0.65
    bounce = abs(np.sin(np.pi * (2 * t + phase)))
    swing = 0.9 * way * np.sin(2 * np.pi * (1.5 * t + phase))
    poses = {
        "up": (-sweep, 0, 1, 0),
        "down": (sweep, 0, 1, 0),
        "grow": (0, 0, 0.45 + 1.35 * t, 0),
        "shrink": (0, 0, 1.8 - 1.35 * t, 0),
        "sideways": (0, way * sweep, 1, 0),
        "spin": (0, 0, 1.3, way * 2 * np.pi * t),
        "bounce": (0.6 - 1.2 * bounce, 0, 1, 0),
        "roll": (0, way * sweep, 1, way * 2 * np.pi * t),
        "swing": (-0.5 + 0.7 * np.cos(swing), 0.8 * np.sin(swing), 1, swing),
    }
    dy, dx, zoom, turn = poses[motion]
    return float(dy), float(dx), float(zoom), float(turn)


# -------------------------------------------------------------------------------------------------- sounds


def sound(rng: Generator, kind: str, seconds: float, rate: int, pitch: float = 1.0) -> Floats:
    """One of `SOUNDS` as a float wave [S], mono, peak 1, with random pitch (about +-10 %), speed and phase.

    rng: for pitch, speed and phase. kind: which one. seconds: its length. rate: in Hz. pitch: a factor on all
    frequencies.
    """
    t = np.arange(int(seconds * rate)) / rate
    shift, phase, beat = pitch * rng.uniform(0.9, 1.1), rng.random(), rng.uniform(0.85, 1.15)

    def since(hz: float) -> Floats:
        """Seconds since the last event of something that happens about `hz` times a second."""
        return ((t * hz * beat + phase) % 1) / (hz * beat)

    def glide(hz: Floats) -> Floats:
        return np.sin(2 * np.pi * (np.cumsum(hz) / rate + phase))

    def harmonics(hz: float, weights: tuple[float, ...]) -> Floats:
        waves = [w * np.sin(2 * np.pi * (k + 1) * (hz * t + phase)) for k, w in enumerate(weights)]
        return np.sum(waves, axis=0)

    makers: dict[str, Callable[[], Floats]] = {
        "tone": lambda: harmonics(440 * shift, (1, 0.5, 0.25)),
        "chirp": lambda: glide(shift * (900 + 5500 * since(1.6))),
        "noise": lambda: rng.standard_normal(len(t)),
        "pulse": lambda: rng.standard_normal(len(t)) * np.exp(-since(5) / 0.012),
        "siren": lambda: glide(shift * (1100 + 450 * np.sin(2 * np.pi * (0.9 * beat * t + phase)))),
        "hum": lambda: harmonics(100 * shift, (1, 0.5, 0.33)),
        "thump": lambda: np.sin(2 * np.pi * 70 * shift * since(2)) * np.exp(-since(2) / 0.1),
        "cricket": lambda: np.sin(2 * np.pi * 4500 * min(shift, 1.4) * t) * (since(12) < 0.045 / beat),
    }
    wave = np.asarray(makers[kind](), np.float64)
    return wave / max(float(np.abs(wave).max()), 1e-9)


def mixture(rng: Generator, kinds: list[str], seconds: float, rate: int, pitch: float = 1.0) -> Floats:
    """The sum of several sounds at random levels over quiet noise: a float wave [S], mono, peak 0.3 to 0.9.

    rng: for the levels and the sounds. kinds: some of `SOUNDS`. seconds: the length. rate: in Hz. pitch: a factor
    on all frequencies.
    """
    floor = 0.004 * rng.standard_normal(int(seconds * rate))
    # Steady noise that is as loud as the others would hide the pulses.
    levels = [rng.uniform(0.6, 1.0) * (0.2 if kind == "noise" else 1) for kind in kinds]
    parts = [sound(rng, kind, seconds, rate, pitch) for kind in kinds]
    wave = floor + sum(level * part for level, part in zip(levels, parts, strict=True))
    return wave * (rng.uniform(0.3, 0.9) / float(np.abs(wave).max()))


# --------------------------------------------------------------------------------------------------- bytes


def encode_image(picture_HWC: Pixels, form: Literal["JPEG", "PNG"]) -> bytes:
    """The bytes of a JPEG (quality 90) or PNG file."""
    out = io.BytesIO()
    Image.fromarray(picture_HWC).save(out, form, quality=90)
    return out.getvalue()


def encode_sound(wave: Floats, rate: int, form: Literal["WAV", "FLAC"]) -> bytes:
    """The bytes of a 16-bit WAV or FLAC file; `wave` is (samples,) or (samples, channels)."""
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=form, subtype="PCM_16")
    return out.getvalue()


def encode_mp4(clip_THWC: Pixels | None, fps: int, wave: Floats | None, rate: int) -> bytes:
    """The bytes of an mp4 with H.264 video, AAC mono sound, or both.

    clip_THWC: uint8 frames with even sides, or None. fps: frames a second. wave: float [S] in [-1, 1], or None.
    rate: of the wave, in Hz.
    """
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as box:
        video: Any = None
        audio: Any = None
        if clip_THWC is not None:
            options = {"crf": "20", "preset": "veryfast", "x264-params": X264_REPEATABLE}
            video = box.add_stream("libx264", rate=fps, options=options)
            video.height, video.width, video.pix_fmt = *clip_THWC.shape[1:3], "yuv420p"
            # More threads would choose other slices: the bytes would depend on the machine's cores.
            video.thread_count = 1
        if wave is not None:
            audio = box.add_stream("aac", rate=rate, layout="mono")
            audio.bit_rate = 48_000
        if clip_THWC is not None:
            for picture in clip_THWC:
                box.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            box.mux(video.encode())
        if wave is not None:
            _mux_sound(box, audio, wave, rate)
    return out.getvalue()


def _mux_sound(box: Any, stream: Any, wave: Floats, rate: int) -> None:
    step = 1024  # samples of one AAC frame
    for start in range(0, len(wave), step):
        chunk = wave[None, start : start + step].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        box.mux(stream.encode(frame))
    box.mux(stream.encode())


def encode_pickle(value: Any) -> bytes:
    """A protocol-2 pickle as Python 2 and NumPy 1 wrote the CIFAR batches: byte strings, uint8 matrices.

    `pickle.dumps` cannot write it: Python 3 text becomes unicode, and NumPy 2 names modules that older
    ones lack.
    """
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    """Opcodes of dict, list, str (as SHORT_BINSTRING: under 256 bytes), int under 2**31, uint8 matrix."""
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(k) + _pickled(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, str):
        return b"U" + struct.pack("<B", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return b"K" + struct.pack("<B", value) if value < 256 else b"J" + struct.pack("<i", value)
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    unicode = lambda text: b"X" + struct.pack("<i", len(text)) + text  # noqa: E731
    # dtype("u1") and its state: version 3, no byte order, no fields, no alignment.
    dtype = b"cnumpy\ndtype\n" + unicode(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + unicode(b"|") + b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K\x00tb"
    raw = b"T" + struct.pack("<i", value.size) + value.tobytes()
    shape = _pickled(value.shape[0]) + _pickled(value.shape[1]) + b"\x86"
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
