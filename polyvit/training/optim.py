"""Learning rate, clipping, and the optimiser over named parameters.

Source of the rules: official release (facts.md, section 4). Steps count from 1.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from polyvit.config import OptimConfig
from polyvit.distributed import is_split, local
from polyvit.errors import UserError
from polyvit.model.sharing import owner_of


def lr_factor(step: int, total: int, warmup: int, decay: Literal["cosine", "linear"] = "cosine") -> float:
    """Decay with linear warmup, in [0, 1]: min(1, step / W) * 0.5 (1 + cos(pi * progress)), or 1 - progress.

    progress = max(0, step - W) / (N - W), one cycle over all tasks. At step N it is 1, so the factor is 0 (the
    release wraps to 1 there, which we do not copy).
    """
    rise = min(1.0, step / warmup) if warmup else 1.0
    progress = min(1.0, max(0, step - warmup) / max(1, total - warmup))
    if decay == "linear":
        return rise * (1.0 - progress)
    return rise * 0.5 * (1.0 + math.cos(math.pi * progress))


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all gradients together, a float32 scalar."""
    norms = torch._foreach_norm(list(gradients))
    return torch.linalg.vector_norm(torch.stack(norms).float())


def clip_(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale in place to `max_norm` where the global norm is at or above it; returns the norm before."""
    norm = global_norm(gradients)
    scale_to_(gradients, norm, max_norm)
    return norm


def scale_to_(gradients: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale in place by max_norm / norm, where that is below 1."""
    torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1.0))


def belongs(name: str, part: str) -> bool:
    """Whether `optim.frozen` means a parameter by `part`. `shared` is what all share, no modality's own."""
    first, _, rest = part.partition(".")
    if first == "private":
        return owner_of(name) == rest
    inside = name == part or name.startswith(f"{part}.")
    return inside and (first != "shared" or owner_of(name) is None or "private" in rest.split("."))


def lr_coefs(names: Iterable[str], coefs: Mapping[str, float]) -> dict[str, float]:
    """{parameter: coefficient} of `optim.lr_coefs`, 1 where no part fits. Raises UserError for an unknown part."""
    names = list(names)
    if idle := [part for part in coefs if not any(belongs(name, part) for name in names)]:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
        raise UserError(f"optim.lr_coefs: the model has no part {idle[0]!r}; parts are {parts}, or begin so")
    fits = {name: [part for part in coefs if belongs(name, part)] for name in names}
    return {name: coefs[max(parts, key=len)] if parts else 1.0 for name, parts in fits.items()}


def _with_factors(coefs: dict[str, float], factors: Mapping[str, float] | None) -> dict[str, float]:
    return {name: coef * factors[name] for name, coef in coefs.items()} if factors else coefs


def on_gpu(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether they lie on a GPU, where torch has fused kernels for whole lists of them."""
    return bool(parameters) and all(p.device.type == "cuda" for p in parameters.values())


def decays(name: str, parameter: nn.Parameter, undecayed: Sequence[str]) -> bool:
    """Whether weight decay draws a parameter to zero: not where `optim.no_weight_decay` names it."""
    if "vectors" in undecayed and parameter.ndim < 2:
        return False
    return not any(name.rpartition(".")[2] == part or belongs(name, part) for part in undecayed)


def check_undecayed(names: Iterable[str], undecayed: Sequence[str]) -> None:
    """Raises UserError where `optim.no_weight_decay` names what the model does not have. What it names by default
    may be missing: not every model has class tokens."""
    names, usual = list(names), OptimConfig.model_fields["no_weight_decay"].default
    for part in undecayed:
        if part not in usual and not any(n.rpartition(".")[2] == part or belongs(n, part) for n in names):
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(
                f"optim.no_weight_decay: the model has no part {part!r}; parts are {parts}, or begin so; else the "
                "last part of parameters' names, or `vectors`"
            )


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return local(gradient) if is_split(gradient) else gradient


@dataclass(frozen=True)
class _Group:
    """Parameters that one call updates, with this rank's part of each and of its state."""

    names: list[str]
    values: list[Tensor]
    coef: float
    decays: bool = True


class MomentumSGD:
    """SGD with momentum m = mu * m + g, p -= lr * m (no Nesterov), by parameter name.

    `inactive_params: frozen` leaves a parameter without a gradient alone, with its momentum: the step's task does
    not reach it. `momentum` moves it on by its decaying momentum, with the learning rate of whichever task is
    trained, as the official code does; a parameter never yet reached stays still either way.
    bfloat16 momentum follows the release: the decay is rounded to bfloat16 too, sums are in float32.
    Of a parameter that is divided among ranks, this rank's part is all it knows (see `polyvit.distributed.fsdp`).
    fused: one kernel of torch's for all parameters, on a GPU, where the momentum is float32. Build it when the
    parameters are where they stay.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimConfig,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self.coefs = _with_factors(lr_coefs(self.parameters, config.lr_coefs), factors)
        self.dtype = torch.bfloat16 if config.momentum_dtype == "bfloat16" else torch.float32
        self.decay = float(torch.tensor(config.momentum, dtype=self.dtype))
        self.fused = on_gpu(self.parameters) and self.dtype == torch.float32
        self.momentum: dict[str, Tensor] = {}
        self._groups: dict[tuple[str, ...], list[_Group]] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the parameters' `.grad`; None means not reached."""
        move_on = self.config.inactive_params == "momentum"
        names = tuple(
            n for n, p in self.parameters.items() if p.grad is not None or (move_on and n in self.momentum)
        )
        if names not in self._groups:
            self._groups[names] = self._grouped(names)
        for group in self._groups[names]:
            self._update(group, lr * group.coef)

    def _grouped(self, names: Sequence[str]) -> list[_Group]:
        values = {n: local(self.parameters[n]) for n in names}
        for name, value in values.items():
            if name not in self.momentum:
                self.momentum[name] = torch.zeros_like(value, dtype=self.dtype)
        coefs = dict.fromkeys(self.coefs[n] for n in names)
        alike = {coef: [n for n in names if self.coefs[n] == coef] for coef in coefs}
        return [_Group(chosen, [values[n] for n in chosen], coef) for coef, chosen in alike.items()]

    def _update(self, group: _Group, lr: float) -> None:
        values, buffers = group.values, [self.momentum[n] for n in group.names]
        parameters = [self.parameters[n] for n in group.names]
        grads = [
            torch.zeros_like(v) if p.grad is None else _gradient(p)
            for p, v in zip(parameters, values, strict=True)
        ]
        if self.fused and self.decay:  # it refuses a momentum of 0
            torch._fused_sgd_(
                values, grads, buffers, weight_decay=self.config.weight_decay, momentum=self.decay, lr=lr,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        if self.config.weight_decay:
            grads = list(torch._foreach_add(grads, values, alpha=self.config.weight_decay))
        if self.dtype == torch.float32:
            torch._foreach_mul_(buffers, self.decay)
            torch._foreach_add_(buffers, grads)
            moves = buffers
        else:
            moves = [g + self.decay * m.float() for g, m in zip(grads, buffers, strict=True)]
            torch._foreach_copy_(buffers, moves)
        torch._foreach_add_(values, moves, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""
        return {f"momentum.{name}": buffer for name, buffer in self.momentum.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises UserError for another optimiser's."""
        _check_state(state, {"momentum"}, "sgd")
        self._groups.clear()
        self.momentum = {
            name.removeprefix("momentum."): local(
                tensor.to(self.parameters[name.removeprefix("momentum.")].device)
            )
            for name, tensor in state.items()
        }


class AdamW:
    """torch's AdamW step, by parameter name; parameters without a gradient are left alone.

    `torch.optim.AdamW` itself would import torch's compiler (2 s in every worker) to do no more. Of a parameter
    that is divided among ranks, this rank's part is all it knows. fused: one kernel of torch's for all
    parameters, on a GPU, with the numbers of their steps there too. Build it when the parameters are where they
    stay.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimConfig,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self.coefs = _with_factors(lr_coefs(self.parameters, config.lr_coefs), factors)
        check_undecayed(self.parameters, config.no_weight_decay)
        self.kept = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if config.amsgrad else ()))
        self.fused = on_gpu(self.parameters)
        self.slots: dict[str, dict[str, Tensor]] = {}
        self._groups: dict[tuple[str, ...], list[_Group]] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the parameters' `.grad`. What `optim.no_weight_decay` names does not decay."""
        names = tuple(n for n, p in self.parameters.items() if p.grad is not None)
        if names not in self._groups:
            self._groups[names] = self._grouped(names)
        for group in self._groups[names]:
            self._update(group, lr * group.coef, self.config.weight_decay if group.decays else 0.0)

    def _grouped(self, names: Sequence[str]) -> list[_Group]:
        values = {n: local(self.parameters[n]) for n in names}
        for name, value in values.items():
            if name not in self.slots:
                averages = {key: torch.zeros_like(value) for key in self.kept}
                step = torch.zeros((), device=value.device if self.fused else "cpu")
                self.slots[name] = {"step": step, **averages}
        undecayed = self.config.no_weight_decay
        kinds = {n: (not decays(n, self.parameters[n], undecayed), self.coefs[n]) for n in names}
        alike = {kind: [n for n in names if kinds[n] == kind] for kind in sorted(set(kinds.values()))}
        return [
            _Group(chosen, [values[n] for n in chosen], coef, not spared)
            for (spared, coef), chosen in alike.items()
        ]

    def _update(self, group: _Group, lr: float, weight_decay: float) -> None:
        slots = [self.slots[n] for n in group.names]
        beta1, beta2 = self.config.betas
        state = (
            group.values,
            [_gradient(self.parameters[n]) for n in group.names],
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [slot["max_exp_avg_sq"] for slot in slots] if self.config.amsgrad else [],
            [slot["step"] for slot in slots],
        )
        if self.fused:
            torch._foreach_add_(state[-1], 1.0)
            torch._fused_adamw_(
                *state, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=self.config.eps,
                amsgrad=self.config.amsgrad, maximize=False,
            )  # fmt: skip
            return
        adamw(
            *state, foreach=True, amsgrad=self.config.amsgrad, beta1=beta1, beta2=beta2, lr=lr,
            weight_decay=weight_decay, eps=self.config.eps, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint: `exp_avg.<name>`, `exp_avg_sq.<name>`, `step.<name>`, of AMSGrad
        `max_exp_avg_sq.<name>`."""
        return {f"{key}.{name}": value for name, slot in self.slots.items() for key, value in slot.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises UserError for another optimiser's."""
        _check_state(state, {"step", *self.kept}, "adamw")
        for full, value in state.items():
            key, _, name = full.partition(".")
            device = "cpu" if key == "step" and not self.fused else self.parameters[name].device
            self.slots.setdefault(name, {})[key] = local(value.to(device))


def _check_state(state: Mapping[str, Tensor], keys: set[str], kind: str) -> None:
    foreign = sorted({name.partition(".")[0] for name in state} - keys)
    if foreign:
        raise UserError(
            f"optim.kind={kind} cannot go on from an optimiser state of {', '.join(foreign)}; "
            "resume with the optim.kind that the checkpoint was trained with"
        )


Optimiser = MomentumSGD | AdamW


def build_optimiser(
    parameters: Mapping[str, nn.Parameter], config: OptimConfig, factors: Mapping[str, float] | None = None
) -> Optimiser:
    """The optimiser that `optim.kind` names. factors: of each parameter's learning rate, besides
    `optim.lr_coefs`."""
    kind = MomentumSGD if config.kind == "sgd" else AdamW
    return kind(parameters, config, factors)
