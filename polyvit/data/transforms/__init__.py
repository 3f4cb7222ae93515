"""Arrays to arrays: augmentation and patchify.

In: decoded arrays and the example's own random generator. Out: arrays, tokens_NP.
Read: augment, picture_augment, patchify.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
