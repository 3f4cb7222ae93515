"""The training loop and one optimiser step.

In: a model, a schedule and a feed of minibatches. Out: trained parameters, curves, checkpoints.
Read: initialisation, learner, loop, step, mixing, readback, optim, layer_decay, ema, microbatch, warm_up,
throughput, curves, callbacks, tensorboard, checks, early_stopping, interference, drift, balancing, loss_weights.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
