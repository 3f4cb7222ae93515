"""A task's examples written as WebDataset tar shards with their index.

In: a `Scan` and where its data lie. Out: shards below a folder or URL, which layout `webdataset` reads.
Read: writer, transcode, tokens.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
