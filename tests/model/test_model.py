"""The model: shapes for odd sizes, which parameters a task reaches, exact parameter totals, stochastic depth."""

import math

import pytest
import torch

from polyvit.config import AudioInput, ImageInput, Modality, ModelConfig, RunConfig, VideoInput
from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.errors import UserError
from polyvit.model.encoder import Block, draw_keep, drop_path_rates
from polyvit.model.polyvit import PolyViT

DEPTH = 3
TINY = ModelConfig(
    width=12,
    depth=DEPTH,
    num_heads=3,
    mlp_dim=20,
    image=ImageInput(size=(12, 20), patch_size=(4, 5)),
    video=VideoInput(frames=6, size=(8, 12), tubelet_size=(3, 4, 2)),
    audio=AudioInput(frames=20, mel_bins=6, patch_size=(5, 2)),
)
TASKS: dict[str, tuple[Modality, int]] = {
    "pictures": ("image", 5), "more_pictures": ("image", 2), "clips": ("video", 4), "sounds": ("audio", 7),
}  # fmt: skip


def run_config(model: ModelConfig = TINY, **tasks: dict[str, object]) -> RunConfig:
    """A run over TASKS, or over the given ones."""
    described = tasks or {
        name: {"modality": m, "layout": "imagefolder", "num_classes": k, "steps": 1, "batch": 2}
        for name, (m, k) in TASKS.items()
    }
    return RunConfig.model_validate({"model": model, "tasks": described})


def build(l_adapt: int = 0, seed: int = 0) -> PolyViT:
    """The tiny model, every parameter random (also those that start at zero)."""
    model = PolyViT(TINY.model_copy(update={"l_adapt": l_adapt}), run_config().tasks, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


def draw_tokens(task: str, batch: int = 2) -> torch.Tensor:
    """Random tokens [B, N, P] of a task."""
    modality, _ = TASKS[task]
    shape = (batch, TINY.num_tokens(modality), TINY.input(modality).patch_dim)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("l_adapt", range(DEPTH + 1))
@pytest.mark.parametrize("task", TASKS)
def test_shapes(l_adapt: int, task: str) -> None:
    """Every token, the class token and the logits, for every number of adaptor layers."""
    model, tokens = build(l_adapt), draw_tokens(task)
    modality, classes = TASKS[task]
    sequence = math.prod(TINY.input(modality).grid) + 1
    assert model.encode(tokens, modality).shape == (2, sequence, TINY.width)
    assert model.forward_features({"tokens": tokens}, modality).shape == (2, TINY.width)
    assert model({"tokens": tokens}, task).shape == (2, classes)
    assert len(model.shared.blocks) == DEPTH - l_adapt
    assert len(list(model.adaptors[modality].children())) == l_adapt


@pytest.mark.parametrize("l_adapt", range(DEPTH + 1))
@pytest.mark.parametrize("task", TASKS)
def test_a_task_reaches_what_touched_says(l_adapt: int, task: str) -> None:
    """Exactly those parameters get a gradient: one tokenizer, its adaptors, the trunk, one head."""
    model = build(l_adapt)
    model({"tokens": draw_tokens(task)}, task).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(model.touched(task))
    assert all(p.grad is not None and p.grad.any() for p in model.touched(task).values())
    heads = {name for name in reached if name.startswith("heads.")}
    assert heads == {f"heads.{task}.weight", f"heads.{task}.bias"}


def test_tasks_of_one_modality_share_features() -> None:
    """Two image tasks differ in the head alone."""
    model, tokens = build(1), draw_tokens("pictures")
    features = model.forward_features({"tokens": tokens}, "image")
    for task in ("pictures", "more_pictures"):
        torch.testing.assert_close(model({"tokens": tokens}, task), model.heads[task](features))


def test_only_needed_modalities_are_built() -> None:
    """An audio task alone has no image or video tokenizer."""
    sounds = {"modality": "audio", "layout": "vggsound", "num_classes": 2, "steps": 1, "batch": 1}
    model = PolyViT(TINY, run_config(sounds=sounds).tasks)
    assert list(model.tokenizers) == ["audio"]


def test_reserved_task_name_is_a_user_error() -> None:
    """A name that nn.ModuleDict cannot hold."""
    task = {"modality": "audio", "layout": "vggsound", "num_classes": 2, "steps": 1, "batch": 1}
    with pytest.raises(UserError, match=r"tasks\.keys"):
        PolyViT(TINY, run_config(keys=task).tasks)


def test_initial_values() -> None:
    """Same seed, same values; video and audio heads, class tokens and patch biases 0; image heads not."""
    model, twin = (PolyViT(TINY, run_config().tasks, seed=5) for _ in range(2))
    other = PolyViT(TINY, run_config().tasks, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    state = model.state_dict()
    assert not torch.equal(state["heads.pictures.weight"], other.state_dict()["heads.pictures.weight"])
    assert state["heads.pictures.weight"].any()
    zero = ["heads.clips.weight", "heads.sounds.weight"]
    zero += [
        f"tokenizers.{m}.{leaf}" for m in ("image", "video", "audio") for leaf in ("cls_token", "patch_embed.bias")
    ]
    for name in zero:
        assert not state[name].any(), name
    for modality in ("image", "video", "audio"):
        assert 0.01 < float(state[f"tokenizers.{modality}.pos_embed"].std()) < 0.03


# ------------------------------------------------------------------------------- parameter totals, facts.md 6


def total(l_adapt: int, *names: str) -> int:
    """Parameters of the official definition (image size 384) over the named paper tasks (all by default)."""
    model = ModelConfig(l_adapt=l_adapt, image=ImageInput(size=(384, 384)))
    tasks = {name: PAPER_TASKS[name] for name in names or PAPER_TASKS}
    with torch.device("meta"):
        polyvit = PolyViT(model, run_config(model, **tasks).tasks)
    return sum(p.numel() for p in polyvit.parameters())


IMAGE_TASKS = ("imagenet", "cifar100", "cifar10", "pets", "resisc45")
VIDEO_TASKS = ("kinetics400", "moments_in_time")
AUDIO_TASKS = ("audioset", "vggsound")
SINGLE = {
    "imagenet": 86_859_496, "cifar10": 86_098_186, "cifar100": 86_167_396, "pets": 86_118_949,
    "resisc45": 86_125_101, "kinetics400": 88_929_424, "moments_in_time": 88_882_515, "vggsound": 86_192_949,
    "audioset": 86_360_591,
}  # fmt: skip


@pytest.mark.parametrize(
    ("l_adapt", "expected"),
    [
        (0, 92_683_471), (2, 121_034_959), (4, 149_386_447), (6, 177_737_935), (8, 206_089_423), (12, 262_792_399),
    ],
)  # fmt: skip
def test_parameters_of_nine_tasks(l_adapt: int, expected: int) -> None:
    """PolyViT-B over the nine tasks: 93M, 178M at l_adapt 6."""
    assert total(l_adapt) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [(IMAGE_TASKS, 87_007_144), (VIDEO_TASKS, 89_190_115), (AUDIO_TASKS, 86_598_212)],
)
def test_parameters_of_one_modality(names: tuple[str, ...], expected: int) -> None:
    """The three single-modality models."""
    assert total(0, *names) == expected


def test_parameters_of_single_task_models() -> None:
    """Each of the nine baselines, and their sum."""
    found = {name: total(0, name) for name in PAPER_TASKS}
    assert found == SINGLE
    assert sum(found.values()) == 781_734_607


def test_parameter_table_by_role() -> None:
    """The parts of the official model; they add up to the whole."""
    model = ModelConfig(image=ImageInput(size=(384, 384)))
    with torch.device("meta"):
        table = PolyViT(model, run_config(model, **PAPER_TASKS).tasks).parameter_table()
    assert table["shared"] == 85_056_000
    assert table["tokenizer/image"] == 1_034_496
    assert table["tokenizer/video"] == 3_565_824
    assert table["tokenizer/audio"] == 899_328
    assert sum(n for role, n in table.items() if role.startswith("head/")) == 2_127_823
    assert sum(table.values()) == 92_683_471


# ------------------------------------------------------------------------------------------- stochastic depth


def test_keeping_everything_changes_nothing() -> None:
    """A kept branch is not rescaled."""
    model, tokens = build(1), draw_tokens("clips")
    keep = torch.ones(DEPTH, 2, len(tokens))
    torch.testing.assert_close(model({"tokens": tokens}, "clips", keep), model({"tokens": tokens}, "clips"))


def test_dropping_both_branches_is_the_identity() -> None:
    """Only of the examples that drop them; the others of the minibatch are as they were."""
    block = build().shared.blocks[0]
    x_BND = torch.randn(3, 5, TINY.width, generator=torch.Generator().manual_seed(2))
    keep_2B = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found, whole = block(x_BND, keep_2B), block(x_BND)
    torch.testing.assert_close(found[0], whole[0])
    assert torch.equal(found[1], x_BND[1])
    assert isinstance(block, Block)
    attended = x_BND[2] + block.attn(block.norm1(x_BND))[2]
    torch.testing.assert_close(found[2], attended)


def test_rows_of_keep_belong_to_layers_in_order() -> None:
    """Adaptor blocks take the first rows: dropping row 0 at l_adapt 1 leaves the adaptor out."""
    model, tokens = build(1), draw_tokens("sounds")
    keep = torch.ones(DEPTH, 2, len(tokens))
    keep[0] = 0.0
    x_BND = model.tokenizers["audio"](tokens)
    for block in model.shared.blocks:
        x_BND = block(x_BND)
    torch.testing.assert_close(model.encode(tokens, "audio", keep), model.shared.norm(x_BND))


def test_drop_path_rates() -> None:
    """One ramp over all layers; the release's restarts after the adaptors (facts.md, section 4)."""
    assert drop_path_rates(0.3, 4, 2, "depth") == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 4, 2, "reference") == pytest.approx([0.0, 0.3, 0.2, 0.3])
    assert drop_path_rates(0.3, 1, 0, "depth") == [0.0]


def test_draw_keep_has_the_asked_rates() -> None:
    """Seeded, 0 and 1 only; the share dropped is the rate within four standard deviations; rate 0 never drops."""
    rates, batch = [0.0, 0.25, 1.0], 20_000
    keep_L2B = draw_keep(rates, batch, torch.Generator().manual_seed(0))
    assert torch.equal(keep_L2B, draw_keep(rates, batch, torch.Generator().manual_seed(0)))
    assert keep_L2B.shape == (3, 2, batch)
    assert set(keep_L2B.unique().tolist()) == {0.0, 1.0}
    assert keep_L2B[0].all()
    assert not keep_L2B[2].any()
    deviation = math.sqrt(0.25 * 0.75 / batch)
    for branch in keep_L2B[1]:
        assert abs(1.0 - float(branch.mean()) - 0.25) < 4 * deviation
    assert not torch.equal(keep_L2B[1, 0], keep_L2B[1, 1])
