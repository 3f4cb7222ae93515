"""Folds, splits and sharing compared by one command each, as the guide to pre-training has them, on toy data."""

import contextlib
import io
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_pretrain_av import COMMANDS

from pipelines import cli
from pipelines.index import of_other_data
from pipelines.tuning.space import trial_config
from polyvit.config import RunConfig, load_config
from polyvit.data.index import read_index
from polyvit.data.layouts.scanner import scan
from polyvit.model import build_model
from polyvit.synthetic.write import write_synthetic

TINY = [
    "model.width=16", "model.depth=1", "model.num_heads=2", "model.mlp_dim=24", "model.positions=6",
    "model.visual_width=2", "model.audio_width=2", "model.blocks=[1,1,1,1]", "model.sharing.rank=4",
    "model.audiovisual={clips: 2, frames: 2, size: 16, mel_bins: 16, spectrogram_frames: 16, sample_rate: 8000}",
    "optim.warmup_steps=0", "train.checkpoint_every=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Toy data, and a store of its own."""
    folder = tmp_path_factory.mktemp("sweeps")
    write_synthetic(folder / "data", tasks=["ucf101", "esc50", "kinetics700"], classes=2, train=24, evaluation=12,
                    side=32)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def swept(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The document of `polyvit sweep`, and what it prints."""
    kept = folder / "sweep.json"
    given = [
        "sweep",
        *arguments,
        f"data.root={folder / 'data'}",
        f"storage={folder / 'runs'}",
        "--json",
        str(kept),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(given) == 0, out.getvalue()
    return json.loads(kept.read_text()), " ".join(out.getvalue().split())


def without_init(key: str) -> list[str]:
    """The words of the guide's sweep over a key, without the model that it starts from."""
    (line,) = (line for line in COMMANDS if key in line)
    return [word for word in shlex.split(line)[1:] if not word.startswith("init.path")]


def started_by(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The config of the sweep that `polyvit sweep` with these words starts; it is not run."""
    started: list[Any] = []
    monkeypatch.setattr("pipelines.tuning.sweep", lambda *given: started.append(given[0]) or {})
    monkeypatch.setattr("pipelines.sweep._print", lambda document: None)
    assert cli.main(["sweep", *words, *TINY, f"data.root={folder / 'data'}", f"storage={folder / 'runs'}"]) == 0
    (config,) = started
    return config


def test_splits_of_the_guide_are_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = started_by(without_init("tasks.ucf101.options"), folder, monkeypatch)
    assert config.sweep.space == {"tasks.ucf101.options.split": [1, 2, 3]}
    held_out = set()
    for split in (1, 2, 3):
        trial = trial_config(config.model_dump(mode="json"), {"tasks.ucf101.options.split": split})
        found = scan(trial.tasks["ucf101"], folder / "data" / "ucf101", "ucf101")
        held_out.add(tuple(example.key for example in found.split("validation")))
    assert len(held_out) == 3


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_folds_of_the_guide(folder: Path) -> None:
    """Each trial holds out its own list; the report has their mean and spread; there is no winner.

    Two of the folds that the guide's line names: each starts a run. All five, and UCF-101's splits, are
    `test_av_layouts`'; that the guide's line of splits is one sweep of three is
    `test_splits_of_the_guide_are_trials`'.
    """
    name, key = "esc50", "fold"
    words = without_init(f"tasks.{name}.options")
    assert words[-1] == f"tasks.{name}.options.{key}=1,2,3,4,5"
    words[-1] = f"tasks.{name}.options.{key}=1,5"
    small = [f"tasks.{name}.steps=2", f"tasks.{name}.batch=2", f"tasks.{name}.augment.clip_seconds=1"]
    document, printed = swept(folder, *words, *TINY, *small)
    values = [int(value) for value in words[-1].partition("=")[2].split(",")]
    trials = {trial["changes"][f"tasks.{name}.options.{key}"]: trial for trial in document["trials"]}
    assert sorted(trials) == values
    held_out = {}
    for value, trial in trials.items():
        index = read_index(Path(trial["folder"]) / "index" / f"{name}.parquet")
        held_out[value] = {example.key for example in index.split("validation")}
        assert {example.key for example in index.split("train")}.isdisjoint(held_out[value])
        row = json.loads((Path(trial["folder"]) / "result.json").read_text())["tasks"][name]
        assert row["eval_examples"] == len(held_out[value]) > 0
    assert sum(map(len, held_out.values())) == len(set().union(*held_out.values()))
    note = re.search(
        rf"{name} over {len(values)} values of tasks.{name}.options.{key}: ([\d.]+) % on average, standard"
        r" deviation [\d.]+", printed
    )  # fmt: skip
    assert note
    scores = [trial["objective"] for trial in trials.values()]
    assert float(note[1]) == pytest.approx(100 * sum(scores) / len(scores), abs=0.06)
    assert note[0].split(":")[0] in " ".join(Path(document["report"]).read_text().split())
    assert document["registered"] is None
    assert "registered none: the trials repeat each other" in printed


def test_what_sharing_policies_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's line is one sweep of six models. That a sweep counts and prints each one's parameters:
    `test_two_trials_a_report_and_a_registered_winner`."""
    (line,) = (line for line in COMMANDS if "model.sharing.roles" in line)
    config = started_by(shlex.split(line)[1:], folder, monkeypatch)
    policies, fusions = ["full", "none", "low_rank"], ["mid", "late"]
    assert config.sweep.space == {"model.sharing.roles": policies, "model.fusion": fusions}
    sizes = {}
    for roles, fusion in itertools.product(policies, fusions):
        changes = {"model.sharing.roles": roles, "model.fusion": fusion}
        trial = trial_config(config.model_dump(mode="json"), changes)
        counts = build_model(trial, seed=1).parameter_table()
        sizes[roles, fusion] = sum(n for role, n in counts.items() if role.startswith("transformers/"))
    for fusion, transformers in (("mid", 3), ("late", 2)):
        assert sizes["none", fusion] == transformers * sizes["full", fusion]
        assert sizes["full", fusion] != sizes["low_rank", fusion] < sizes["none", fusion]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_fold_that_is_not_there_ends_the_command_at_once(folder: Path) -> None:
    given = ["sweep", "avbert-esc50", *TINY, f"data.root={folder / 'data'}", f"storage={folder / 'runs'}",
             "--over", "tasks.esc50.options.fold=1,9", "--name", "nine"]  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main(given) == 2
    said = " ".join(err.getvalue().split())
    assert "tasks.esc50.options.fold=9" in said
    assert not (folder / "runs" / "nine" / "trials").exists()


def test_which_tasks_of_a_trial_read_other_data() -> None:
    base = load_config("tiny-nine", ["data.root=here"])

    def others(*overrides: str) -> list[str]:
        config = of_other_data(load_config("tiny-nine", ["data.root=here", *overrides]), base)
        return [] if config is None else list(config.tasks)

    assert others("model.l_adapt=0", "optim.lr=0.1", "tasks.pets.batch=2", "seed=4") == []
    assert others("tasks.pets.options.x=1", "tasks.cifar10.root=there") == ["cifar10", "pets"]
    assert others("tasks.pets.classes=names.txt") == ["pets"]
    assert others("data.root=there") == list(base.tasks)
