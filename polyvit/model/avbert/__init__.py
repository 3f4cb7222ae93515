"""AVBert: CNNs over one-second clips of picture and sound, transformers over their sequence that share weights.

In: named arrays `clips` [B, S, T, H, W, 3] and `spectrograms` [B, S, time, mel]. Out: logits [B, K] or features.
Read: resnet, visual_cnn, audio_cnn, transformer, heads, pretraining, model, convert.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
