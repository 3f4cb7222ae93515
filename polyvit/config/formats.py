"""The one table of the media files that are read: how their names end, and how their bytes begin.

Scans take the files whose names end so (`TaskBase.extensions`); prediction and `inspect` go by the bytes
(`polyvit.data.decode.media_type`).
"""

from typing import Literal, NamedTuple


class MediaFormat(NamedTuple):
    """One format.

    holds: what such a file is taken for by its name. extensions: lower case with the dot, the usual one first.
    signature: a regular expression of the first bytes. has_streams: a container, whose streams tell whether it is
    video or sound.
    """

    holds: Literal["image", "video", "audio"]
    extensions: tuple[str, ...]
    signature: bytes
    has_streams: bool = False


_FTYP = rb".{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)"
_MATROSKA = rb"\x1a\x45\xdf\xa3"
_ASF = rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"
_MPEG_TS = rb"\x47.{187}\x47|.{4}\x47.{191}\x47"
_MPEG_AUDIO = rb"ID3|\xff[\xe2-\xff]"

FORMATS: tuple[MediaFormat, ...] = (
    MediaFormat("image", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    MediaFormat("image", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n"),
    MediaFormat("image", (".webp",), rb"RIFF.{4}WEBP"),
    MediaFormat("image", (".bmp",), rb"BM.{12}[\x0c-\x7c]\0\0\0"),
    MediaFormat("image", (".gif",), rb"GIF8[79]a"),
    MediaFormat("image", (".tif", ".tiff"), rb"II\*\0|MM\0\*"),
    MediaFormat("image", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6]\s"),
    MediaFormat("image", (".avif",), rb".{4}ftyp(?:avif|avis|heic|heix|mif1)"),
    MediaFormat("image", (".jp2", ".j2k", ".jpx", ".jpf"), rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    MediaFormat("audio", (".wav",), rb"RIFF.{4}WAVE|RF64.{4}WAVE|NIST_1A"),
    MediaFormat("audio", (".flac",), rb"fLaC"),
    MediaFormat("audio", (".mp3", ".mp2"), _MPEG_AUDIO),
    MediaFormat("audio", (".m4a", ".m4b"), _FTYP, True),
    MediaFormat("audio", (".ogg", ".opus", ".oga", ".spx"), rb"OggS", True),
    MediaFormat("audio", (".aac",), _MPEG_AUDIO),
    MediaFormat("audio", (".aiff", ".aif", ".aifc"), rb"FORM.{4}AIF[FC]"),
    MediaFormat("audio", (".mka", ".weba"), _MATROSKA, True),
    MediaFormat("audio", (".wma",), _ASF, True),
    MediaFormat("audio", (".caf",), rb"caff"),
    MediaFormat("audio", (".w64",), rb"riff\x2e\x91\xcf\x11"),
    MediaFormat("audio", (".rf64",), rb"RF64.{4}WAVE"),
    MediaFormat("audio", (".au", ".snd"), rb"\.snd"),
    MediaFormat("audio", (".sph",), rb"NIST_1A"),
    MediaFormat("audio", (".ac3", ".eac3"), rb"\x0b\x77"),
    MediaFormat("audio", (".amr",), rb"#!AMR"),
    MediaFormat("audio", (".voc",), rb"Creative Voice File"),
    MediaFormat("video", (".mp4",), _FTYP, True),
    MediaFormat("video", (".avi",), rb"RIFF.{4}AVI ", True),
    MediaFormat("video", (".mkv", ".webm"), _MATROSKA, True),
    MediaFormat("video", (".mov", ".m4v", ".qt"), _FTYP, True),
    MediaFormat("video", (".mpg", ".mpeg", ".vob"), rb"\0\0\x01[\xba\xb3]", True),
    MediaFormat("video", (".ts", ".m2ts", ".mts"), _MPEG_TS, True),
    MediaFormat("video", (".flv",), rb"FLV\x01", True),
    MediaFormat("video", (".wmv", ".asf"), _ASF, True),
    MediaFormat("video", (".3gp", ".3g2"), _FTYP, True),
    MediaFormat("video", (".ogv",), rb"OggS", True),
)


def extensions(*holds: Literal["image", "video", "audio"]) -> tuple[str, ...]:
    """The extensions of all formats that hold these, in the order of `holds` and of the table."""
    return tuple(end for what in holds for entry in FORMATS if entry.holds == what for end in entry.extensions)


def signatures(holds: Literal["image", "video", "audio"] | None) -> bytes:
    """A regular expression of the first bytes of all formats that hold this; None: of the containers."""
    chosen = [
        entry.signature for entry in FORMATS if (entry.has_streams if holds is None else entry.holds == holds)
    ]
    return b"|".join(dict.fromkeys(chosen))
