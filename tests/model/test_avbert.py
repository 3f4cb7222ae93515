"""AVBert: counts at the published size, what steps reach, dropout, batch norm, resume, ranks, compile."""

import copy
from pathlib import Path
from typing import Any

import av_kit as kit
import pytest
import torch
from avbert_small import TINY, minibatch, tiny
from safetensors.torch import load_file

from pipelines.plan import main as plan_main
from pipelines.plan import role_rows
from polyvit.checkpoint.state import (
    TrainState,
    TrainUnit,
    checkpoint_data,
    load_trained,
    load_training,
    training_tensors,
)
from polyvit.config import AVBertConfig, RoleSharing, RunConfig, load_config, recipe_names, validate_config
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.model import build_model, parameters_of, touched_parameters, training_flops
from polyvit.model.avbert import AVBert, official_to_state, state_to_official
from polyvit.model.avbert.resnet import BatchNorm
from polyvit.model.avbert.transformer import dropout
from polyvit.training import Ema, train_step
from polyvit.training.microbatch import FakePass, pass_peak
from polyvit.training.optim import build_optimiser

pytestmark = pytest.mark.usefixtures("one_thread")


def unit_of(config: RunConfig) -> TrainUnit:
    model = build_model(config, seed=config.seed)
    return TrainUnit(model, build_optimiser(dict(model.named_parameters()), config.optim), Ema(model, 0.9))


def advance(unit: TrainUnit, config: RunConfig, steps: range) -> None:
    for step in steps:
        task = ("one", "two")[step % 2]
        train_step(unit.model, unit.optimiser, [minibatch(config, task, step)], 1e-2, config, SingleProcess())
        assert unit.ema is not None
        unit.ema.update()


# ------------------------------------------------------------------------------------------------------ counts

PUBLISHED = {
    ("none", "none"): (42_527_232, 127_581_696, 85_054_464),
    ("none", "low_rank_alone"): (11_266_560, 33_799_680, 22_533_120),
    ("none", "full"): (42_527_232, 42_527_232, 42_527_232),
    ("none", "low_rank"): (11_266_560, 23_063_040, 17_164_800),
    ("all", "none"): (7_087_872, 21_263_616, 14_175_744),
    ("all", "low_rank_alone"): (1_877_760, 5_633_280, 3_755_520),
    ("all", "full"): (7_087_872, 7_087_872, 7_087_872),
    ("all", "low_rank"): (1_877_760, 3_843_840, 2_860_800),
}
"""(layers, roles) -> transformers' parameters in early, mid and late fusion, those that a pass uses.
Source: facts-av.md, section 3, typed in: the official model instantiated."""


def table(fusion: str, layers: Any, roles: Any) -> dict[str, int]:
    with torch.device("meta"):
        config = AVBertConfig(fusion=fusion, sharing=RoleSharing(layers=layers, roles=roles))  # type: ignore[arg-type]
        return AVBert(config, {}).parameter_table()


@pytest.mark.parametrize(("layers", "roles"), PUBLISHED)
def test_published_counts(layers: str, roles: str) -> None:
    embeddings = {"early": 19_968, "mid": 56_832, "late": 36_864}
    for fusion, expected in zip(("early", "mid", "late"), PUBLISHED[layers, roles], strict=True):
        found = table(fusion, layers, roles)
        transformers = sum(count for role, count in found.items() if role.startswith("transformers/"))
        assert transformers == expected
        assert (found["visual_cnn"], found["audio_cnn"]) == (31_672_128, 5_839_840)
        assert (found["projections"], found["summaries"]) == (2_363_904, 1_536)
        assert found["embeddings"] == embeddings[fusion]


@pytest.mark.parametrize(("layers", "roles"), PUBLISHED)
def test_the_plan_says_the_published_counts(layers: str, roles: str) -> None:
    """`polyvit plan`'s table by role of every combination, with the sum that the paper quotes."""
    for fusion, expected in zip(("early", "mid", "late"), PUBLISHED[layers, roles], strict=True):
        keys = [f"model.fusion={fusion}", f"model.sharing.layers={layers}", f"model.sharing.roles={roles}"]
        parameters = parameters_of(load_config("avbert", keys))
        rows = dict(role_rows({**parameters, "total": sum(parameters.values())}))
        assert rows["all transformers"] == expected
        assert rows["total"] == sum(parameters.values())
        owners = {role.partition("/")[2] for role in rows if role.startswith("transformers/")}
        own = {"early": {"multimodal"}, "late": {"visual", "audio"}}.get(fusion, {"visual", "audio", "multimodal"})
        assert owners == (
            own if roles in ("none", "low_rank_alone") else own | {"shared"} if "rank" in roles else {"shared"}
        )


@pytest.mark.slow
def test_the_plan_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_main(["avbert", "--no-measure"]) == 0
    said = capsys.readouterr().out
    assert "model avbert, weights shared: layers=all, roles=low_rank, rank=128, orthogonal=expm" in said
    for words in ("transformers/shared", "894,720", "transformers/visual", "983,040", "3,843,840", "43,827,264"):
        assert words in said, words
    assert plan_main(["avbert", "--no-measure", "model.sharing.layers=none", "model.sharing.roles=none"]) == 0
    said = capsys.readouterr().out
    assert "127,581,696" in said
    assert "weights shared: layers=none, roles=none" in said


def test_who_owns_the_methods_parameters() -> None:
    """Shared: U 891,648 and layer norms 3,072; each of three roles a third of the private 2,654,208 + 294,912."""
    found = table("mid", "all", "low_rank")
    assert found["transformers/shared"] == 891_648 + 3_072
    for role in ("visual", "audio", "multimodal"):
        assert found[f"transformers/{role}"] == (2_654_208 + 294_912) // 3
    assert sum(found.values()) == 43_778_080
    assert sum(table("mid", "none", "none").values()) == 167_515_936


def test_parity_counts_of_the_kit() -> None:
    """Every row of the kit's table of the official model instantiated, the used numbers."""
    for row in kit.document("counts.json"):
        roles = kit.ROLES[row["transformers_shared"], row["low_rank"]]
        found = table(row["fusion"], "all" if row["layers_shared"] else "none", roles)
        assert sum(found.values()) == row["total"] - row["transformers_never_used"]


def test_groups_of_layers() -> None:
    """Two layers in a row are one: three distinct layers of six."""
    assert sum(v for k, v in table("mid", 2, "full").items() if k.startswith("transf")) == 3 * 7_087_872


# ----------------------------------------------------------------------------------------------------- recipes


# Of head and masks: summaries 1,536 K + K; one CNN 2,048 or 1,024 K + K; both CNNs and the sequence 3,072 K + K,
# two maps of 1,536 x 768, a norm and 768 K + K; pre-training's maps, and two vectors for masked clips.
HEADS = {
    "avbert": 1_537 * 32, "avbert-pretraining-size": 1_537 * 32, "avbert-charades": 1_537 * 157,
    "avbert-ucf101": 2_049 * 101, "avbert-esc50": 1_025 * 50,
    "avbert-kinetics-sounds": 3_073 * 32 + 2 * 1_536 * 768 + 2 * 768 + 769 * 32,
    **dict.fromkeys(("avbert-kinetics700", "avbert-kinetics700-layers", "avbert-kinetics700-full",
                     "avbert-kinetics700-unshared"),
                    4 * (3 * 768**2 + 2 * 768) + (1_536 * 768 + 768) + 769 + 2 * 768),
}  # fmt: skip
SHARED = {"-layers": 21_263_616, "-full": 7_087_872, "-unshared": 127_581_696}


@pytest.mark.parametrize("name", HEADS)
def test_recipes_are_built_on_the_meta_device(name: str) -> None:
    """43,778,080 is the official code's count of the method; other sharing changes the transformers alone."""
    config = load_config(name)
    positions = config.model.positions  # type: ignore[union-attr]
    sharing = next((count for end, count in SHARED.items() if name.endswith(end)), 3_843_840)
    total = sum(parameters_of(config).values())
    assert total == 43_778_080 - 3_843_840 + sharing + 3 * (positions - 22) * 768 + HEADS[name]
    (reached,) = touched_parameters(config).values()
    alone = {"avbert-ucf101": 31_672_128 + HEADS[name], "avbert-esc50": 5_839_840 + HEADS[name]}
    assert reached == alone.get(name, total)


def test_every_recipe_of_the_published_size_is_counted() -> None:
    avbert = {name for name in recipe_names() if load_config(name).model.kind == "avbert"}
    assert {name for name in avbert if not name.startswith("demo")} == HEADS.keys()


def test_arithmetic_grows_with_the_clips() -> None:
    """CNNs are nearly all of it, so three clips cost about three times one."""
    one, three = (tiny(audiovisual={**TINY["model"]["audiovisual"], "clips": n}).model for n in (1, 3))
    ratio = training_flops(three, "audiovisual") / training_flops(one, "audiovisual")
    assert 2.5 < ratio < 3.5


# ------------------------------------------------------------------------------------------- config and errors


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"positions": 3}, "model.positions=3 must be at least 4"),
        ({"sharing": {"rank": 17}}, "model.sharing.rank=17"),
        ({"sharing": {"role": "full"}}, "did you mean roles"),
        ({"l_adapt": 1}, "model.l_adapt: unknown key"),
        ({"num_heads": 3}, "must be a multiple of model.num_heads=3"),
    ],
)
def test_contradictions_are_named(model: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        tiny(**model)
    assert says in str(raised.value)


def test_a_task_must_fit_the_kind() -> None:
    changed = copy.deepcopy(TINY)
    changed["model"] = {}
    with pytest.raises(UserError, match=r"set model\.kind=avbert"):
        validate_config(changed)
    changed = copy.deepcopy(TINY)
    changed["tasks"]["one"] = {**changed["tasks"]["one"], "modality": "image", "layout": "imagefolder"}
    with pytest.raises(UserError, match=r"not image; give model\.kind=polyvit"):
        validate_config(changed)


# ---------------------------------------------------------------------------------------------- a pass, a step


@pytest.mark.parametrize("fusion", ["early", "mid", "late"])
@pytest.mark.parametrize("layers", ["none", "all"])
@pytest.mark.parametrize("roles", ["none", "full", "low_rank", "low_rank_alone"])
def test_a_step_reaches_what_the_task_touches(fusion: str, layers: str, roles: str) -> None:
    """Early fusion with low rank too, which crashes in the release (facts, trap 2)."""
    config = tiny(fusion=fusion, sharing={"layers": layers, "roles": roles, "rank": 4})
    model = build_model(config, seed=1)
    batch = {name: torch.from_numpy(a).float() for name, a in minibatch(config, "one", 1).inputs.items()}
    logits = model(batch, "one")
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(model.touched("one"))
    assert not any(name.startswith("heads.two") for name in reached)


def test_position_table_too_short_is_said() -> None:
    model = build_model(tiny())
    assert isinstance(model, AVBert)
    with pytest.raises(ValueError, match=r"6 tokens need as many model\.positions, not 5"):
        model.contextualise(torch.zeros(1, 5, 16), torch.zeros(1, 5, 16))


def test_dropout_follows_the_examples_seed() -> None:
    """Exact scale, the share within six deviations, the same wherever the example stands, other places other."""
    x, seeds = torch.ones(3, 40, 50), torch.tensor([7, -9, 7])
    found = dropout(x, seeds, 0, 0.25)
    assert set(found.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    share = (found == 0).float().mean(dim=(1, 2))
    assert ((share - 0.25).abs() < 6 * (0.25 * 0.75 / 2000) ** 0.5).all()
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1:2], dropout(x[1:2], seeds[1:2], 0, 0.25))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, dropout(x, seeds, 1, 0.25))
    assert dropout(x, None, 0, 0.25) is x


def test_dropout_only_with_seeds() -> None:
    """An evaluation gives no seeds; two passes of one seed are the same bits, of two seeds not."""
    config = tiny()
    model = build_model(config, seed=1).eval()
    batch = {name: torch.from_numpy(a).float() for name, a in minibatch(config, "one", 1).inputs.items()}
    keep = model.draw_keep(0.0, 4, torch.Generator().manual_seed(0))
    assert keep is not None
    assert keep.shape == (4,)
    plain, dropped, again = model(batch, "one"), model(batch, "one", keep), model(batch, "one", keep)
    assert torch.equal(dropped, again)
    assert not torch.allclose(plain, dropped)
    assert not torch.equal(dropped, model(batch, "one", keep + 1))
    assert build_model(tiny(dropout=0.0)).draw_keep(0.0, 4, torch.Generator()) is None


def test_checkpointed_blocks_give_the_same_gradients_and_running_averages() -> None:
    """A block that is run again for its gradient moves batch norm's averages once."""
    config = tiny()
    models = [build_model(config, seed=1) for _ in range(2)]
    models[1].activation_checkpointing = True
    batch = {name: torch.from_numpy(a).float() for name, a in minibatch(config, "one", 1).inputs.items()}
    keep = models[0].draw_keep(0.0, 4, torch.Generator().manual_seed(0))
    for model in models:
        model(batch, "one", keep).square().sum().backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        assert torch.equal(a, b), name


def test_compiled_blocks_give_the_same() -> None:
    """Through dynamo with its eager backend: the same operations."""
    config = tiny()
    models = [build_model(config, seed=1).eval() for _ in range(2)]
    models[1].compile_blocks(backend="eager")
    batch = {name: torch.from_numpy(a).float() for name, a in minibatch(config, "one", 1).inputs.items()}
    torch.testing.assert_close(models[1](batch, "one"), models[0](batch, "one"), rtol=1e-6, atol=1e-6)


def test_the_memory_of_a_pass_is_counted_without_running_it() -> None:
    """Fake tensors give the peak of the real pass, dropout and all."""
    config = tiny()
    model = build_model(config, {"one": config.tasks["one"]})
    assert FakePass(config, "one").peak(1) == pass_peak(model, config, "one", 1) > 0


def test_batch_norm_by_hand() -> None:
    """Two examples 1 and 3: mean 2, variance 1 (biased) and 2 (unbiased, in the running average)."""
    norm = BatchNorm(1)
    found = norm(torch.tensor([[[1.0]], [[3.0]]]))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-5)
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.1 * 2)


# ------------------------------------------------------------------------------------ checkpoints and averages


def test_resume_is_exact(tmp_path: Path) -> None:
    """Six steps in one go, and three and three through a checkpoint: the same bits, running averages included."""
    config = tiny()
    whole, first, second = unit_of(config), unit_of(config), unit_of(config)
    advance(whole, config, range(1, 7))
    advance(first, config, range(1, 4))
    (tmp_path / "at").mkdir()
    checkpoint_data(training_tensors(first), TrainState(3), config, {}).write(tmp_path / "at")
    load_training(tmp_path / "at", second, {})
    advance(second, config, range(4, 7))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert whole.ema is not None
    assert second.ema is not None
    for name, tensor in whole.ema.state().items():
        assert torch.equal(tensor, second.ema.state()[name]), name


def test_the_averaged_model_keeps_the_running_averages(tmp_path: Path) -> None:
    """ema.safetensors is a whole model: averaged parameters, and batch norm's averages as they are."""
    config = tiny()
    unit = unit_of(config)
    advance(unit, config, range(1, 4))
    checkpoint_data(training_tensors(unit), TrainState(3), config, {}).write(tmp_path)
    model, _, _ = load_trained(tmp_path)
    stored, trained = load_file(tmp_path / "ema.safetensors"), unit.model.state_dict()
    assert {*stored} == {*trained}
    name = "visual_cnn.stem.norm.running_mean"
    assert torch.equal(model.state_dict()[name], trained[name])
    assert trained[name].abs().sum() > 0
    assert not torch.equal(stored["summaries"], trained["summaries"])


class Pair:
    """A world of two whose other rank gave `other` to be summed."""

    rank, size = 0, 2

    def __init__(self, other: torch.Tensor) -> None:
        self.other = other

    def sum_(self, flat: torch.Tensor) -> None:
        flat += self.other


def test_running_averages_are_averaged_over_ranks() -> None:
    from polyvit.distributed import average_buffers, buffers_of

    model = build_model(tiny())
    count = sum(b.numel() for b in model.buffers())
    before = [b.clone() for b in model.buffers()]
    average_buffers(buffers_of(model).values(), Pair(torch.full((count,), 4.0)))  # type: ignore[arg-type]
    for was, now in zip(before, model.buffers(), strict=True):
        assert torch.equal(now, (was + 4) / 2)


# -------------------------------------------------------------------------------------------------- conversion


def test_groups_that_the_release_never_uses() -> None:
    """Low rank alone: an official file has three groups a transformer, one of them ours, the others zeros."""
    config = tiny(sharing={"roles": "low_rank_alone", "layers": "all", "rank": 4}).model
    assert isinstance(config, AVBertConfig)
    model = AVBert(config, {}, seed=1)
    official = state_to_official(model.state_dict(), config)
    private = [name for name in official if "single_visual_transformer" in name and "factor_query.ms" in name]
    assert len(private) == 3
    assert [bool(official[name].any()) for name in sorted(private)] == [True, False, False]
    back = official_to_state(official, config)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_a_foreign_checkpoint_is_refused() -> None:
    """What is missing and what has no place is named; cached rotations and counters are passed over."""
    config = tiny().model
    assert isinstance(config, AVBertConfig)
    official = state_to_official(AVBert(config, {}).state_dict(), config)
    extra = {"visual_conv.s1.pathway0_stem.bn.num_batches_tracked": torch.tensor(3)}
    rotation = next(n for n in official if n.endswith(".A")).removesuffix("A") + "_B"
    assert official_to_state({**official, **extra, rotation: torch.eye(4)}, config)
    with pytest.raises(UserError, match="unknown: classifier"):
        official_to_state({**official, "classifier.weight": torch.eye(2)}, config)
    del official["visual_fc.weight"]
    with pytest.raises(UserError, match=r"missing: visual_fc\.weight"):
        official_to_state(official, config)
