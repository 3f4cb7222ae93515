"""The guide to pre-training, command by command, with fewer videos and steps; and what `neighbours` refuses."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import avbert_small
import pytest

from pipelines import cli

GUIDE = (Path(__file__).parents[2] / "docs" / "pretrain-av.md").read_text()
COMMANDS = re.findall(r"^    polyvit (.+)$", GUIDE, re.MULTILINE)
SMALLER = {
    "synth": ["--train", "22", "--evaluation", "8"],
    "demo-av": ["tasks.kinetics700.steps=2", "tasks.kinetics700.batch=4", "optim.warmup_steps=1"],
    "demo-av-finetune": ["tasks.kinetics_sounds.steps=2", "tasks.kinetics_sounds.batch=4", "optim.warmup_steps=1"],
}


def arguments(line: str) -> list[str]:
    """A command of the guide made small; of a sweep the first two values of one key."""
    words = shlex.split(line, comments=True)
    if words[0] == "synth":
        given = " ".join(words)
        return re.sub(r"--(train|evaluation) \d+", "", given).split() + SMALLER["synth"]
    if words[0] == "sweep":
        words = [*words[:2], "--over", "init.path=null,runs/pretrained"]
    return [*words, *SMALLER.get(words[1], [])]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_every_command_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But folds, splits and sharing, which `test_av_sweeps.py` runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = [line for line in COMMANDS if "options" not in line and "sharing" not in line]
    assert [line.split()[0] for line in lines] == ["synth", "cotrain", "neighbours", "sweep"]
    for line in lines:
        assert cli.main(arguments(line)) == 0, line
    assert (tmp_path / "neighbours.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "runs" / "pretrained" / "result.json").read_text())
    assert 0 < result["tasks"]["kinetics700"]["chance"] < 0.1
    starts = list((tmp_path / "runs").glob("demo-av-finetune-*/trials/*/init.txt"))
    assert len(starts) == 1, "of two trials one starts from the pre-trained run"
    assert "visual_cnn" in starts[0].read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--out", "n.png", "--task", "one"], ["--task one", "no contrastive task"]),
        (["--out", "n.jpg"], ["n.jpg", ".png"]),
        (["--out", "n.png", "--clips", "0"], ["--clips", "1 or more"]),
    ],
)
def test_one_message_for_a_mistake(tmp_path: Path, given: list[str], words: list[str]) -> None:
    checkpoint, _, _ = avbert_small.trained(tmp_path)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main(["neighbours", str(checkpoint), "--data", str(tmp_path), *given]) == 2
    said = " ".join(err.getvalue().split())
    assert all(word in said for word in words)
