"""Toy data sets in the true layouts of the nine tasks.

In: a folder and a few numbers. Out: files that a tiny model can learn from.
Read: write, layouts, classes, media.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
