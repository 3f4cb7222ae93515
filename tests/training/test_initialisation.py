"""What a new run starts from by name, and what is frozen."""

from pathlib import Path

import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config
from use_kit import model_without

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.training.initialisation import copy_checkpoint, freeze_parts
from polyvit.training.loop import train
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, RunConfig]:
    """A model that knows pictures and clips, and no sounds."""
    return model_without(tmp_path, "sound", "word")


def test_frozen_parts_do_not_train_whatever_the_optimiser() -> None:
    for optim in ("optim.kind=sgd", "optim.kind=adamw"):
        config = small_config(optim, "optim.weight_decay=0.1", "optim.lr=0.01")
        model, optimiser, schedule = fresh(config)
        frozen = ("shared", "tokenizers.image", "adaptors", "heads.word")
        count = freeze_parts(model, frozen)
        assert count == sum(p.numel() for n, p in model.named_parameters() if n.startswith(frozen))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(
            TrainUnit(model, optimiser),
            schedule,
            ArrayFeed(config),
            config,
            SingleProcess(),
            TrainState(),
            Heard(),
        )
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) == name.startswith(frozen), name


def test_what_cannot_be_frozen() -> None:
    model, _, _ = fresh(small_config())
    with pytest.raises(UserError, match=r"no part 'tokenizers.smell'"):
        freeze_parts(model, ["tokenizers.smell"])
    with pytest.raises(UserError, match="no part 'head'"):
        freeze_parts(model, ["head"])
    model, _, _ = fresh(small_config())
    with pytest.raises(UserError, match="nothing to train for task picture"):
        freeze_parts(model, ["shared", "tokenizers", "adaptors", "heads.picture"])


def test_a_new_modality_starts_from_the_adaptor_blocks_of_an_old_one(base: tuple[Path, RunConfig]) -> None:
    folder, _ = base
    model, _, _ = fresh(small_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = copy_checkpoint(model, folder)
    state = model.state_dict()
    blocks = [name for name in state if name.startswith("adaptors.audio.")]
    assert len(blocks) > 8
    for name in [*blocks, "tokenizers.audio.cls_token"]:
        assert torch.equal(state[name], state[name.replace(".audio.", ".image.")])
        assert name not in report.random
    for name in ("tokenizers.audio.patch_embed.weight", "tokenizers.audio.pos_embed", "heads.word.weight"):
        assert torch.equal(state[name], before[name])
        assert name in report.random
    video = {name: state[name.replace(".audio.", ".video.")] for name in blocks}
    assert any(not torch.equal(state[name], other) for name, other in video.items())
    assert report.notes == ("adaptor blocks and class token of audio start as copies of those of image",)


def test_a_checkpoint_that_does_not_fit(base: tuple[Path, RunConfig]) -> None:
    folder, _ = base
    model, _, _ = fresh(small_config("model.width=32", "model.l_adapt=0"))
    with pytest.raises(UserError, match=r"model.width=32: the checkpoint has 16"):
        copy_checkpoint(model, folder)
    model, _, _ = fresh(small_config("tasks.picture.num_classes=6"))
    with pytest.raises(
        UserError, match=r"heads.picture.weight: the model has \(6, 16\), the checkpoint \(5, 16\)"
    ):
        copy_checkpoint(model, folder)
