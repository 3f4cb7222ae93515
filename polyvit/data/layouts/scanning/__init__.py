"""What the layouts share: the scan in progress, lists and tables, labels as people write them.

In: a task and its location, as a `ScanContext`. Out: examples and problems.
Read: context, spreading, tables, labels, cifar_pickle, shard_cache.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
