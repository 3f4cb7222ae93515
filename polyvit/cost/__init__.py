"""What a run will take: time, memory, disk, network.

In: a config and a schedule. Out: an estimate for this machine, a prediction for a cluster.
Read: run_estimate, exchange, cluster_model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
