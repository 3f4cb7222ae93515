"""The ranks that train together: sums of gradients, divided parameters. Needs torch alone.

In: parameters with gradients of this rank. Out: the same, summed over ranks.
Read: communicator, reducer, exchange, fsdp.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
