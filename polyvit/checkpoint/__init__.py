"""All state of a run, written beside training and read back whole.

In: model, optimiser, averages, counters. Out: folders of safetensors and JSON with checksums.
Read: unit, state, locate, store, async_writer, metrics_log.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
