"""Initialising from ViT checkpoints: every layout of file, every size, every refusal."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from polyvit.config import (
    AudioInput,
    AudioTask,
    ImageInput,
    ImageTask,
    ModalitySharing,
    ModelConfig,
    TaskConfig,
    VideoInput,
    VideoTask,
)
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import HF_BLOCK_NAMES, official_to_state, state_to_official
from polyvit.model.pretrained.from_vit import inflate, initialise, resize_positions
from polyvit.model.pretrained.vit_files import load_vit

DEPTH, HEADS, WIDTH = 3, 2, 8
CONFIG = ModelConfig(
    width=WIDTH,
    depth=DEPTH,
    num_heads=HEADS,
    mlp_dim=12,
    image=ImageInput(size=(12, 9), patch_size=(4, 3)),
    video=VideoInput(frames=4, size=(20, 6), tubelet_size=(2, 4, 3)),
    audio=AudioInput(frames=16, mel_bins=15, patch_size=(4, 3)),
)
TASKS: dict[str, TaskConfig] = {
    "pictures": ImageTask(layout="imagefolder", num_classes=3, steps=1, batch=1),
    "clips": VideoTask(layout="kinetics", num_classes=4, steps=1, batch=1),
    "sounds": AudioTask(layout="vggsound", num_classes=5, steps=1, batch=1),
}


def build(**changes: object) -> PolyViT:
    """The tiny PolyViT of three modalities."""
    return PolyViT(CONFIG.model_copy(update=changes), TASKS, seed=3)


def vit(image: ImageInput = CONFIG.image) -> PolyViT:
    """The source: a plain ViT, that is a PolyViT of one image task, every parameter random."""
    model = PolyViT(CONFIG.model_copy(update={"image": image}), {"pictures": TASKS["pictures"]})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def flax_tree(model: PolyViT) -> dict[str, np.ndarray]:
    """The ViT with the names of Scenic's trees."""
    tree = {}
    for name, array in state_to_official(model.state_dict(), model.config).items():
        name = name.replace("tokenizer/tokenizer2d/posembed_input", "Transformer/posembed_input")
        name = name.replace("tokenizer/tokenizer2d/", "").replace("vit_encoder/", "Transformer/")
        tree[name.replace("classification_head_pictures/output_projection", "head")] = array
    return tree


def published_tree(model: PolyViT) -> dict[str, np.ndarray]:
    """The names of vision_transformer and AugReg: modules of a block numbered in one row."""
    numbers = {
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "LayerNorm_1": "LayerNorm_2",
        "MlpBlock_0": "MlpBlock_3",
    }
    tree = {}
    for name, array in flax_tree(model).items():
        for old, new in numbers.items():
            name = name.replace(old, new)
        tree[name] = array
    tree["pre_logits/kernel"] = np.zeros((WIDTH, WIDTH), np.float32)
    return tree


def stacked_tree(model: PolyViT) -> dict[str, np.ndarray]:
    """big_vision's scanned models: one block with a leading axis of layers, under params/."""
    tree = flax_tree(model)
    blocks = {name: tree.pop(name) for name in list(tree) if "encoderblock_" in name}
    leaves = {name.split("/", 2)[2] for name in blocks}
    for leaf in leaves:
        rows = [blocks[f"Transformer/encoderblock_{i}/{leaf}"] for i in range(DEPTH)]
        tree[f"Transformer/encoderblock/{leaf}"] = np.stack(rows)
    return {f"params/{name}": array for name, array in tree.items()} | {"opt/count": np.array(3)}


def timm_tree(model: PolyViT) -> dict[str, Tensor]:
    """timm's names and the convolution's shape."""
    h, w = model.config.image.patch_size
    tree = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("tokenizers.image.", "").replace("shared.", "").replace("heads.pictures", "head")
        tree[name.replace("patch_embed.", "patch_embed.proj.")] = tensor
    kernel = tree["patch_embed.proj.weight"].view(WIDTH, h, w, 3).permute(0, 3, 1, 2)
    return {name: tensor.clone() for name, tensor in (tree | {"patch_embed.proj.weight": kernel}).items()}


def hf_tree(model: PolyViT, release: int) -> dict[str, Tensor]:
    """Hugging Face's names, of transformers 5 (release 0) or 4 (release 1)."""
    theirs = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    }
    tree = {}
    layers = ("vit.layers", "vit.encoder.layer")[release]
    for name, tensor in timm_tree(model).items():
        if name in theirs:
            tree[theirs[name]] = tensor
            continue
        _, i, part, *rest = name.split(".")
        leaf = rest[-1]
        if rest[0] == "qkv":
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                tree[f"{layers}.{i}.{HF_BLOCK_NAMES[letter][release]}.{leaf}"] = piece.clone()
        else:
            module = HF_BLOCK_NAMES[".".join([part, *rest[:-1]])][release]
            tree[f"{layers}.{i}.{module}.{leaf}"] = tensor
    return tree


def save(path: Path, tree: Mapping[str, np.ndarray] | Mapping[str, Tensor]) -> Path:
    """Write an npz or a safetensors file, by the suffix."""
    if path.suffix == ".npz":
        np.savez(path, **tree)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tree.items()}, path)  # type: ignore[union-attr]
    return path


LAYOUTS: dict[str, tuple[str, Callable[[PolyViT], dict]]] = {
    "scenic": ("vit.npz", flax_tree),
    "published": ("vit.npz", published_tree),
    "big_vision": ("vit.npz", lambda m: {f"params/{name}": array for name, array in flax_tree(m).items()}),
    "stacked": ("vit.npz", stacked_tree),
    "timm": ("vit.safetensors", timm_tree),
    "hf5": ("vit.safetensors", lambda m: hf_tree(m, 0)),
    "hf4": ("vit.safetensors", lambda m: hf_tree(m, 1)),
}


@pytest.mark.parametrize("l_adapt", [0, 1, DEPTH])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(layout: str, l_adapt: int, tmp_path: Path) -> None:
    """Each file's image path is the source ViT's, bit for bit; every modality has the adaptor blocks."""
    source = vit()
    name, writer = LAYOUTS[layout]
    path = save(tmp_path / name, writer(source))
    model = build(l_adapt=l_adapt)
    report = initialise(model, path)
    state, expected = model.state_dict(), source.state_dict()
    for i in range(DEPTH):
        homes = [f"adaptors.{m}.{i}" for m in ("image", "video", "audio")]
        for home in homes if i < l_adapt else [f"shared.blocks.{i - l_adapt}"]:
            for leaf in ("norm1.weight", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc2.bias"):
                assert torch.equal(state[f"{home}.{leaf}"], expected[f"shared.blocks.{i}.{leaf}"])
    for leaf in ("patch_embed.weight", "patch_embed.bias", "cls_token", "pos_embed"):
        assert torch.equal(state[f"tokenizers.image.{leaf}"], expected[f"tokenizers.image.{leaf}"])
    for modality in ("video", "audio"):
        assert torch.equal(state[f"tokenizers.{modality}.cls_token"], expected["tokenizers.image.cls_token"])
    tokens = torch.randn(2, 9, 36, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        model.forward_features({"tokens": tokens}, "image"), source.forward_features({"tokens": tokens}, "image")
    )
    assert set(report.random) == {f"heads.{task}.{leaf}" for task in TASKS for leaf in ("weight", "bias")}
    assert any("head" in name or "classifier" in name for name in report.unused)


def test_report_names_everything_once(tmp_path: Path) -> None:
    """Loaded, resized and random parameters are all parameters; the table says how each was resized."""
    model = build(l_adapt=1)
    report = initialise(model, save(tmp_path / "vit.npz", published_tree(vit())))
    names = [*report.loaded, *report.resized, *report.random]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert report.resized == {
        "tokenizers.video.patch_embed.weight": "kernel 4x3 -> 2x4x3, central frame",
        "tokenizers.video.pos_embed": "positions 3x3 -> 5x2, positions tiled over 2 tubelets of time",
        "tokenizers.audio.pos_embed": "positions 3x3 -> 4x5",
    }
    table = report.table()
    for text in (
        "width 8, 3 blocks",
        "adaptors.audio",
        "shared.blocks.0..1",
        "heads.clips.bias",
        "pre_logits",
        "3x3 -> 4x5",
    ):
        assert text in table


def test_positions_are_resized_and_tiled(tmp_path: Path) -> None:
    """A plane that rises along both sides stays one: corners keep their values, others lie between."""
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    plane = (10 * rows + columns).reshape(12, 1)
    found = resize_positions(plane, (3, 4), (5, 7)).view(5, 7)
    rows, columns = torch.meshgrid(torch.linspace(0, 2, 5), torch.linspace(0, 3, 7), indexing="ij")
    torch.testing.assert_close(found, 10 * rows + columns)
    source = vit()
    model = build()
    initialise(model, save(tmp_path / "vit.npz", flax_tree(source)))
    table = model.state_dict()["tokenizers.video.pos_embed"][0]
    assert torch.equal(table[0], source.state_dict()["tokenizers.image.pos_embed"][0, 0])
    assert torch.equal(table[1:11], table[11:21])


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("central", [0.0, 0.0, 1.0, 0.0]),
        ("average", [0.25] * 4),
        # (2 (T - t + 1) - (T + 1) (H_T - H_{t-1})) / T by hand for T = 4, H = 1, 3/2, 11/6, 25/12.
        ("arp", [-29 / 48, 7 / 48, 13 / 48, 3 / 16]),
    ],
)
def test_inflated_kernels(how: str, weights: list[float]) -> None:
    """Each frame of the tubelet kernel is the picture's kernel times one weight."""
    kernel = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    found = inflate(kernel, len(weights), how)  # type: ignore[arg-type]
    for frame, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(frame, weight * kernel)


def test_one_channel_spectrograms_get_the_summed_kernel(tmp_path: Path) -> None:
    """The 3-channel kernel on a plane repeated 3 times computes the same as the summed one on the plane."""
    path = save(tmp_path / "vit.npz", flax_tree(vit()))
    three, one = build(), build(audio=CONFIG.audio.model_copy(update={"channels": 1}))
    initialise(three, path)
    report = initialise(one, path)
    tokens = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one.encode(tokens, "audio"), three.encode(tokens, "audio"))
    assert report.resized["tokenizers.audio.patch_embed.weight"] == "kernel summed over 3 channels"


def test_big_visions_positions_without_a_class_row(tmp_path: Path) -> None:
    """Newer big_vision adds positions before the class token, which then has none: zeros."""
    tree = flax_tree(vit())
    table = tree.pop("Transformer/posembed_input/pos_embedding")
    tree["pos_embedding"] = table[:, 1:]
    model = build()
    initialise(model, save(tmp_path / "vit.npz", tree))
    state = model.state_dict()
    assert not state["tokenizers.image.pos_embed"][0, 0].any()
    np.testing.assert_array_equal(state["tokenizers.image.pos_embed"][0, 1:], table[0, 1:])


def test_vit_without_a_class_token(tmp_path: Path) -> None:
    """Our class token keeps its own values, and the report says so."""
    tree = flax_tree(vit())
    del tree["cls"]
    tree["pos_embedding"] = tree.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    report = initialise(build(), save(tmp_path / "vit.npz", tree))
    assert {f"tokenizers.{m}.cls_token" for m in ("image", "video", "audio")} <= set(report.random)
    assert any("no class token" in note for note in report.notes)


def test_bfloat16_arrays_of_an_npz(tmp_path: Path) -> None:
    """NumPy saves bfloat16 as two void bytes."""
    tree = flax_tree(vit())
    bits = torch.from_numpy(tree["cls"]).bfloat16()
    tree["cls"] = bits.view(torch.int16).numpy().view("V2")
    found = load_vit(save(tmp_path / "vit.npz", tree)).cls_token
    assert found is not None
    assert torch.equal(found, bits.float()[0, 0])


def test_layer_scale_is_folded_into_the_weights(tmp_path: Path) -> None:
    """A branch times gamma equals the branch's last layer times gamma."""
    source = vit()
    tree = timm_tree(source)
    gammas = {
        f"blocks.{i}.ls{branch}.gamma": torch.full((WIDTH,), 0.5 + i) for i in range(DEPTH) for branch in (1, 2)
    }
    model = build()
    initialise(model, save(tmp_path / "vit.safetensors", tree | gammas))
    for i in range(DEPTH):
        for part in ("attn.proj.weight", "mlp.fc2.bias"):
            name = f"shared.blocks.{i}.{part}"
            torch.testing.assert_close(model.state_dict()[name], source.state_dict()[name] * (0.5 + i))


def test_grid_that_is_no_square_must_be_given(tmp_path: Path) -> None:
    """The file does not hold it; beside a Hugging Face file, config.json does."""
    source = vit(ImageInput(size=(8, 15), patch_size=(4, 3)))
    path = save(tmp_path / "vit.npz", flax_tree(source))
    with pytest.raises(UserError, match=r"11 rows.*give `grid`"):
        initialise(build(), path)
    with pytest.raises(UserError, match="5x5"):
        initialise(build(), path, grid=(5, 5))
    assert initialise(build(), path, grid=(2, 5)).resized["tokenizers.image.pos_embed"].endswith("2x5 -> 3x3")
    save(tmp_path / "model.safetensors", hf_tree(source, 0))
    (tmp_path / "config.json").write_text(json.dumps({"image_size": [8, 15], "num_attention_heads": HEADS}))
    assert load_vit(tmp_path).grid == (2, 5)


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        ("<html>404</html>", "Expecting value"),
        ("[1, 2]", "it holds no mapping"),
        ('{"image_size": "large"}', "image_size='large' is not what"),
        ('{"image_size": [8, "15"]}', "image_size="),
        ('{"num_attention_heads": [2]}', "num_attention_heads="),
    ],
)
def test_a_config_beside_it_that_is_damaged_is_named(tmp_path: Path, content: str, words: str) -> None:
    save(tmp_path / "model.safetensors", hf_tree(vit(), 0))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load_vit(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "vit.npz"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str) -> None:
    source = vit()
    with torch.no_grad():
        source.state_dict()["shared.blocks.0.mlp.fc1.bias"][0] = float("nan")
    save(tmp_path / name, flax_tree(source) if name.endswith("npz") else hf_tree(source, 0))
    with pytest.raises(UserError, match="weights that cannot be used") as caught:
        load_vit(tmp_path / name)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "vit.npz"])
def test_a_pointer_of_git_lfs_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match="git lfs pull"):
        load_vit(tmp_path / name)


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    """Every disagreement at once, with both shapes and what to set; the model keeps its values."""
    path = save(tmp_path / "vit.npz", flax_tree(vit()))
    tubelets = VideoInput(frames=4, size=(16, 16), tubelet_size=(2, 8, 8))
    model = build(width=12, depth=2, num_heads=3, mlp_dim=16, video=tubelets)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        initialise(model, path)
    for text in (
        "width is 8, model.width is 12; set model.width=8",
        "depth is 3, model.depth is 2",
        "mlp_dim is 12, model.mlp_dim is 16",
        "num_heads is 2, model.num_heads is 3",
        "patches are 4x3, model.video.tubelet_size is 2x8x8; set model.video.tubelet_size=[2, 4, 3]",
    ):
        assert text in str(error.value)
    assert len(error.value.problems) == 5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def refused_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file, words of the message)."""
    source = vit()
    timm, flax = timm_tree(source), flax_tree(source)
    (folder / "vit.pt").write_bytes(b"")
    (folder / "torn.safetensors").write_bytes(b"\x10\x00")
    (folder / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(folder / "pickled.npz", **{**flax, "cls": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    headless = {name: array for name, array in flax.items() if "encoder_norm" not in name}
    hybrid = {**flax, "embedding/kernel": np.zeros((4, 3, 7, WIDTH), np.float32)}
    return {
        "missing": (folder / "none.npz", "no checkpoint at"),
        "pickle": (folder / "vit.pt", "allowed are .npz and .safetensors"),
        "torn safetensors": (folder / "torn.safetensors", "cannot be read as safetensors"),
        "torn npz": (folder / "torn.npz", "cannot be read as an .npz"),
        "pickled array": (folder / "pickled.npz", "cannot be read as an .npz of plain arrays"),
        "no norm": (save(folder / "headless.npz", headless), "has no 'Transformer/encoder_norm/scale'"),
        "hybrid": (save(folder / "hybrid.npz", hybrid), "4x3x7; it must take 3 channels"),
        "not a vit": (save(folder / "other.npz", {"conv1/kernel": np.zeros(3)}), "has no 'embedding/kernel'"),
        "not timm": (save(folder / "a.safetensors", {"stem": torch.zeros(2)}), "neither a timm nor"),
        "qk norm": (
            save(folder / "b.safetensors", timm | {"blocks.0.attn.q_norm.weight": torch.ones(4)}),
            "also holds attn.q_norm.weight",
        ),
        "pre norm": (save(folder / "c.safetensors", timm | {"norm_pre.weight": torch.ones(8)}), "norm_pre.weight"),
        "video": (
            save(folder / "d.safetensors", timm | {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 4, 3)}),
            r"\[8, 3, 2, 4, 3\]",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "what",
    [
        "missing", "pickle", "torn safetensors", "torn npz", "pickled array", "no norm", "hybrid", "not a vit",
        "not timm", "qk norm", "pre norm", "video",
    ],
)  # fmt: skip
def test_files_that_are_refused(what: str, tmp_path: Path) -> None:
    """A UserError that says what is wrong, and nothing unpickled."""
    path, words = refused_files(tmp_path)[what]
    with pytest.raises(UserError, match=words):
        initialise(build(), path)


def test_notes_on_another_gelu_and_unknown_heads(tmp_path: Path) -> None:
    """timm files do not say their heads and mean the exact GELU; a config.json says the heads."""
    path = save(tmp_path / "model.safetensors", timm_tree(vit()))
    notes = " ".join(initialise(build(), path).notes)
    assert "how many attention heads" in notes
    assert "model.gelu=erf" in notes
    save(tmp_path / "model.safetensors", hf_tree(vit(), 1))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    with pytest.raises(UserError, match=r"num_heads is 4, model\.num_heads is 2"):
        initialise(build(), tmp_path)


def test_official_tree_of_another_l_adapt_is_refused() -> None:
    """Depth and l_adapt must be the checkpoint's: too few blocks or blocks left over."""
    tree = state_to_official(build(l_adapt=1).state_dict(), CONFIG.model_copy(update={"l_adapt": 1}))
    with pytest.raises(UserError, match="encoderblock_0"):
        official_to_state(tree, CONFIG)
    with pytest.raises(UserError, match=r"does not have; set model\.depth"):
        official_to_state(tree, CONFIG.model_copy(update={"l_adapt": 1, "depth": 2}))


@pytest.mark.parametrize("rank", [WIDTH, 3])
def test_low_rank_from_a_vit(rank: int, tmp_path: Path) -> None:
    """Rank D gives the ViT's features to rounding; a lower one says in the report what each map loses."""
    source = vit()
    sharing = ModalitySharing(modalities="low_rank", rank=rank)
    model = build(l_adapt=1, sharing=sharing)
    report = initialise(model, save(tmp_path / "vit.safetensors", timm_tree(source)))
    names = [*report.loaded, *report.resized, *report.random]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    errors = [how for how in report.resized.values() if how.startswith("rank")]
    assert len(errors) == 6 * (DEPTH - 1)
    x = {"tokens": torch.randn(2, 9, 36, generator=torch.Generator().manual_seed(1))}
    difference = (model.forward_features(x, "image") - source.forward_features(x, "image")).abs().max()
    if rank == WIDTH:
        assert set(errors) == {f"rank {WIDTH} of {WIDTH}: error 0 of the map"}
        assert difference < 1e-4  # float32 rounding of two products in place of one, of weights of size 0.3
    else:
        assert all(0 < float(how.split()[-4]) < 1 for how in errors)
        assert difference > 1e-2
    assert errors[0] in report.table()


def test_shared_layers_take_the_first_of_their_group(tmp_path: Path) -> None:
    """Layers 0 and 1 are one block with the values of layer 0; the report says that 1 is not used."""
    source = vit()
    model = build(sharing=ModalitySharing(layers=2))
    report = initialise(model, save(tmp_path / "vit.safetensors", timm_tree(source)))
    state, expected = model.state_dict(), source.state_dict()
    for block, layer in ((0, 0), (1, 2)):
        name = "attn.qkv.weight"
        assert torch.equal(state[f"shared.blocks.{block}.{name}"], expected[f"shared.blocks.{layer}.{name}"])
    assert "layers 1 are not used: model.sharing.layers=2" in report.notes
