"""The five schedules compared: a small PolyViT on nine real tasks, equal minibatches, several seeds.

    python tests/benchmarks/compare_schedules.py --data DIR --out FOLDER [--steps N] [--seeds 3] [--threads 1]

In: a folder of nine datasets as in ../shared/data. Out, in FOLDER: `<schedule>-<seed>.json` of every finished
run (taken as it is by the next call with the same settings, so a comparison can be stopped and gone on with),
`results.json`, `table.md`, `schedules.png`. In this process and its forks, without Ray: the package's plan, loop
and evaluation.

What is equal: minibatches in all, model, batches, AdamW, peak learning rate (coefficient 1 for every task), share
of steps spent on warmup, one cosine over the run, the seeds. `accumulating` takes a minibatch of every task a
step, so it makes a ninth of the updates. Examples are decoded once, in their evaluation view, and kept: no
augmentation, so that a run is nearly all model time.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from arrays_kit import token_dtype, token_shape

from pipelines.feed.worker_feed import make_decoder
from pipelines.index import Indexes, task_roots
from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, ScheduleConfig, load_config
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.minibatch import Decoder, Minibatch, Quarantined, Request, multi_hot
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.evaluation.results import result_rows
from polyvit.model.polyvit import PolyViT
from polyvit.schedule.plan import Plan
from polyvit.schedule.schedule import build_schedule
from polyvit.training.loop import train
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess

SCHEDULES = ("weighted", "uniform", "alternating", "accumulating", "task_by_task")
assert set(SCHEDULES) == set(get_args(ScheduleConfig.model_fields["kind"].annotation))
DATA = os.environ.get("POLYVIT_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data"
RECIPE = "tiny-nine"
"""Tasks, their shares of the steps, the optimiser."""
MODEL = (
    "model.width=64", "model.depth=3", "model.num_heads=4", "model.mlp_dim=256",
    "model.image={size: 32, patch_size: 8}",
    "model.video={frames: 8, size: 32, tubelet_size: [4, 8, 8]}",
    "model.audio={frames: 256, mel_bins: 64, patch_size: [32, 16], channels: 1, mean: -4.0, std: 4.0}",
)  # fmt: skip
BATCH = {"image": 32, "video": 16, "audio": 16}
WARMUP = 0.035
"""Share of the steps, as in the recipe."""
EVALUATIONS = 12
"""Points of a forgetting curve."""


class Cache:
    """A Decoder that decodes each example once, in its evaluation view, and keeps the tokens."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.kept: dict[tuple[str, str], np.ndarray | Quarantined] = {}

    def decode(self, request: Request) -> Minibatch:
        """As `Decoder.decode`, without augmentation; a broken example gives way to the first sound spare."""
        chosen, tokens, bad = [], [], []
        for example in request.examples:
            for candidate in (example, *request.spares):
                decoded = self._tokens(request.task, candidate)
                if isinstance(decoded, np.ndarray):
                    chosen.append(candidate)
                    tokens.append(decoded)
                    break
                bad.append(decoded)
        task, spec = self.decoder.tasks[request.task], self.decoder.inputs[request.task]
        empty = np.zeros((0, *token_shape(spec)), token_dtype(task))
        return Minibatch(
            request.step, request.task, {"tokens": np.stack(tokens) if tokens else empty},
            multi_hot([example.labels for example in chosen], task.num_classes),
            tuple(example.key for example in chosen), request.first_slot, request.global_batch, tuple(bad),
        )  # fmt: skip

    def _tokens(self, task: str, example: Any) -> np.ndarray | Quarantined:
        place = (task, example.key)
        if place not in self.kept:
            alone = self.decoder.decode(Request(0, task, [example]))
            self.kept[place] = alone.bad[0] if alone.bad else alone.inputs["tokens"][0]
        return self.kept[place]


class Silent:
    """Events of a run that nobody follows."""

    def progress(self, snapshot: dict[str, Any]) -> None:
        """Nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Nothing: the evaluations stay in the state."""

    def checkpoint(self, state: TrainState) -> None:
        """Nothing."""


@dataclass
class Comparison:
    """What all runs share."""

    data: Path
    out: Path
    steps: int
    cache: Cache | None = None
    indexes: Indexes = field(default_factory=lambda: Indexes({}, {}))

    def config(self, kind: str, seed: int) -> RunConfig:
        """One run's config: warmup and evaluations take the same share of any schedule's steps."""
        first = self._config(kind, seed, ())
        total = len(build_schedule(first.schedule, first.tasks, seed))
        every, warmup = max(1, round(total / EVALUATIONS)), max(1, round(WARMUP * total))
        return self._config(kind, seed, (f"train.eval_every={every}", f"optim.warmup_steps={warmup}"))

    def _config(self, kind: str, seed: int, more: Sequence[str]) -> RunConfig:
        tasks = load_config(RECIPE).tasks
        batches = [f"tasks.{name}.batch={BATCH[task.modality]}" for name, task in tasks.items()]
        run = (f"schedule.kind={kind}", f"schedule.steps={self.steps}", "schedule.accumulating_lr_coef=1")
        return load_config(RECIPE, (*MODEL, *batches, *run, f"seed={seed}", f"data.root={self.data}", *more))

    def settings(self, kind: str, seed: int) -> dict[str, Any]:
        """What must be equal for a kept run to stand in for a new one."""
        return self.config(kind, seed).model_dump(mode="json", exclude={"data", "storage"}, exclude_defaults=True)

    def kept(self, kind: str, seed: int) -> dict[str, Any] | None:
        """A run that an earlier call finished with the same settings."""
        path = self.out / f"{kind}-{seed}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        return result if result and result["settings"] == self.settings(kind, seed) else None

    def run(self, job: tuple[str, int]) -> str:
        """Train one model and write its result; returns a line that says so."""
        kind, seed = job
        began = time.perf_counter()
        document = {"schedule": kind, "seed": seed, "settings": self.settings(kind, seed)}
        document |= self._train(self.config(kind, seed))
        document["seconds"] = round(time.perf_counter() - began, 1)
        path = self.out / f"{kind}-{seed}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(document))
        partial.replace(path)
        return f"{kind} seed {seed}: mean skill {summary([document])['skill'][0]:.3f}, {document['seconds']} s"

    def _train(self, config: RunConfig) -> dict[str, Any]:
        schedule = build_schedule(config.schedule, config.tasks, config.seed)
        sizes = {name: scan.counts()["train"] for name, scan in self.indexes.scans.items()}
        plan = Plan(schedule, config.tasks, sizes, config.seed)
        requests = Requests.of(config, plan, self.indexes.scans, 0, 1)
        feed = InlineFeed(requests, self.cache)  # type: ignore[arg-type]
        model = PolyViT(config.model, config.tasks, seed=config.seed)
        optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
        state = train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), TrainState(), Silent())
        last = state.evaluations[-1]["tasks"]
        spans = {name: [int(n) for n in schedule.steps_of(name)[[0, -1]]] for name in config.tasks}
        return {
            "updates": len(schedule),
            "minibatches": sum(schedule.counts().values()),
            "tasks": result_rows(config, schedule, self.indexes.scans, last, len(schedule)),
            "spans": spans,
            "curves": [
                [e["step"], {name: result["value"] for name, result in e["tasks"].items()}]
                for e in state.evaluations
            ],
        }

    def load(self) -> None:
        """Scan, and decode every example that training and evaluation ask for: before forking."""
        config = self._config("weighted", 0, ())
        roots = task_roots(config)
        scans = {name: scan(task, roots[name], name) for name, task in config.tasks.items()}
        self.indexes = Indexes(scans, roots)
        self.cache = Cache(make_decoder(config, self.indexes))
        for name, task in config.tasks.items():
            for split in ("train", task.eval_split):
                self.cache.decode(Request(0, name, scans[name].split(split)))


def skill(value: float, chance: float) -> float:
    """0 for a guess, 1 for no mistake."""
    return (value - chance) / (1 - chance)


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the seeds of one schedule: mean and sample deviation of each task and of the mean skill.

    forgotten: a run's best skill along its curve minus its last, mean over tasks. The best of many noisy points
    is too high for any schedule, so compare it between schedules.
    """
    names = list(runs[0]["tasks"])
    values = np.array([[run["tasks"][name]["value"] for name in names] for run in runs])
    chances = np.array([runs[0]["tasks"][name]["chance"] for name in names])
    curves = [np.array([[point[name] for name in names] for _, point in run["curves"]]) for run in runs]
    forgotten = [skill(curve.max(axis=0), chances).mean() - skill(curve[-1], chances).mean() for curve in curves]
    return {
        "seeds": len(runs),
        "updates": runs[0]["updates"],
        "minibatches": runs[0]["minibatches"],
        "tasks": {name: _spread(values[:, i]) for i, name in enumerate(names)},
        "skill": _spread(skill(values, chances).mean(axis=1)),
        "forgotten": _spread(np.array(forgotten)),
    }


def _spread(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0]


def table(summaries: Mapping[str, Mapping[str, Any]], first: Mapping[str, Any]) -> str:
    """Markdown: a row a task, a column a schedule."""

    def row(name: str, *cells: str) -> str:
        return f"| {' | '.join((name, *cells))} |"

    def numbers(name: str, pick: Any, *before: str) -> str:
        return row(name, *before, *(f"{m:.3f} ± {sd:.3f}" for m, sd in map(pick, summaries.values())))

    lines = [row("task", "metric", "chance", "majority", *summaries), "|---|---|" + "---:|" * (2 + len(summaries))]
    for name, task in first["tasks"].items():
        majority = "" if task["majority"] is None else f"{task['majority']:.3f}"
        guesses = (task["metric"], f"{task['chance']:.3f}", majority)
        lines.append(numbers(name, lambda s, n=name: s["tasks"][n], *guesses))
    lines.append(numbers("**mean skill**", lambda s: s["skill"], "", "0", ""))
    lines.append(numbers("best on the way − end", lambda s: s["forgotten"], "", "", ""))
    lines.append(row("updates", "", "", "", *(str(s["updates"]) for s in summaries.values())))
    return "\n".join(lines) + "\n"


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], summaries: Mapping[str, Any], path: Path) -> None:
    """PNG: left, mean skill of each schedule; right, each task's curve when trained task by task and weighted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13.5, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.5])
    _draw_means(left, runs, summaries)
    _draw_forgetting(right, runs["task_by_task"][0], runs["weighted"][0])
    figure.savefig(path, dpi=90)
    plt.close(figure)


COLOURS = {"weighted": "#2a78b5", "task_by_task": "#d1495b"}
GREY = "#9aa3ab"


def _draw_means(figure: Any, runs: Mapping[str, Sequence[Any]], summaries: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for row, (kind, entry) in enumerate(summaries.items()):
        mean, deviation = entry["skill"]
        axes.barh(row, mean, xerr=deviation, height=0.62, color=COLOURS.get(kind, GREY), capsize=4)
        each = [summary([run])["skill"][0] for run in runs[kind]]
        axes.plot(each, np.linspace(row - 0.15, row + 0.15, len(each)), "o", ms=4, color="white", mec="#222222")
        axes.text(max(mean + deviation, *each) + 0.008, row, f"{mean:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(summaries)), [kind.replace("_", " ") for kind in summaries], fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(0, 1.22 * max(sum(entry["skill"]) for entry in summaries.values()))
    axes.set_xlabel("mean over tasks of (metric − chance) / (1 − chance)", fontsize=8)
    count, some = len(runs["weighted"]), summaries["weighted"]
    axes.set_title(
        f"After {some['minibatches']} minibatches\nbar: mean ± sd of {count} seeds; dots: seeds", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_forgetting(figure: Any, alone: Mapping[str, Any], mixed: Mapping[str, Any]) -> None:
    order = sorted(alone["spans"], key=lambda name: alone["spans"][name][0])
    grid = figure.subplots(3, 3, sharex=True)
    for place, (name, axes) in enumerate(zip(order, grid.flat, strict=True)):
        start, stop = alone["spans"][name]
        axes.axvspan(start, stop, color=COLOURS["task_by_task"], alpha=0.18, lw=0)
        for run, kind in ((mixed, "weighted"), (alone, "task_by_task")):
            steps, values = zip(*[(step, point[name]) for step, point in run["curves"]], strict=True)
            axes.plot(steps, values, color=COLOURS[kind], lw=1.5, label=kind.replace("_", " "))
        task = alone["tasks"][name]
        axes.axhline(task["chance"], color="#555555", lw=0.8, ls=":", label="chance")
        axes.set_title(f"{place + 1}. {name} ({task['metric']})", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8)
    title = (
        f"Forgetting, seed {alone['seed']}: tasks in the order in which task by task trains them (shaded: when)"
    )
    figure.suptitle(title, fontsize=9)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing, then writes table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the nine datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; kept between calls")
    parser.add_argument("--steps", type=int, default=1200, help="minibatches of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(arguments.data.absolute(), arguments.out, arguments.steps)
    # Seed by seed, so that a whole comparison is there early.
    jobs = [(kind, seed) for seed in range(arguments.seeds) for kind in SCHEDULES]
    if missing := [job for job in jobs if not comparison.kept(*job)]:
        comparison.load()
        print(f"{len(missing)} runs", flush=True)
        # Forked, so that all processes share the decoded examples.
        with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
            for line in pool.imap_unordered(comparison.run, missing):
                print(line, flush=True)
    report(comparison, arguments.seeds)
    return 0


def report(comparison: Comparison, seeds: int) -> None:
    """results.json, table.md and schedules.png of the finished runs."""
    runs = {kind: [comparison.kept(kind, seed) for seed in range(seeds)] for kind in SCHEDULES}
    summaries = {kind: summary(results) for kind, results in runs.items()}
    (comparison.out / "results.json").write_text(json.dumps(summaries, indent=1) + "\n")
    text = table(summaries, runs["weighted"][0])
    (comparison.out / "table.md").write_text(text)
    draw(runs, summaries, comparison.out / "schedules.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
