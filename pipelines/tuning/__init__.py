"""Trials of a sweep on Ray Tune.

In: a config with some keys changed. Out: a `cotrain` run for each trial.
Read: trial.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
