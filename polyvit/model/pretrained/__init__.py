"""Other people's ViT checkpoints, read and written.

In: an .npz, a safetensors file or a folder (timm, Hugging Face, Scenic, big_vision). Out: a PolyViT's weights.
Read: vit_files, convert, from_vit.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
