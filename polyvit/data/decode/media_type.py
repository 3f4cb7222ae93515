"""What kind of media a file is, judged by its bytes; its name is never looked at.

The first bytes must be those of a known picture, video or sound format. This is also what keeps hostile files from
the decoding libraries' less travelled readers: FFmpeg would follow the addresses in a playlist, Pillow would run
Ghostscript on PostScript. Which of video and sound a container holds, its streams tell.
"""

import re

import av

from polyvit.config import Modality
from polyvit.data.decode.containers import bad_media, open_container
from polyvit.errors import BadMedia

UNKNOWN = "not a known picture, video or sound file"

_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{12}[\x0c-\x7c]\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6]\s"
    rb"|\0\0\0\x0cjP  |.{4}ftyp(?:avif|avis|heic|heix|mif1)",
    re.DOTALL,
)
_SOUND = re.compile(rb"RIFF.{4}WAVE|RF64.{4}WAVE|fLaC|FORM.{4}AIF[FC]|\.snd|ID3|\xff[\xe2-\xff]", re.DOTALL)
_CONTAINER = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |OggS|FLV\x01|\0\0\x01[\xba\xb3]"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\x47.{187}\x47|.{4}\x47.{191}\x47",
    re.DOTALL,
)  # fmt: skip


def detect_modality(data: bytes) -> Modality:
    """Image, video (a container with moving pictures) or audio (sound alone; cover art does not count).

    An animation in a picture format is an image: its first frame. Raises BadMedia for an empty file, for bytes of
    no known format, and for a container without a stream that could be used.
    """
    if not data:
        raise BadMedia("the file is empty")
    head = data[:512]
    if _PICTURE.match(head):
        return "image"
    if _CONTAINER.match(head):
        return _streams(data)
    if _SOUND.match(head):
        return "audio"
    raise BadMedia(UNKNOWN)


def _streams(data: bytes) -> Modality:
    with bad_media("container"), open_container(data) as container:
        cover = av.stream.Disposition.attached_pic
        if any(not stream.disposition & cover for stream in container.streams.video):
            return "video"
        if container.streams.audio:
            return "audio"
    raise BadMedia("container: neither video nor sound in it")
