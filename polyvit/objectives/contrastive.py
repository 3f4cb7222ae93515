"""Which clips are negatives, and the loss of telling the right clip from them: pure functions of tensors.

In: distances and scores. Out: places of negatives, losses, hits. Sources: content-aware negative sampling as the
authors' blog describes it (the more similar to the positive, the likelier), InfoNCE as usual, with the positive in
the denominator; numbers are settings (`polyvit.config.pretraining`).
Legend: M masked clips, P clips of the pool, n negatives, D width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.model.avbert import mixed

FLOOR = 1e-6
"""Added to each weight, so that the farthest clip of the interval can be drawn too; ours."""


def uniform(seed: int, rows_M: Tensor, columns: int) -> Tensor:
    """[M, columns] float32 in (0, 1) that follow from (seed, row, column) alone.

    So the numbers of a row are the same on whichever rank it lies. rows: int64 numbers of the rows.
    """
    counter = (rows_M * columns)[:, None] + torch.arange(columns, device=rows_M.device)
    x = mixed(mixed(counter + seed) + seed)
    return ((x & 0xFFFFFF).float() + 0.5) / (1 << 24)


def sample_negatives(
    distances_MP: Tensor,
    allowed_MP: Tensor,
    allowed: int,
    uniform_MP: Tensor,
    count: int,
    sampling: Literal["similar", "random", "dissimilar"],
    interval: float,
) -> Tensor:
    """[M, n] places in the pool, drawn without replacement; n = `count`, or fewer where fewer are left.

    distances: to the positive. allowed_MP: bool, `allowed` of them in each row. uniform: in (0, 1). Weights are
    1 - d' for `similar` and d' for `dissimilar`, d' the distance scaled to 0..1 over what is allowed; only the
    central `interval` of a row by distance can be drawn. `random` weighs all alike.
    """
    number = allowed
    weights = torch.ones_like(distances_MP)
    drawable = allowed_MP
    if sampling != "random":
        far = torch.where(allowed_MP, distances_MP, -torch.inf).amax(dim=1, keepdim=True)
        near = torch.where(allowed_MP, distances_MP, torch.inf).amin(dim=1, keepdim=True)
        scaled = (distances_MP - near) / (far - near).clamp(min=1e-12)
        weights = (1.0 - scaled if sampling == "similar" else scaled).clamp(0.0, 1.0) + FLOOR
        cut = min(round(number * (1.0 - interval) / 2), (number - 1) // 2)
        if cut:
            rank = torch.where(allowed_MP, distances_MP, torch.inf).argsort(dim=1).argsort(dim=1)
            drawable = allowed_MP & (rank >= cut) & (rank < number - cut)
            number -= 2 * cut
    # The largest of log weight + Gumbel noise are a draw without replacement (Vieira, 2014).
    keys = weights.log() - (-uniform_MP.log()).log()
    return torch.where(drawable, keys, -torch.inf).topk(min(count, number), dim=1).indices


def info_nce(
    query_MD: Tensor, positive_MD: Tensor, negatives_MnD: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Loss [M] and hit [M] of each masked clip: -log softmax of the positive's inner product with the query.

    hit: whether the positive scores above every negative.
    """
    right = (query_MD * positive_MD).sum(-1, keepdim=True)
    wrong = (negatives_MnD @ query_MD[..., None])[..., 0]
    scores = torch.cat([right, wrong], dim=1).float() / temperature
    return -F.log_softmax(scores, dim=1)[:, 0], (right > wrong.amax(dim=1, keepdim=True))[:, 0]
