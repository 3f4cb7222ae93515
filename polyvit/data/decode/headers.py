"""What the headers of media files say, without decoding them.

In: the bytes of a file. Out: what its header tells; a library's own exception where it cannot be read.
"""

import io
from typing import Any, BinaryIO

import av
import soundfile
from PIL import Image

from polyvit.data.decode.containers import moving_pictures, open_container
from polyvit.errors import BadMedia


def image_header(data: bytes) -> dict[str, Any]:
    """form (file format), width and height in pixels."""
    with Image.open(io.BytesIO(data)) as picture:
        return {"form": picture.format, "width": picture.width, "height": picture.height}


def video_header(data: bytes) -> dict[str, Any]:
    """form (codec), width and height in pixels, and where known seconds, fps, frames of the whole file."""
    with open_container(data) as container:
        stream = moving_pictures(container)[0]
        context = stream.codec_context
        header: dict[str, Any] = {"form": context.name, "width": context.width, "height": context.height}
        seconds = container.duration / av.time_base if container.duration else None
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        if seconds is not None:
            header["seconds"] = seconds
        if stream.average_rate:
            header["fps"] = float(stream.average_rate)
        if stream.frames or (seconds and stream.average_rate):
            header["frames"] = stream.frames or round((seconds or 0.0) * header["fps"])
    return header


def audio_header(data: bytes) -> dict[str, Any]:
    """form (file format or codec), sample_rate in Hz, channels."""
    try:
        info = soundfile.info(io.BytesIO(data))
        return {"form": info.format, "sample_rate": info.samplerate, "channels": info.channels}
    except soundfile.LibsndfileError:
        with open_container(data) as container:
            context = container.streams.audio[0].codec_context
            return {"form": context.name, "sample_rate": context.sample_rate, "channels": context.channels}


def container_size(data: bytes) -> tuple[int, int, float]:
    """(width, height, seconds) of a video or recording; 0 where there is no such thing or it is not known.

    Raises FFmpeg's error where the bytes are none of the containers that are read.
    """
    with open_container(data) as container:
        width = height = 0
        if streams := moving_pictures(container) or container.streams.video:
            context = streams[0].codec_context
            width, height = context.width, context.height
        return width, height, (container.duration or 0) / av.time_base


def streams_of(file: BinaryIO) -> frozenset[str]:
    """Of `visual` and `audio`: what a container holds by its header; cover art is no picture.

    file: open and seekable; no more is read of it than FFmpeg needs to know its streams. Raises FFmpeg's error
    where the bytes are none of the containers that are read.
    """
    with open_container(file) as container:
        streams = {"visual": moving_pictures(container), "audio": container.streams.audio}
        return frozenset(name for name, held in streams.items() if held)


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture. Raises BadMedia above Pillow's own limit of 179 million pixels."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.width, picture.height
    except Image.DecompressionBombError as error:
        raise BadMedia(f"image: {error}") from None
