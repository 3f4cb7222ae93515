"""What a task is trained for.

In: logits [B, K] and labels [B, K], or predictions of masked clips. Out: a loss for each example [B], or one.
Read: losses, contrastive, pretraining.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
