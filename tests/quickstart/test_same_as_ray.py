"""`polyvit.train` ends with the weights of `polyvit cotrain` on one worker."""

from pathlib import Path

import pytest
import torch
from pipelines_kit import pair_document
from small import write_yaml

import polyvit
from pipelines.cli import main


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_weights_are_those_of_a_run_on_ray(
    pair_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    document = {**pair_document(pair_root), "storage": str(tmp_path), "train": {"workers": 1}}
    recipe = write_yaml(tmp_path / "pair.yaml", document)
    assert main(["cotrain", str(recipe), "--name", "ray"]) == 0
    here = polyvit.train(recipe, name="here", device="cpu", progress=False)
    by_ray = polyvit.load(tmp_path / "ray", "cpu").module.state_dict()
    for name, tensor in here.model.module.state_dict().items():
        assert torch.equal(tensor, by_ray[name]), name
