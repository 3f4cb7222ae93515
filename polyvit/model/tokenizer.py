"""Tokens to embeddings, per modality: linear patch embedding, class token, position embedding.

Legend: B batch, N tokens (without the class token), P patch_dim, D width.
A linear layer over flattened patches is the strided convolution of ViT, and over flattened tubelets the
Conv3d of ViViT; tests/model holds both to it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.config import InputSection


def normalise(tokens: Tensor) -> Tensor:
    """uint8 pixels [0, 255] -> float32 [-1, 1]; floats (spectrograms, normalised by the feed) -> float32."""
    if tokens.dtype == torch.uint8:
        return tokens.float() * (2.0 / 255.0) - 1.0
    return tokens.float()


class Tokenizer(nn.Module):
    """[B, N, P] -> [B, 1 + N, D]: embed, put the class token first, add positions.

    Raises ValueError where N or P is not what the input section says.
    """

    def __init__(self, spec: InputSection, width: int) -> None:
        super().__init__()
        # A spectrogram is one plane; with 3 channels the kernel is that of an RGB ViT, fed the plane 3 times.
        self.repeats = spec.kernel_repeats
        self.shape = (spec.num_tokens, spec.patch_dim)
        self.patch_embed = nn.Linear(spec.patch_dim * self.repeats, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + spec.num_tokens, width))

    def forward(self, tokens_BNP: Tensor) -> Tensor:
        """`tokens_BNP`: float, as `normalise` gives."""
        if tuple(tokens_BNP.shape[1:]) != self.shape:
            raise ValueError(f"tokens are {tuple(tokens_BNP.shape[1:])}, the tokenizer takes {self.shape}")
        x_BND = F.linear(tokens_BNP, self.kernel(), self.patch_embed.bias)
        cls_B1D = self.cls_token.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1)
        return torch.cat([cls_B1D, x_BND], dim=1) + self.pos_embed

    def kernel(self) -> Tensor:
        """The [D, P] kernel. Repeating the input over channels equals summing the kernel over them."""
        weight = self.patch_embed.weight
        if self.repeats == 1:
            return weight
        return weight.view(weight.shape[0], -1, self.repeats).sum(dim=-1)
