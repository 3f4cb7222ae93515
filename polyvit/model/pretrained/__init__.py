"""Other people's checkpoints, read and written.

In: an .npz, a safetensors file or a folder (timm, Hugging Face, Scenic, big_vision); a file of the official
AVBert; or a trained PolyViT. Out: a PolyViT's weights, or an AVBert's; or a task's, in the names of timm and
Hugging Face.
Read: vit_files, convert, from_vit, from_avbert, to_vit.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
