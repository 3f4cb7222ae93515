"""What a task is trained for.

In: logits [B, K] and labels [B, K]. Out: a loss for each example [B].
Read: losses.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
