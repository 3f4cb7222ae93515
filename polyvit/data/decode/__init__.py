"""Bytes of media files to arrays; the only package that imports decoders.

In: the bytes of a picture, video or recording. Out: uint8 RGB pixels or a float32 spectrogram of the
model's size.
Read: media_type, containers, headers, image, video, audio, sequence, soundtrack, clip_spectrogram.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
