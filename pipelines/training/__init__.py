"""A co-training run on Ray Train.

In: a config and a run's folder. Out: indexes, checkpoints, curves and results in the folder and in MLflow.
Read: run_dir, driver, worker, process_group, reporting.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
