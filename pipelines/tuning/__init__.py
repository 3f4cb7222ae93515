"""A sweep on Ray Tune: many co-training runs of one config with some keys changed.

In: a config with a `sweep` section. Out: a run for each trial, a report, the best model in the registry.
Read: space, driver, search, trial.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
