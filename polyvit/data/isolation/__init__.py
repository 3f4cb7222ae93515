"""Processes that may die on a hostile file, and limits on time and memory.

In: a module that answers questions about files. Out: its answers, or `DecoderDied` with the reason.
Read: worker, confinement, limits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
