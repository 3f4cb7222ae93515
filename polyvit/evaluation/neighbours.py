"""Clips of a split in the spaces that AVBert's pre-training made: which lie near each other, across modalities.

In: minibatches of sequences. Out: for each clip the embedding of its picture and of its sound, and what each alone
calls for in the other: the query of the multimodal transformer where every clip of that other modality is masked.
Legend: B sequences, S clips, P = all their clips, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.data.loading import Minibatch, tensors
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, device_of, normalise
from polyvit.model.avbert import AVBert, ContrastiveHead, with_masks

MODALITIES = ("visual", "audio")


@dataclass(frozen=True)
class ClipSpaces:
    """Clips in order, side by side where they are of one sequence.

    embeddings: {visual, audio: [P, D]}. queries: {visual: what the sound alone calls for, audio: what the picture
    alone does: [P, D]}, of the length of embeddings. frames: [P, H, W, 3] uint8, the middle one. spectrograms:
    [P, time, mel]. sequences: [P] number of each one's sequence. keys: of the sequences.
    """

    embeddings: dict[str, Tensor]
    queries: dict[str, Tensor]
    frames: np.ndarray
    spectrograms: np.ndarray
    sequences: np.ndarray
    keys: tuple[str, ...]

    def nearest(self, clip: int, how: str, count: int) -> list[int]:
        """The clips of other sequences that lie nearest, best first.

        how: `visual`, `audio`: by cosine of embeddings. `sound_to_picture`, `picture_to_sound`: by the query.
        """
        if how in MODALITIES:
            unit = F.normalize(self.embeddings[how], dim=-1)
            scores = unit @ unit[clip]
        else:
            sought = "visual" if how == "sound_to_picture" else "audio"
            scores = self.embeddings[sought] @ self.queries[sought][clip]
        scores = scores.masked_fill(torch.from_numpy(self.sequences == self.sequences[clip]), -torch.inf)
        return scores.topk(min(count, int(scores.isfinite().sum()))).indices.tolist()

    def hit_rate(self, sought: str, negatives: int, seed: int) -> float:
        """How often the other modality alone finds a clip among `negatives` clips of other sequences, drawn anew
        for each: 0 to 1; a guess finds 1 / (1 + negatives)."""
        rng, hits = np.random.default_rng(seed), 0
        for clip, sequence in enumerate(self.sequences):
            others = rng.permutation(np.flatnonzero(self.sequences != sequence))[:negatives]
            scores = self.embeddings[sought] @ self.queries[sought][clip]
            hits += bool(scores[clip] > scores[torch.from_numpy(others)].max())
        return hits / max(1, len(self.sequences))


@torch.no_grad()
def clip_spaces(model: MultiTaskModel, task: str, minibatches: Iterable[Minibatch]) -> ClipSpaces:
    """The clips of a contrastive task's minibatches. Raises UserError for a model without a multimodal
    transformer, and where there are fewer than two sequences."""
    head = model.heads[task]
    if not isinstance(model, AVBert) or not isinstance(head, ContrastiveHead):
        raise UserError(f"task {task} is not contrastive: its model has nothing to compare clips by")
    if "multimodal" not in model.config.roles:
        raise UserError("model.fusion=late: there is no multimodal transformer to look across modalities with")
    gathered: dict[str, list[Tensor]] = {f"{kind}.{m}": [] for kind in ("embedding", "query") for m in MODALITIES}
    frames, spectrograms, keys = [], [], list[str]()
    model.eval()
    for minibatch in minibatches:
        if not minibatch.rows:
            continue
        inputs = {n: normalise(a) for n, a in tensors(minibatch, device_of(model))[0].items()}
        for name, value in _of_a_minibatch(model, head, inputs).items():
            gathered[name].append(value.flatten(0, 1).float().cpu())
        clips = minibatch.inputs["clips"]
        frames.append(clips[:, :, clips.shape[2] // 2].reshape(-1, *clips.shape[3:]))
        sound = minibatch.inputs["spectrograms"].astype(np.float32)
        spectrograms.append(sound.reshape(-1, *sound.shape[2:]))
        keys += minibatch.keys
    if len(keys) < 2:
        raise UserError(f"task {task}: {len(keys)} sequences could be read; neighbours need two or more")
    joined = {name: torch.cat(values) for name, values in gathered.items()}
    clips_each = len(joined["embedding.visual"]) // len(keys)
    return ClipSpaces(
        {m: joined[f"embedding.{m}"] for m in MODALITIES}, {m: joined[f"query.{m}"] for m in MODALITIES},
        np.concatenate(frames), np.concatenate(spectrograms), np.arange(len(keys)).repeat(clips_each), tuple(keys),
    )  # fmt: skip


def _of_a_minibatch(model: AVBert, head: ContrastiveHead, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings and queries [B, S, D] of both modalities."""
    embedded = model.embed(*model.arrays(inputs))
    both = [embedded.visual_BSD, embedded.audio_BSD]
    rows, clips = both[0].shape[:2]
    result = {f"embedding.{m}": x for m, x in zip(MODALITIES, both, strict=True)}
    everything = torch.arange(clips, device=both[0].device).expand(rows, clips)
    assert model.masks is not None
    for i, modality in enumerate(MODALITIES):
        hidden = list(both)
        hidden[i] = with_masks(both[i], everything, model.masks[i])
        joined = model.multimodal(*model.single(*hidden))
        assert joined is not None
        half = joined.chunk(2, dim=1)[i][:, 1:]
        result[f"query.{modality}"] = head.query(f"multimodal_{modality}", half)
    return result
