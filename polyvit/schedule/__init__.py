"""Which task is trained at which step, and on which examples: pure functions of (seed, step).

In: the tasks' step counts, batch sizes and split sizes. Out: a `Schedule`, and a `Plan` of example positions.
Read: schedule, adaptive, plan.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
