"""A contrastive task's loss and measures, from a model's predictions and the clips of all ranks.

In: `Predictions` of this rank's examples, what was drawn for the global batch. Out: this rank's share of the loss,
a scalar, and sums of what is measured. Negatives are clips of the global batch: embeddings are gathered from all
ranks, and the gradient of every rank's loss reaches the rank that made them. Every draw follows from (seed, step,
task) and the place in the global batch, so the loss is the same for any number of ranks.
Legend: B examples of this rank, G of all, S clips, k masked ones, M = B k, P = G S, D width, n negatives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.config import AudiovisualTask, ContrastiveConfig
from polyvit.distributed import Communicator, all_rows
from polyvit.model import MultiTaskModel, Precision, autocast
from polyvit.model.avbert import STREAMS, Draws, Exchange, Predictions, draw
from polyvit.objectives.contrastive import info_nce, sample_negatives, uniform

MEASURES = (*(f"retrieval_{stream}" for stream in STREAMS), "pair_accuracy", "negative_similarity", "chance")
"""What is measured, each as a sum and a count: top-1 of each stream among its negatives, pairs told right, mean
cosine similarity of negatives to their positive in the CNN's embedding space, and what a guess would retrieve."""


def pretrain(
    model: MultiTaskModel,
    inputs: Mapping[str, Tensor],
    task: AudiovisualTask,
    name: str,
    place: tuple[int, int],
    seed: int,
    world: Communicator,
    keep: Tensor | None = None,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """One pass of a contrastive task over this rank's examples: `contrastive_loss` of it; all ranks together.

    inputs: normalised arrays [B, ...]. place: slot of the first example in the global batch, and its size.
    seed: of masks, pairs and negatives. keep: seeds of dropout. precision: of the model's
    pass, `train.precision`; the loss is float32.
    """
    (first, total), clips = place, inputs["clips"].shape[1]
    device, settings = inputs["clips"].device, task.contrastive
    drawn = draw(settings, total, clips, torch.Generator().manual_seed(seed), first).to(device)
    exchange = partial(all_rows, first=first, total=total, world=world)
    with autocast(device, precision):
        predictions = model(inputs, name, keep, drawn, exchange)
    return contrastive_loss(predictions, drawn, settings, exchange, seed)


@dataclass(frozen=True)
class Clips:
    """The masked clips of one modality on this rank, and their negatives.

    positive: [M, D]. negatives: [M, n, D]. weights: [M], 1 where the example's sound is its own.
    """

    positive: Tensor
    negatives: Tensor
    matched: Tensor


def contrastive_loss(
    predictions: Predictions, draws: Draws, settings: ContrastiveConfig, exchange: Exchange, seed: int
) -> tuple[Tensor, Tensor]:
    """This rank's share of the loss, and [2, measures] sums and counts of MEASURES.

    draws: of the global batch, on the predictions' device. exchange: as the model's. seed: of the step and task.
    The loss: for each stream the mean over masked clips, of multimodal streams over those of examples whose sound
    is their own; and the mean over pairs.
    """
    count = predictions.targets.shape[1]
    own, k = draws.rows(count), draws.masked.shape[2]
    matched_G = draws.sound_of == torch.arange(len(draws.sound_of), device=draws.sound_of.device)
    matched_B = matched_G[draws.first : draws.first + count]
    pool = exchange(predictions.targets.float().transpose(0, 1)).transpose(0, 1)
    if settings.detach_targets:
        pool = pool.detach()
    clips = {
        modality: _clips(pool[i], own.masked[i], draws.first, matched_B, settings, seed + i)
        for i, modality in enumerate(("visual", "audio"))
    }
    sums, counts = pool.new_zeros(len(MEASURES)), pool.new_zeros(len(MEASURES))
    loss = pool.new_zeros(())
    for stream, query in predictions.queries.items():
        joined, modality = stream.startswith("multimodal"), stream.rpartition("_")[2]
        weight = getattr(settings, stream.partition("_")[0])
        of = clips[modality]
        losses, hits = info_nce(query.float().flatten(0, 1), of.positive, of.negatives, settings.temperature)
        counted = of.matched if joined else torch.ones_like(of.matched)
        total = k * (draws.matched if joined else len(matched_G))
        loss = loss + weight * (losses * counted).sum() / max(1, total)
        _measure(sums, counts, f"retrieval_{stream}", hits * counted, counted)
    for of in clips.values():
        n = of.negatives.shape[1]
        similarity = F.cosine_similarity(of.positive[:, None], of.negatives, dim=-1).detach().mean(-1)
        _measure(sums, counts, "negative_similarity", similarity, torch.ones_like(similarity))
        _measure(sums, counts, "chance", torch.full_like(similarity, 1 / (1 + n)), torch.ones_like(similarity))
    if len(matched_G) > 1:
        logits = predictions.pairs.float()
        losses = F.binary_cross_entropy_with_logits(logits, matched_B.float(), reduction="none")
        loss = loss + settings.pairs * losses.sum() / len(matched_G)
        right = ((logits > 0) == matched_B).float()
        _measure(sums, counts, "pair_accuracy", right, torch.ones_like(right))
    else:
        loss = loss + 0.0 * predictions.pairs.sum()
    return loss, torch.stack([sums, counts])


def _clips(
    pool_GSD: Tensor, masked_Bk: Tensor, first: int, matched_B: Tensor, settings: ContrastiveConfig, seed: int
) -> Clips:
    """The masked clips of one modality with the negatives that are drawn for them."""
    clips = pool_GSD.shape[1]
    rows, k = masked_Bk.shape
    videos_M = (first + torch.arange(rows, device=masked_Bk.device)).repeat_interleave(k)
    places_M = videos_M * clips + masked_Bk.flatten()
    pool_PD = pool_GSD.flatten(0, 1)
    columns_P = torch.arange(len(pool_PD), device=pool_PD.device)
    if settings.other_videos_only:
        allowed_MP, allowed = videos_M[:, None] != columns_P // clips, len(pool_PD) - clips
    else:
        allowed_MP, allowed = places_M[:, None] != columns_P, len(pool_PD) - 1
    with torch.no_grad():
        known = pool_PD.detach()
        # Differences, not inner products: the same to the bit however many rows are compared at a time.
        distances = torch.cdist(known[places_M], known, compute_mode="donot_use_mm_for_euclid_dist")
        drawn = uniform(seed, places_M, len(pool_PD))
        chosen = sample_negatives(
            distances, allowed_MP, allowed, drawn, settings.negatives, settings.sampling, settings.interval
        )
    return Clips(pool_PD[places_M], pool_PD[chosen], matched_B.float().repeat_interleave(k))


def _measure(sums: Tensor, counts: Tensor, name: str, values: Tensor, counted: Tensor) -> None:
    place = MEASURES.index(name)
    sums[place] += values.detach().float().sum()
    counts[place] += counted.float().sum()


def measured(table: Tensor) -> dict[str, float]:
    """[2, measures], summed over ranks or steps -> {name: mean}; what was never measured is left out."""
    return {name: total / count for name, total, count in zip(MEASURES, *table.tolist(), strict=True) if count}


def results(measures: Mapping[str, float]) -> dict[str, float]:
    """The measures, and `retrieval`, the mean over the streams."""
    streams = [value for key, value in measures.items() if key.startswith("retrieval_")]
    return {**({"retrieval": sum(streams) / len(streams)} if streams else {}), **measures}
