"""The model: tokenizers and adaptor blocks of each modality, shared blocks, a head for each task.

In: named arrays such as tokens [B, N, P] of one task. Out: logits [B, K] or features [B, D].
Read: interface, devices, tokenizer, encoder, sharing, polyvit, rollout, avbert/, build, flops, pretrained/.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
