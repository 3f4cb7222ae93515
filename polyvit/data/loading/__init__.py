"""From index rows to minibatches, and on to the device.

In: the plan's batches and the tasks' examples. Out: `Minibatch`es of named arrays, in step order.
Read: requests, reader, example, codecs/, minibatch, isolated, chunks, prefetch, device_prefetch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
