"""What kind of media a file is, judged by its bytes; its name is never looked at.

The first bytes must be those of a format in the table of `polyvit.config.formats`. This is also what keeps hostile
files from the decoding libraries' less travelled readers: FFmpeg would follow the addresses in a playlist, Pillow
would run Ghostscript on PostScript. Which of video and sound a container holds, its streams tell.
"""

import re

from polyvit.config import Modality, signatures
from polyvit.data.decode.containers import bad_media, moving_pictures, open_container
from polyvit.errors import BadMedia

UNKNOWN = "not a known picture, video or sound file"

_PICTURE = re.compile(signatures("image"), re.DOTALL)
_CONTAINER = re.compile(signatures(None), re.DOTALL)
_SOUND = re.compile(signatures("audio"), re.DOTALL)


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
        if moving_pictures(container):
            return "video"
        if container.streams.audio:
            return "audio"
    raise BadMedia("container: neither video nor sound in it")
