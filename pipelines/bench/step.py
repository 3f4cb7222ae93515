"""Our training step against timm's and Hugging Face's and a bare block, in one process, in interleaved rounds.

    polyvit bench step [--json FILE] [--modalities image,video,audio] [--precision float32,bfloat16]
                       [--rounds 7] [--threads N] [--quick]

ViT-Base layers with exact GELU for all, at two depths: their difference is the time of a block, the rest is
embedding, head, loss and optimiser; 12 layers are extrapolated. A ratio is a contender's time over ours for the
deeper model within a round, the median over rounds: above 1 we are faster.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from pipelines.bench import kit
from pipelines.bench.step_peers import PEERS, Case, Contender, contender, installed
from pipelines.runtime import command_line, console
from polyvit.config import ModelConfig
from polyvit.errors import UserError
from polyvit.model import FORMULA, training_flops
from polyvit.training import PeakBytes

FEW, MANY, FULL = 1, 3, 12
BATCHES = {"cpu": {"image": 4, "video": 1, "audio": 2}, "cuda": {"image": 128, "video": 16, "audio": 64}}
SMALL_INPUTS = {
    "image": {"size": 32}, "video": {"frames": 4, "size": [32, 32]}, "audio": {"frames": 64, "mel_bins": 32},
}  # fmt: skip
QUICK = {"width": 64, "num_heads": 2, "mlp_dim": 128, **SMALL_INPUTS}
EXTRA_TOKENS = {("audio", "hf-sdpa"): 1, ("audio", "hf-eager"): 1}
"""AST has a distillation token besides the class token."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit bench step`."""
    parser = command_line.parser("bench step", "Our training step against peers of the same shapes.")
    parser.add_argument("--modalities", default="image,video,audio", help="comma-separated")
    parser.add_argument("--precision", default="float32,bfloat16", help="comma-separated; bfloat16 is autocast")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions; medians count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes: a check of the benchmark, no measurement"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modalities = _choice(arguments.modalities, tuple(PEERS), "--modalities")
    precisions = _choice(arguments.precision, ("float32", "bfloat16"), "--precision")
    if arguments.rounds < 1 or arguments.threads < 1:
        raise UserError("--rounds and --threads must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    before, where = os.getloadavg()[0], kit.machine(device)
    tables = []
    try:
        for precision in precisions:
            peak = kit.peak_of(device, precision)
            for modality in modalities:
                for compiled in [False, True] if device.type == "cuda" else [False]:
                    model = ModelConfig.model_validate({"gelu": "erf", **(QUICK if arguments.quick else {})})
                    batch = BATCHES[device.type][modality]
                    case = Case(modality, model, batch, precision, device, compiled)  # type: ignore[arg-type]
                    tables.append(measure(case, arguments.rounds, peak))
                    print_table(tables[-1])
    finally:
        torch.set_num_threads(threads)
    claims = kit.claims(before)
    console.print(f"absolute numbers may be quoted: {claims['absolute']} ({claims['why']})")
    return {
        "benchmark": "step", "quick": arguments.quick, "rounds": arguments.rounds, "machine": where,
        "claims": claims, "flop_formula": FORMULA, "layers": {"timed": [FEW, MANY], "extrapolated": FULL},
        "tables": tables,
    }  # fmt: skip


def _choice(names: str, allowed: tuple[str, ...], option: str) -> list[str]:
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in allowed]:
        raise UserError(f"{option} {unknown[0]}: choose from {', '.join(allowed)}")
    return chosen


def measure(case: Case, rounds: int, peak: dict[str, Any]) -> dict[str, Any]:
    """One table: every contender that is installed, at both depths. Token counts are checked before anything is
    timed."""
    names = ["ours", *(name for name in PEERS[case.modality] if installed(name))]
    built = {(name, depth): contender(name, _at_depth(case, depth)) for name in names for depth in (FEW, MANY)}
    check_tokens(case, built)
    times = kit.interleaved({key: entry.step for key, entry in built.items()}, rounds, case.device)
    flops = training_flops(case.model.model_copy(update={"depth": FULL}), case.modality, 10) * case.batch
    rows = {}
    ours = _steps(times, "ours")
    for name in names:
        whole = _steps(times, name)
        milliseconds = statistics.median(whole)
        block = statistics.median(times[name, MANY]) - statistics.median(times[name, FEW])
        rows[name] = {
            "tokens": built[name, MANY].tokens,
            "step_ms": milliseconds,
            "block_ms": block / (MANY - FEW),
            "rest_ms": statistics.median(times[name, FEW]) - FEW * block / (MANY - FEW),
            "examples_per_s": case.batch / milliseconds * 1000,
            "mfu": flops / milliseconds * 1000 / peak["flops"],
            "peak_mb": _peak_bytes(built[name, MANY], case.device) / 1e6,
            "ratio_to_ours": kit.ratio(times[name, MANY], times["ours", MANY]),
            "extrapolated_ratio_to_ours": milliseconds / statistics.median(ours),
        }
    return {
        "modality": case.modality, "batch": case.batch, "precision": case.precision, "compiled": case.compile,
        "contenders": rows, "absent": [n for n in PEERS[case.modality] if n not in names],
        "mfu_is_a_share_of": peak, "flops_per_step": flops,
    }  # fmt: skip


def _at_depth(case: Case, depth: int) -> Case:
    model = case.model.model_copy(update={"depth": depth})
    return Case(case.modality, model, case.batch, case.precision, case.device, case.compile)


def _steps(times: dict[Any, list[float]], name: str) -> list[float]:
    """Milliseconds of a step of FULL layers in each round, extrapolated from both depths."""
    lines = zip(times[name, FEW], times[name, MANY], strict=True)
    return [few + (many - few) / (MANY - FEW) * (FULL - FEW) for few, many in lines]


def check_tokens(case: Case, built: dict[tuple[str, int], Contender]) -> None:
    """Raises RuntimeError where a contender's blocks get another number of tokens than ours: nothing could be
    compared."""
    tokens = case.model.num_tokens(case.modality) + 1
    for (name, _), built_contender in built.items():
        expected = tokens + EXTRA_TOKENS.get((case.modality, name), 0)
        if built_contender.tokens != expected:
            raise RuntimeError(
                f"{case.modality}: {name} has {built_contender.tokens} tokens where {expected} are expected"
            )


def _peak_bytes(contender: Contender, device: torch.device) -> int:
    """Peak memory of one step besides parameters and momentum, in bytes: what operations allocate on a CPU, what
    the allocator reports on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        contender.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakBytes() as counted:
        contender.step()
    return counted.peak


def print_table(document: dict[str, Any]) -> None:
    """One table of `measure`."""
    kind = f"{document['precision']}{', compiled' if document['compiled'] else ''}"
    table = Table(title=f"{document['modality']}, batch {document['batch']}, {kind}, {FULL} layers extrapolated")
    for column in ("", "tokens", "step ms", "block ms", "rest ms", "examples/s", "MFU", "peak MB", "x ours"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in document["contenders"].items():
        table.add_row(
            name, str(row["tokens"]), f"{row['step_ms']:.1f}", f"{row['block_ms']:.1f}", f"{row['rest_ms']:.1f}",
            f"{row['examples_per_s']:.2f}", f"{row['mfu']:.0%}", f"{row['peak_mb']:.0f}",
            f"{row['ratio_to_ours']:.2f}",
        )  # fmt: skip
    console.print(table)
    if document["absent"]:
        console.print(f"not installed: {', '.join(document['absent'])} (pip install 'polyvit[bench]')")


if __name__ == "__main__":
    sys.exit(main())
