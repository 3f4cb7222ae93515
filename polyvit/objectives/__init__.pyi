from .losses import example_losses as example_losses
from .losses import mixup as mixup
from .losses import neighbours as neighbours
