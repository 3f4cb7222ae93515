"""What a trained model scores.

In: minibatches and a model. Out: metrics of each task, features, linear probes, nearest clips.
Read: metrics, device_totals, contrastive, evaluator, detail, results, features, linear_probe, neighbours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
