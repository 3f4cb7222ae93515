"""Minibatches from the cluster's decoding processes to each train worker, in step order.

In: the plan's requests. Out: minibatches; the bytes are the same for every backend.
Read: worker_feed, ray_data, ray_tasks, task_dataset.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
