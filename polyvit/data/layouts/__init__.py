"""A data set's folder or bucket, as its users hold it, to a `Scan`: one file a layout.

In: a task and its location. Out: a `Scan`, or its index file from the cache.
Read: scanner, scanning/, imagefolder, csvfile, webdataset, parquet, tokens, imagenet, cifar, pets, resisc45,
kinetics, moments, audioset, vggsound, ucf101, esc50, kinetics_sounds, charades, stream_check, index_cache, roots.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
