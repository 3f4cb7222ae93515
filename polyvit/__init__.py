"""PolyViT: one Vision Transformer, co-trained on images, videos and audio. Plain PyTorch: no Ray, no MLflow.

In: a config or a trained model. Out: `RunConfig`, `PolyViT`, and a `TrainedModel` that answers for files, pictures
and arrays: `polyvit.load("runs/NAME").predict("photo.jpg")`. What needs Ray or MLflow is in `pipelines`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
