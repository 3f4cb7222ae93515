"""AVBert's parameter names and the official code's, both ways. Pure functions: no files, no model.

In and out: mappings of name to tensor, running averages of batch norm included. Every tensor is taken as it is.
Source: names in sangho-vision/avbert @ 01c12b7.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from polyvit.config import AVBertConfig
from polyvit.errors import UserError
from polyvit.model.avbert.model import AVBert
from polyvit.model.sharing import layer_homes

OFFICIAL_ROLES = {"visual": "single_visual", "audio": "single_audio", "multimodal": "multi"}
BERT = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "ffn1": "intermediate.dense",
    "ffn2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip
"""Part of a layer -> its official name where layers are not shared."""
ALBERT = {
    "query": "attention.query", "key": "attention.key", "value": "attention.value", "out": "attention.dense",
    "norm1": "attention.LayerNorm", "ffn1": "ffn", "ffn2": "ffn_output", "norm2": "full_layer_layer_norm",
}  # fmt: skip
_UNUSED = re.compile(r"\.(?:num_batches_tracked|_B)$")
"""Counters that nothing reads at a fixed momentum, and cached rotations, which may be stale (facts, trap 4)."""
_GROUP = re.compile(r"\.(?:orthogonal_)?ms(\d+)_linear\.")


def official_name(name: str, config: AVBertConfig) -> str:
    """The official name of one of our parameters or buffers, heads apart. Raises UserError for another's."""
    first, _, rest = name.partition(".")
    if first in ("visual_cnn", "audio_cnn"):
        return _cnn_name(first.removesuffix("_cnn"), rest)
    if first == "projections":
        role, part, leaf = rest.split(".")
        return f"{role}_{'fc' if part == 'linear' else 'norm'}.{leaf}"
    if first == "summaries":
        return "summary_encoding.bos_embeddings.weight"
    if first == "embeddings":
        role, _, leaf = rest.partition(".")
        leaves = {"positions": "position_embeddings.weight", "types": "token_type_embeddings.weight"}
        return f"{OFFICIAL_ROLES[role]}_embeddings.{leaves.get(leaf, leaf.replace('norm', 'LayerNorm'))}"
    if first == "transformers":
        return _layer_name(rest, config)
    raise UserError(f"{name} is no part of the official AVBert")


def official_to_state(official: Mapping[str, Tensor], config: AVBertConfig) -> dict[str, Tensor]:
    """Official names -> ours, heads apart; groups that the official code stores and never uses are left out.

    Raises UserError with what is missing and what has no place.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in official.items()}
    given = {name: tensor for name, tensor in given.items() if not _UNUSED.search(name)}
    names = {official_name(ours, config): ours for ours in _our_names(config)}
    spare = {theirs for theirs in given if theirs not in names and _idle(theirs, config)}
    missing, extra = names.keys() - given.keys(), given.keys() - names.keys() - spare
    if missing or extra:
        problems = [f"missing: {name}" for name in sorted(missing)[:5]]
        problems += [f"unknown: {name}" for name in sorted(extra)[:5]]
        raise UserError(
            f"this is no official AVBert of model.fusion={config.fusion},"
            f" model.sharing.layers={config.sharing.layers} and roles={config.sharing.roles} ({len(missing)} names"
            f" are missing, {len(extra)} unknown); set them to the file's", problems,
        )  # fmt: skip
    return {ours: given[theirs] for theirs, ours in names.items()}


def state_to_official(state: Mapping[str, Tensor], config: AVBertConfig) -> dict[str, Tensor]:
    """Ours -> official names, heads apart. Groups that the official code stores and never uses are zeros."""
    official = {official_name(n, config): t for n, t in state.items() if not n.startswith("heads.")}
    if config.sharing.roles != "low_rank_alone":
        return official
    for name, tensor in list(official.items()):
        if match := _GROUP.search(name):
            for group in range(len(config.roles)):
                other = name[: match.start(1)] + str(group) + name[match.end(1) :]
                official.setdefault(other, torch.zeros_like(tensor))
    return official


def _our_names(config: AVBertConfig) -> list[str]:
    with torch.device("meta"):
        return list(AVBert(config, {}).state_dict())


def _cnn_name(role: str, rest: str) -> str:
    pathway = "pathway0_" if role == "visual" else ""
    parts = rest.split(".")
    leaf = parts[-1]
    if parts[0] == "stem":
        which = str(int(parts[1]) + 1) if role == "audio" else ""
        kind = parts[-2] == "conv"
        return f"{role}_conv.s1.{pathway}stem.{'conv' if kind else 'bn'}{which}.{leaf}"
    _, stage, block, where, *unit, kind_name, leaf = parts
    base = f"{role}_conv.s{int(stage) + 2}.{pathway}res{block}."
    suffix = "" if kind_name == "conv" else "_bn"
    if where == "shortcut":
        return f"{base}branch1{suffix}.{leaf}"
    separable = role == "audio" and int(stage) < 2
    letters = ("a", "b1", "b2", "c") if separable else ("a", "b", "c")
    return f"{base}branch2.{letters[int(unit[0])]}{suffix}.{leaf}"


def _layer_name(rest: str, config: AVBertConfig) -> str:
    _, stack, home, part, *leaf = rest.split(".")
    sharing = config.sharing
    owner = "transformer" if stack == "shared" else f"{OFFICIAL_ROLES[stack]}_transformer"
    shared_layers = sharing.layers != "none"
    if shared_layers and max(layer_homes(config.depth, sharing.layers)):
        raise UserError("the official code shares all layers or none; set model.sharing.layers to all or none")
    inner = "encoder.albert_layer_groups.0.albert_layers.0" if shared_layers else f"encoder.layer.{home}"
    theirs = (ALBERT if shared_layers else BERT)[part]
    if sharing.roles.startswith("low_rank") and not part.startswith("norm"):
        before, _, last = theirs.rpartition(".")
        theirs = f"{before}.factor_{last}" if before else f"factor_{last}"
        theirs += "." + _factor_leaf(leaf, config)
        return f"{owner}.{inner}.{theirs}"
    return f"{owner}.{inner}.{theirs}.{leaf[0]}"


def _factor_leaf(leaf: list[str], config: AVBertConfig) -> str:
    if leaf[0] != "private":
        return f"s_linear.{leaf[0]}"
    group = config.roles.index(leaf[1])
    return f"ms{group}_linear.weight" if leaf[2] == "weight" else f"orthogonal_ms{group}_linear.A"


def _idle(name: str, config: AVBertConfig) -> bool:
    """Whether it is a private group that a transformer on its own never uses."""
    return config.sharing.roles == "low_rank_alone" and bool(_GROUP.search(name))


def stage_depths(official: Mapping[str, Tensor]) -> Iterator[int]:
    """Residual blocks of each stage of an official visual CNN, by its names."""
    for stage in range(2, 6):
        blocks = {m[1] for n in official if (m := re.match(rf"visual_conv\.s{stage}\.pathway0_res(\d+)\.", n))}
        yield len(blocks)
