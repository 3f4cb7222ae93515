"""Toy data sets in the true layouts of the nine tasks, and of videos with their sound.

In: a folder and a few numbers. Out: files that a tiny model can learn from.
Read: write, layouts, av_layouts, classes, media, av_media.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
