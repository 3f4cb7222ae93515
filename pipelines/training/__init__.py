"""A co-training run on Ray Train.

In: a config and its indexes. Out: a run's folder with checkpoints, curves and results.
Read: worker, reporting.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
