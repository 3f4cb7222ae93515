"""`init.path` and `optim.frozen` of models that share weights: AVBert, PolyViT with low-rank private factors."""

import copy
from pathlib import Path
from typing import Any

import avbert_small
import pytest
import torch
from safetensors.torch import save_file
from small import fresh, small_config
from torch import Tensor
from use_kit import model_without, trained, write_checkpoint

from polyvit.config import RunConfig, validate_config
from polyvit.deploy.extend import assemble, extension_config
from polyvit.errors import UserError
from polyvit.model import build_model
from polyvit.model.avbert import AVBert, state_to_official
from polyvit.model.sharing import owner_of
from polyvit.training.initialisation import check_init, freeze_parts, init_problems, initialise_model

pytestmark = pytest.mark.usefixtures("one_thread")
LOW_RANK = ("model.sharing.modalities=low_rank", "model.sharing.rank=4")


def starting(path: Path, **model: Any) -> RunConfig:
    """The tiny AVBert's config with one task that the checkpoint has, one that it has not, and `init.path`."""
    changed = copy.deepcopy(avbert_small.TINY)
    changed["model"] |= model
    changed["tasks"]["three"] = {**changed["tasks"].pop("two"), "num_classes": 7}
    return validate_config({**changed, "init": {"path": str(path)}})


# --------------------------------------------------------------------------------------- AVBert, a file of ours


def test_an_avbert_starts_from_a_checkpoint_of_ours(tmp_path: Path) -> None:
    """Everything of one name, running averages too; the new head stays random. Clips and dropout may differ."""
    checkpoint, old, _ = avbert_small.trained(tmp_path)
    clips = {**avbert_small.TINY["model"]["audiovisual"], "clips": 2}
    config = starting(checkpoint, dropout=0.0, audiovisual=clips)
    check_init(config)
    model = build_model(config, seed=9)
    head = model.heads["three"].weight.clone()  # type: ignore[union-attr]
    report = initialise_model(model, config)
    state, was = model.state_dict(), old.state_dict()
    assert report.random == ("heads.three.weight", "heads.three.bias")
    assert report.unused == ("heads.two.bias", "heads.two.weight")
    assert "visual_cnn.stem.norm.running_mean" in report.loaded
    assert all(torch.equal(state[name], was[name]) for name in report.loaded)
    assert torch.equal(model.heads["three"].weight, head)
    assert "AVBert checkpoint" in report.table()
    assert len(report.table().splitlines()) < 60


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"width": 32}, "model.width=32: the checkpoint has 16"),
        ({"sharing": {"rank": 8}}, "model.sharing.rank=8: the checkpoint has 4"),
        ({"sharing": {"roles": "full"}}, "model.sharing.roles=full: the checkpoint has low_rank"),
        ({"fusion": "late"}, "model.fusion=late: the checkpoint has mid"),
        ({"positions": 9}, "model.positions=9: the checkpoint has 5"),
    ],
)
def test_an_avbert_of_other_shapes_is_named(tmp_path: Path, model: dict[str, Any], says: str) -> None:
    checkpoint, _, _ = avbert_small.trained(tmp_path)
    assert f"init.path: {says}" in init_problems(starting(checkpoint, **model))


def test_a_checkpoint_of_the_other_kind_is_named(tmp_path: Path) -> None:
    polyvit, _, _ = trained(tmp_path)
    assert init_problems(starting(polyvit)) == ["init.path: model.kind=avbert: the checkpoint has polyvit"]
    avbert, _, _ = avbert_small.trained(tmp_path)
    assert init_problems(small_config(f"init.path={avbert}")) == [
        "init.path: model.kind=polyvit: the checkpoint has avbert"
    ]


# -------------------------------------------------------------------------------------- AVBert, an official file


def official(model: AVBert) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_to_official(model.state_dict(), model.config).items()}


@pytest.mark.parametrize("form", ["pre-trained.pth", "fine-tuned.pyth", "bare.pt", "safe.safetensors"])
def test_an_avbert_starts_from_an_official_file(tmp_path: Path, form: str) -> None:
    """In the forms that the official code writes: weights under `state_dict` or `model_state_dict`, of several
    GPUs, with heads, counters and a cached rotation."""
    _, old, _ = avbert_small.trained(tmp_path)
    tree = official(old)
    rotation = next(name for name in tree if name.endswith(".A")).removesuffix("A") + "_B"
    tree |= {"head.linear.weight": torch.ones(2, 2), rotation: torch.eye(4)}
    tree["visual_conv.s1.pathway0_stem.bn.num_batches_tracked"] = torch.tensor(3)
    path = tmp_path / form
    if form == "pre-trained.pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in tree.items()}}, path)
    elif form == "fine-tuned.pyth":
        torch.save({"epoch": 3, "model_state_dict": tree, "head_state_dict": None, "optimizer": {}}, path)
    elif form == "bare.pt":
        torch.save(tree, path)
    else:
        save_file(tree, path)
    config = starting(path)
    check_init(config)
    model = build_model(config, seed=9)
    report = initialise_model(model, config)
    state = model.state_dict()
    for name, tensor in old.state_dict().items():
        if not name.startswith("heads."):
            assert torch.equal(state[name], tensor), name
    assert {name.split(".")[0] for name in report.random} == {"heads"}
    assert report.unused == ("head.linear.weight",)


def test_what_is_wrong_with_an_official_file_is_said(tmp_path: Path) -> None:
    _, old, _ = avbert_small.trained(tmp_path)
    tree = official(old)
    torch.save(tree, tmp_path / "whole.pth")
    (tmp_path / "noise.pth").write_bytes(b"no checkpoint at all")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({name: t for name, t in tree.items() if name != "visual_fc.bias"}, tmp_path / "less.pth")
    torch.save({f"model.{name}": t for name, t in tree.items()}, tmp_path / "prefixed.pth")
    torch.save(old, tmp_path / "pickled.pth")
    for name, model, says in [
        ("absent.pth", {}, "absent.pth cannot be read as a checkpoint"),
        ("noise.pth", {}, "noise.pth cannot be read as a checkpoint"),
        ("pickled.pth", {}, "a .pth of tensors alone"),
        ("list.pth", {}, "holds a list and no parameters by name"),
        ("less.pth", {}, "missing: visual_fc.bias"),
        ("prefixed.pth", {}, "missing: "),
        (
            "whole.pth",
            {"sharing": {"roles": "full"}},
            "model.sharing.layers=all and roles=full",
        ),
        ("whole.pth", {"positions": 9}, "embeddings.visual.positions: the model has (9, 16), the file (5, 16)"),
    ]:
        problems = init_problems(starting(tmp_path / name, **model))
        assert any(says in problem for problem in problems), (name, problems)
        with pytest.raises(UserError):
            initialise_model(build_model(starting(tmp_path / name, **model)), starting(tmp_path / name, **model))


# ------------------------------------------------------------------------------------- PolyViT, private factors


def test_a_new_modality_gets_factors_of_an_old_one_and_trains_them(tmp_path: Path) -> None:
    """Extending with every old part frozen: U stays, the new V are copies that train, the old V stay."""
    base, old = low_rank_base(tmp_path)
    config = extension_config(old, small_config(*LOW_RANK), base)
    assert config.optim.frozen == ("shared",)
    config = extension_config(old, small_config(*LOW_RANK), base, ["shared"], ["picture"])
    assert config.optim.frozen == ("shared", "private.image")
    model, _, _ = fresh(config)
    freeze_parts(model, config.optim.frozen)
    report = initialise_model(model, config)
    state = model.state_dict()
    fresh_names = [name for name in state if ".private.audio." in name]
    assert len(fresh_names) == 6 * 2
    for name in fresh_names:
        assert torch.equal(state[name], state[name.replace(".audio.", ".image.")])
        assert name in model.touched("sound")
    assert all(".private.audio." in n or not n.startswith("shared.") for n in model.touched("sound"))
    what = "adaptor blocks, class token and private factors"
    assert report.notes == (f"{what} of audio start as copies of those of image",)
    whole, whole_config, changed = assemble(build_old(base, old), old, model, config)
    assert not [name for name in changed if name.startswith("shared.")]
    owners = {owner_of(name) for name in whole.state_dict()}
    assert owners == {None, "image", "video", "audio"}
    assert list(whole_config.tasks) == ["picture", "clip", "sound", "word"]


def low_rank_base(tmp_path: Path) -> tuple[Path, RunConfig]:
    _, model, config = trained(tmp_path, *LOW_RANK)
    config = config.model_copy(update={"tasks": {n: config.tasks[n] for n in ("picture", "clip")}})
    kept = build_model(config)
    kept.load_state_dict({n: t for n, t in model.state_dict().items() if n in kept.state_dict()})
    return write_checkpoint(tmp_path / "old" / "step_00000001", kept, config), config


def build_old(base: Path, config: RunConfig) -> Any:
    from polyvit.checkpoint.state import load_trained

    model, _, _ = load_trained(base)
    assert list(model.heads) == list(config.tasks)
    return model


def test_a_plain_checkpoint_does_not_start_a_low_rank_model_by_silence(tmp_path: Path) -> None:
    """Names differ, so without a word all shared blocks would stay random."""
    base, _ = model_without(tmp_path, "sound", "word")
    assert init_problems(small_config(*LOW_RANK, f"init.path={base}")) == [
        "init.path: model.sharing.modalities=low_rank: the checkpoint has full"
    ]
    assert init_problems(small_config("model.sharing.rank=7", f"init.path={base}")) == []  # a rank without use


def test_parts_with_private_factors() -> None:
    """`shared` is what all share; `private.image` and a whole name mean a modality's own."""
    model, _, _ = fresh(small_config(*LOW_RANK))
    freeze_parts(model, ["shared", "private.video", "shared.blocks.0.fc1.private.audio"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name in model.state_dict():
        own = ".private." in name
        expected = name.startswith("shared.") and (
            not own or ".private.video." in name or name == "shared.blocks.0.fc1.private.audio.weight"
        )
        assert (name in frozen) == expected, name
    with pytest.raises(UserError, match=r"no part 'private\.smell'"):
        freeze_parts(model, ["private.smell"])


def test_parts_of_an_avbert() -> None:
    """The message names the parts that this kind of model has; `private.visual`: a transformer's own factors."""
    model = build_model(avbert_small.tiny())
    with pytest.raises(UserError, match="no part 'shared'; parts are summaries, visual_cnn, audio_cnn"):
        freeze_parts(model, ["shared"])
    freeze_parts(model, ["visual_cnn", "private.visual"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"visual_cnn", "transformers"}
    assert all(".private.visual." in name for name in frozen if name.startswith("transformers"))


def test_an_avbert_is_not_extended(tmp_path: Path) -> None:
    checkpoint, _, config = avbert_small.trained(tmp_path)
    with pytest.raises(UserError, match=r"extend works for model\.kind=polyvit.*init\.path"):
        extension_config(config, config, checkpoint)
