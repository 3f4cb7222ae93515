from .audio import decode_waveform as decode_waveform
from .audio import log_mel as log_mel
from .containers import bad_media as bad_media
from .containers import open_container as open_container
from .image import decode_image as decode_image
from .media_type import UNKNOWN as UNKNOWN
from .media_type import detect_modality as detect_modality
from .video import read_clip as read_clip
