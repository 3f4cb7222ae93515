"""Media at a training size, for shards: smaller pictures and clips, recordings at one rate.

In: the bytes of a file. Out: smaller bytes to train on, or None where the file should stay as it is, because it is
small enough already, or unusual in a way that a copy could lose. Raises BadMedia for a file that cannot be
decoded.
"""

import io
from collections.abc import Sequence

import av
import cv2
import numpy as np
import simplejpeg
import soundfile
from av.video.reformatter import VideoReformatter

from polyvit.data.decode import audio, bad_media, image, moving_pictures, open_container, video
from polyvit.errors import BadMedia

KEY_FRAMES = 32
"""Frames from one key frame to the next: a clip is decoded from the last key frame before it."""
X264 = {"preset": "medium", "crf": "19", "tune": "fastdecode", "g": str(KEY_FRAMES), "mbtree": "0"}
"""Without mbtree, with which x264 reads uninitialised memory and does not write the same bytes every time."""


def smaller_image(data: bytes, size: int, quality: int) -> bytes | None:
    """A JPEG (4:2:0, of `quality`) with a short side of `size` pixels; None for a picture that is no larger."""
    image_HWC = image.decode_image(data)
    sides = _sides(image_HWC, size)
    if sides == image_HWC.shape[:2]:
        return None
    small_HWC = cv2.resize(image_HWC, sides[::-1], interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(small_HWC, quality=quality, colorsubsampling="420")


def _sides(image_HWC: np.ndarray, size: int) -> tuple[int, int]:
    """(height, width) with a short side of `size` at most."""
    height, width, _ = image_HWC.shape
    scale = min(1.0, size / min(height, width))
    return (height, width) if scale == 1 else (max(size, round(height * scale)), max(size, round(width * scale)))


def smaller_video(data: bytes, size: int, sound: bool = False) -> bytes | None:
    """An MP4 (H.264; with `sound` the first sound track's packets as they are, else none) with a short side of
    `size` pixels at most and a key frame every 32 frames.

    The same number of frames at the same times, upright, sides rounded up to even numbers. None: it is small
    enough already, or the file is damaged, of an unusual format or has frames without times, so that a copy might
    differ, or a sound track that MP4 cannot hold.
    """
    with bad_media("video"), open_container(data) as source:
        packets = video.walk(source)
        codec, rate = moving_pictures(source)[0].codec_context.name, moving_pictures(source)[0].average_rate
    if packets.width * packets.height > image.MAX_PIXELS:
        raise BadMedia(f"video: frames of {packets.width} x {packets.height} pixels are too large")
    keys = [i for i, packet in enumerate(packets.stored) if packet.is_keyframe]
    longest = max(np.diff([*keys, len(packets.stored)]), default=0)
    small = min(packets.height, packets.width) <= size and longest <= KEY_FRAMES
    if not packets.whole or (small and codec == "h264"):
        return None
    try:
        smaller = _encoded(data, size, rate or 25, packets.sound if sound else [])
        with open_container(smaller) as target:
            encoded = video.walk(target)
    except (av.error.FFmpegError, BadMedia, ValueError):  # PyAV: a codec that the container cannot hold
        return None
    same = len(encoded.times_s) == len(packets.times_s) and bool(
        np.abs(encoded.times_s - packets.times_s).max() < 2e-3
    )
    if sound:
        same = same and np.allclose(_sound_times(encoded), _sound_times(packets), atol=2e-3)
    return smaller if same and encoded.whole else None


def _sound_times(packets: video.Packets) -> tuple[float, float]:
    """How many sound packets there are, and how long after the first picture the first of them starts."""
    first = next((packet for packet in packets.sound if packet.pts is not None), None)
    start = float((first.pts or 0) * first.time_base) - packets.zero_s if first and first.time_base else 0.0
    return len(packets.sound), start


def _encoded(data: bytes, size: int, rate: object, sound: Sequence[av.Packet]) -> bytes:
    buffer, colours = io.BytesIO(), VideoReformatter()
    with open_container(data) as source, av.open(buffer, "w", format="mp4") as target:
        stream = moving_pictures(source)[0]
        stream.codec_context.thread_count = 1
        output = target.add_stream("libx264", rate=rate, options=X264)  # type: ignore[call-overload]
        output.pix_fmt, output.codec_context.thread_count = "yuv420p", 1
        output.time_base = output.codec_context.time_base = stream.time_base
        track = target.add_stream_from_template(source.streams.audio[0]) if sound else None
        for frame in source.decode(stream):
            frame_HWC = video.upright(frame, colours)  # the pixels that training would see
            height, width = (side + side % 2 for side in _sides(frame_HWC, size))
            if not output.codec_context.is_open:
                output.height, output.width = height, width
            if frame_HWC.shape[:2] != (height, width):
                frame_HWC = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA)
            small = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            small.pts, small.time_base = frame.pts, stream.time_base
            target.mux(output.encode(small))
        target.mux(output.encode())
        for packet in sound:
            packet.stream = track
            target.mux(packet)
    return buffer.getvalue()


def smaller_audio(data: bytes, sample_rate: int) -> bytes | None:
    """A FLAC of 16 bits, mono, `sample_rate` Hz, without the file's other streams and tags.

    None: it is a mono FLAC of that rate already, of any number of bits, or it exceeds full scale, which 16 bits
    cannot hold.
    """
    try:
        info = soundfile.info(io.BytesIO(data))
    except soundfile.LibsndfileError:
        pass
    else:
        if info.format == "FLAC" and info.channels == 1 and info.samplerate == sample_rate:
            return None
    waveform_S = audio.decode_waveform(data, sample_rate)
    if np.abs(waveform_S).max() > 1:
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform_S, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
