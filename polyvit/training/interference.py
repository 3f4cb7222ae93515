"""Whether tasks pull shared weights the same way: gradients of a few minibatches of each task, compared in pairs.

In: a model, minibatches of several tasks. Out: plain data: for each pair of tasks and each group of parameters
that both reach, the cosine of their mean gradients and the share of coordinates whose signs differ, with intervals
from resampling minibatches; each task's gradient norm, and how much of it is no noise; a proposal. A contrastive
task counts as its two objectives (`objectives_of`).

A group is a block, a norm, a tokenizer. Of a group with more than `COORDINATES` parameters a fixed random sample
of so many is compared, and its sums are scaled up. Cosines of gradients as a measure of conflict: PCGrad (Yu et
al. 2020, arXiv:2001.06782), section 2. A negative cosine says that a small step for one task raises the loss of
the other now; it does not say that co-training ends worse.
Legend: T tasks, M minibatches of each, C coordinates, R resamples (row 0: all minibatches once).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from polyvit.config import AudiovisualTask, RunConfig
from polyvit.data.loading import Minibatch
from polyvit.distributed import Communicator
from polyvit.model import MultiTaskModel, autocast, device_of, full_precision
from polyvit.training.step import is_contrastive, local_loss, most_examples, parts, run_pass

COORDINATES = 2**18
SIGN_COORDINATES = 2**12
"""Of which signs are resampled; the share itself is of all that are kept."""
RESAMPLES = 300
MINIBATCHES = 4
"""Of each task, while a run trains."""
OVERALL = "shared"
"""The name under which all shared blocks are one group. The final norm is not of it: its gradient comes straight
from the heads, is large, points alike for most tasks, and would hide what the blocks say. Where a model has no
`shared.blocks`, all that two tasks both reach."""
CONFLICT = 0.05
"""A cosine must lie below minus this for a proposal (ours); smaller ones can be certain and mean little."""


@dataclass
class Gradients:
    """vectors: {group: {task: [a float32 [C] for each minibatch]}}. sizes: parameters of each group."""

    vectors: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def group_of(name: str) -> str:
    """Of a parameter's name: shared.blocks.3, shared.norm, adaptors.image.0, tokenizers.image, heads.pets."""
    pieces = name.split(".")
    numbers = [i for i, piece in enumerate(pieces) if piece.isdecimal()]
    return ".".join(pieces[: numbers[0] + 1 if numbers else 2])


def measure_gradients(
    model: MultiTaskModel, minibatches: Iterable[Minibatch], config: RunConfig, world: Communicator,
    microbatches: Mapping[str, int] | None = None,
) -> Gradients:  # fmt: skip
    """The gradient of each minibatch, summed over ranks, by group; all ranks call this together with their parts.

    Changes neither parameters nor buffers, and leaves no gradient behind: batch norm takes its running averages,
    of contrastive tasks too. The model is whole on every rank. microbatches: most examples of a pass, by task.
    """
    device, gradients = device_of(model), Gradients()
    picks: dict[str, torch.Tensor | None] = {}
    objectives = {task: objectives_of(config, task) for task in config.tasks}
    for minibatch in minibatches:
        most = most_examples(minibatch.task, config, microbatches)
        for name, settings in objectives[minibatch.task].items():
            model.zero_grad(set_to_none=True)
            with autocast(device, config.train.precision):
                for part in parts(minibatch, most, config, world.size):
                    model.eval()
                    if is_contrastive(config, minibatch.task):  # ranks exchange embeddings: each must take part
                        run_pass(model, part, settings, device, world)
                    elif part.rows:
                        loss = local_loss(model, part, settings, device)
                        with full_precision(device, config.train.precision):
                            loss.backward()
            _keep(gradients, model, name, minibatch.task, picks, world)
    model.zero_grad(set_to_none=True)
    model.train()
    return gradients


def objectives_of(config: RunConfig, task: str) -> dict[str, RunConfig]:
    """What a task counts as, by name, each with the config whose loss it is: itself, or of a contrastive task
    `TASK.masked` (masked embedding prediction in all streams) and `TASK.pairs` (correct pair prediction), where
    both have weights. The sum of their gradients is the task's."""
    section = config.tasks[task]
    if not (isinstance(section, AudiovisualTask) and is_contrastive(config, task)):
        return {task: config}
    whole = section.contrastive
    if not (whole.pairs and (whole.visual or whole.audio or whole.multimodal)):
        return {task: config}
    alone = {"masked": {"pairs": 0.0}, "pairs": {"visual": 0.0, "audio": 0.0, "multimodal": 0.0}}
    return {
        f"{task}.{name}": config.model_copy(update={"tasks": {**config.tasks, task: section.model_copy(
            update={"contrastive": whole.model_copy(update=weights)})}})
        for name, weights in alone.items()
    }  # fmt: skip


def _keep(
    gradients: Gradients, model: MultiTaskModel, name: str, task: str, picks: dict[str, torch.Tensor | None],
    world: Communicator,
) -> None:  # fmt: skip
    """Take the gradients that lie at the parameters that a task reaches, by group. name: of the objective."""
    groups: dict[str, list[torch.Tensor]] = {}
    for key, parameter in model.touched(task).items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        groups.setdefault(group_of(key), []).append(gradient.detach().float().reshape(-1))
    for group, pieces in groups.items():
        flat = torch.cat(pieces)
        # Low-rank factors are a modality's own: tasks that reach other parameters of a group are no pair in it.
        group = group if gradients.sizes.setdefault(group, len(flat)) == len(flat) else f"{group} ({task})"
        gradients.sizes[group] = len(flat)
        if group not in picks:
            picks[group] = sample_of(group, len(flat))
        pick = picks[group]
        flat = flat if pick is None else flat[pick.to(flat.device)]
        world.sum_(flat)
        gradients.vectors.setdefault(group, {}).setdefault(name, []).append(flat.cpu().numpy())


def sample_of(group: str, size: int) -> torch.Tensor | None:
    """[C] the coordinates of a group that are compared, the same for every task and in every run; None: all."""
    if size <= COORDINATES:
        return None
    key = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little")
    rng = np.random.Generator(np.random.Philox(key))
    return torch.from_numpy(np.sort(rng.choice(size, COORDINATES, replace=False)))


def compare_gradients(gradients: Gradients, modalities: Mapping[str, str], l_adapt: int | None) -> dict[str, Any]:
    """What they say, as data. modalities: of each task. l_adapt: of the model; None where it has none.

    `tasks`: `minibatches`, `grad_norm`, and `signal`, the share of its square that other minibatches confirm.
    `pairs`: `group`, `tasks`, `cosine` (None where a gradient is 0), its 90 % `interval`, `negative` (the share of
    resamples below 0), `conflict` (the share of signs that differ), `conflict_interval`. `groups`: `parameters`,
    `measured`, `grad_norm` by task. `proposal`: see `propose`.
    """
    weights = {task: _resamples(task, count) for task, count in _counts(gradients).items()}
    pairs, dots = [], {}
    for group, of_task in gradients.vectors.items():
        arrays = {task: np.stack(vectors) for task, vectors in of_task.items()}
        scale = gradients.sizes[group] / next(iter(arrays.values())).shape[1]
        for a, b in [*combinations(arrays, 2), *((task, task) for task in arrays)]:
            gram = scale * (arrays[a].astype(np.float64) @ arrays[b].astype(np.float64).T)
            dots[group, a, b] = np.einsum("rm,mn,rn->r", weights[a], gram, weights[b])
            if a == b:
                dots[group, a, "noise-free"] = np.array([_confirmed(gram)])
        for a, b in combinations(arrays, 2):
            pairs.append({**_pair(group, a, b, dots), **_signs(arrays[a], arrays[b], weights[a], weights[b])})
    blocks = [group for group in gradients.vectors if group.startswith("shared.blocks.")] or list(
        gradients.vectors
    )
    for a, b in combinations(weights, 2):
        inside = [pair for pair in pairs if pair["group"] in blocks and pair["tasks"] == [a, b]]
        if inside:
            total = {
                (OVERALL, *key): sum(dots[pair["group"], *key] for pair in inside)
                for key in ((a, b), (a, a), (b, b))
            }
            pairs.append({**_pair(OVERALL, a, b, total), **_mean_conflict(inside, gradients.sizes)})
    return {
        "tasks": {task: _task(task, gradients, dots, len(w[0])) for task, w in weights.items()},
        "groups": {
            group: {
                "parameters": gradients.sizes[group],
                "measured": len(next(iter(of_task.values()))[0]),
                "grad_norm": {task: float(np.sqrt(dots[group, task, task][0])) for task in of_task},
            }
            for group, of_task in gradients.vectors.items()
        },
        "pairs": pairs,
        "proposal": propose(pairs, dots, modalities, l_adapt),
    }


def propose(
    pairs: Sequence[Mapping[str, Any]], dots: Mapping[tuple[str, str, str], np.ndarray],
    modalities: Mapping[str, str], l_adapt: int | None,
) -> dict[str, Any]:  # fmt: skip
    """What the cosines suggest; None, with `why`, where nothing can be said.

    `l_adapt`: today's and the first shared blocks in which tasks of different modalities pull apart on average
    (below -CONFLICT); `sureness`: the share of resamples that say the same. `apart`: pairs with a cosine below
    -CONFLICT over all shared blocks and an interval below 0, the most certain first.
    """
    apart = [
        {"tasks": pair["tasks"], "cosine": pair["cosine"], "sureness": pair["negative"]}
        for pair in sorted(pairs, key=lambda p: (-(p["negative"] or 0), p["cosine"] or 0))
        if pair["group"] == OVERALL
        and pair["cosine"] is not None
        and pair["cosine"] < -CONFLICT
        and pair["interval"][1] < 0
    ]
    blocks = sorted(
        {group for group, _, _ in dots if group.startswith("shared.blocks.") and "(" not in group},
        key=lambda group: int(group.rsplit(".", 1)[1]),
    )
    across = [
        (a, b) for a, b in combinations(modalities, 2)
        if modalities[a] != modalities[b] and blocks and (blocks[0], a, b) in dots
    ]  # fmt: skip
    if l_adapt is None or not across:
        why = (
            "the model has no l_adapt" if l_adapt is None else "no two tasks of different modalities share a block"
        )
        return {"l_adapt": None, "sureness": None, "why": why, "apart": apart}
    cosines = np.array([np.mean([_cosines(block, a, b, dots) for a, b in across], axis=0) for block in blocks])
    leading = np.cumprod(cosines < -CONFLICT, axis=0).sum(axis=0)  # [R] blocks from the first on that conflict
    chosen = int(leading[0])
    sure = float((leading[1:] == chosen).mean())
    why = f"in {chosen or 'none'} of the shared blocks, from the first on, do modalities pull apart on average"
    return {"l_adapt": l_adapt + chosen, "sureness": sure, "why": why, "apart": apart}


def curve_points(document: Mapping[str, Any]) -> dict[str, float]:
    """Of a run's curves: `interference/A/B/cosine`, `.../conflict` over all shared blocks, `.../A/grad_norm`."""
    points = {f"interference/{task}/grad_norm": row["grad_norm"] for task, row in document["tasks"].items()}
    for pair in document["pairs"]:
        if pair["group"] == OVERALL and pair["cosine"] is not None:
            a, b = pair["tasks"]
            points[f"interference/{a}/{b}/cosine"] = pair["cosine"]
            points[f"interference/{a}/{b}/conflict"] = pair["conflict"]
    return points


def _counts(gradients: Gradients) -> dict[str, int]:
    return {task: len(v) for of_task in gradients.vectors.values() for task, v in of_task.items()}


def _resamples(task: str, count: int) -> np.ndarray:
    """[1 + R, M] weights of the minibatches of a task: all alike, then drawn with replacement; sum 1."""
    key = int.from_bytes(hashlib.blake2b(task.encode(), digest_size=8).digest(), "little")
    rng = np.random.Generator(np.random.Philox(key))
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn]) / count


def _confirmed(gram: np.ndarray) -> float:
    """The squared norm of the mean gradient without noise: the mean product of different minibatches."""
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count * (count - 1))) if count > 1 else float("nan")


def _cosines(group: str, a: str, b: str, dots: Mapping[tuple[str, str, str], np.ndarray]) -> np.ndarray:
    """[R]. Resampled products over the norms of all minibatches: resampled norms would be too large by noise."""
    norms = dots[group, a, a][0] * dots[group, b, b][0]
    products = dots[group, a, b]
    return np.clip(products / np.sqrt(norms), -1, 1) if norms > 0 else np.full(len(products), np.nan)


def _pair(group: str, a: str, b: str, dots: Mapping[tuple[str, str, str], np.ndarray]) -> dict[str, Any]:
    cosines = _cosines(group, a, b, dots)
    if np.isnan(cosines[0]):
        return {"group": group, "tasks": [a, b], "cosine": None, "interval": None, "negative": None}
    low, high = np.quantile(cosines[1:], [0.05, 0.95])
    return {
        "group": group, "tasks": [a, b], "cosine": float(cosines[0]), "interval": [float(low), float(high)],
        "negative": float((cosines[1:] < 0).mean()),
    }  # fmt: skip


def _signs(a_MC: np.ndarray, b_MC: np.ndarray, w_a: np.ndarray, w_b: np.ndarray) -> dict[str, Any]:
    """`conflict` and its interval; a coordinate where either is 0 does not count."""
    whole = _differing(a_MC.mean(axis=0)[None], b_MC.mean(axis=0)[None])
    if np.isnan(whole[0]):
        return {"conflict": None, "conflict_interval": None}
    step = -(-a_MC.shape[1] // SIGN_COORDINATES)
    shares = _differing(w_a[1:] @ a_MC[:, ::step], w_b[1:] @ b_MC[:, ::step])
    low, high = np.nanquantile(shares, [0.05, 0.95])
    return {"conflict": float(whole[0]), "conflict_interval": [float(low), float(high)]}


def _differing(a_RC: np.ndarray, b_RC: np.ndarray) -> np.ndarray:
    signs = np.sign(a_RC) * np.sign(b_RC)
    counted = (signs != 0).sum(axis=1)
    return np.where(counted > 0, (signs < 0).sum(axis=1) / np.maximum(1, counted), np.nan)


def _mean_conflict(pairs: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Over several groups, by their parameters; intervals are of single groups."""
    known = [(pair["conflict"], sizes[pair["group"]]) for pair in pairs if pair["conflict"] is not None]
    share = sum(conflict * size for conflict, size in known) / sum(size for _, size in known) if known else None
    return {"conflict": share, "conflict_interval": None}


def _task(
    task: str, gradients: Gradients, dots: Mapping[tuple[str, str, str], np.ndarray], count: int
) -> dict[str, Any]:
    own = [group for group, of_task in gradients.vectors.items() if task in of_task]
    square = sum(dots[group, task, task][0] for group in own)
    confirmed = sum(dots[group, task, "noise-free"][0] for group in own)
    signal = float(np.clip(confirmed / square, 0, 1)) if count > 1 and square > 0 else None
    return {"minibatches": count, "grad_norm": float(np.sqrt(square)), "signal": signal}
