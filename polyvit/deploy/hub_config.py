"""What timm and Hugging Face want to know beside the weights: config, processors, and what cannot be told to them.

In: a run's config, a task, its class names. Out: the JSON documents of a folder, by file name; a message where an
architecture of theirs cannot compute what ours does. Pure functions; neither library is imported.
Sources: timm 1.0 `models/_hub.py`; transformers 5.23, the configs and processors of ViT, ViViT and AST.
"""

from collections.abc import Sequence
from typing import Any, Literal

from polyvit.config import (
    AudioInput,
    AVBertConfig,
    ImageInput,
    ImageTask,
    InputSection,
    ModelConfig,
    RunConfig,
    VideoInput,
    VideoTask,
)
from polyvit.data.decode import image_eval_side, video_eval_side
from polyvit.errors import UserError

Library = Literal["timm", "huggingface"]
TIMM_EPS = 1e-6
"""Of every norm of timm's `VisionTransformer`; a folder's config cannot say another."""
HALF = [0.5, 0.5, 0.5]
"""Mean and deviation that turn 0..1 into -1..1, as `model.normalise` does."""
BILINEAR = 2
"""Pillow's number of the filter."""
ARCHITECTURES: dict[type[InputSection], str] = {
    ImageInput: "ViTForImageClassification",
    VideoInput: "VivitForVideoClassification",
    AudioInput: "ASTForAudioClassification",
}
"""What an input becomes at Hugging Face."""


def check_portable(config: RunConfig, task: str, library: Library) -> ModelConfig:
    """The model's section, where the library has an architecture that computes the same as our task.

    Raises UserError that names all the reasons why it has none.
    """
    if isinstance(config.model, AVBertConfig):
        raise UserError("--to: timm and Hugging Face have no AVBert; without --to it becomes .pt2 and .onnx files")
    spec = config.model.input(config.tasks[task].modality)
    if type(spec) not in ARCHITECTURES:
        raise UserError(
            f"--to {library}: {task} is of modality {config.tasks[task].modality}; images, videos and audio alone "
            "have a counterpart there. Without --to it becomes .pt2 and .onnx files"
        )
    problems = []
    if library == "timm" and not isinstance(spec, ImageInput):
        problems.append(f"{task} takes {config.tasks[task].modality}, and timm has image models alone")
    if library == "timm" and config.model.norm_eps != TIMM_EPS:
        problems.append(f"model.norm_eps={config.model.norm_eps:g}, and timm's ViT has {TIMM_EPS:g} for good")
    if not isinstance(spec, AudioInput) and spec.strides != spec.patch:
        problems.append("patches that overlap (stride), and ViT and ViViT there step by whole patches")
    if isinstance(spec, AudioInput) and spec.patch[0] != spec.patch[1]:
        problems.append(f"patches of {spec.patch[0]} x {spec.patch[1]}, and AST's are square")
    if problems:
        advice = "; try --to huggingface" if library == "timm" else ""
        raise UserError(f"--to {library} cannot hold this model; without --to it becomes files{advice}", problems)
    return config.model


def timm_documents(config: RunConfig, name: str, classes: Sequence[str]) -> dict[str, Any]:
    """`config.json` for `timm.create_model("local-dir:FOLDER", pretrained=True)`; its arguments: `model_args`."""
    model, task = check_portable(config, name, "timm"), config.tasks[name]
    spec = model.image
    assert isinstance(task, ImageTask)
    square = task.augment.eval_resize == "square"
    side = image_eval_side(spec.size, task.augment)
    return {
        "config.json": {
            "architecture": "vit_base_patch16_224",
            "num_classes": task.num_classes,
            "num_features": model.width,
            "global_pool": "token",
            "label_names": list(classes),
            "model_args": {
                "img_size": list(spec.size),
                "patch_size": list(spec.patch_size),
                "embed_dim": model.width,
                "depth": model.depth,
                "num_heads": model.num_heads,
                "mlp_ratio": _mlp_ratio(model.width, model.mlp_dim),
                "num_classes": task.num_classes,
                "act_layer": "gelu_tanh" if model.gelu == "tanh" else "gelu",
            },
            "pretrained_cfg": {
                "custom_load": False,
                "input_size": [3, *spec.size],
                "fixed_input_size": True,
                "interpolation": "bilinear",
                "crop_pct": 1.0 if square else min(spec.size) / side,
                "crop_mode": "squash" if square else "center",
                "mean": HALF,
                "std": HALF,
                "num_classes": task.num_classes,
                "pool_size": None,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        }
    }


def _mlp_ratio(width: int, mlp_dim: int) -> float:
    """timm's int(width * ratio) is mlp_dim."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width


def hf_documents(config: RunConfig, name: str, classes: Sequence[str]) -> dict[str, Any]:
    """`config.json` and the processors' files for transformers' `from_pretrained`, by file name."""
    model, task = check_portable(config, name, "huggingface"), config.tasks[name]
    spec = model.input(task.modality)
    document = {
        "architectures": [ARCHITECTURES[type(spec)]],
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if model.gelu == "tanh" else "gelu",
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "id2label": {str(k): label for k, label in enumerate(classes)},
        "label2id": {label: k for k, label in enumerate(classes)},
        "problem_type": "multi_label_classification" if task.loss == "sigmoid" else "single_label_classification",
        "dtype": "float32",
    }
    if isinstance(spec, ImageInput):
        assert isinstance(task, ImageTask)
        document |= {"model_type": "vit", "image_size": _side(spec.size), "patch_size": _side(spec.patch_size)}
        return {"config.json": document | {"num_channels": 3}, "preprocessor_config.json": _vit(task, spec)}
    if isinstance(spec, VideoInput):
        assert isinstance(task, VideoTask)
        document |= {
            "model_type": "vivit", "image_size": _side(spec.size), "num_frames": spec.frames,
            "tubelet_size": list(spec.tubelet_size), "num_channels": 3,
        }  # fmt: skip
        frames = _vivit(task, spec)
        return {
            "config.json": document,
            "preprocessor_config.json": {"image_processor_type": "VivitImageProcessor", "offset": True} | frames,
            "video_preprocessor_config.json": {"video_processor_type": "VivitVideoProcessor"} | frames,
        }
    assert isinstance(spec, AudioInput)
    document |= {
        "model_type": "audio-spectrogram-transformer", "patch_size": spec.patch[0], "max_length": spec.frames,
        "num_mel_bins": spec.mel_bins, "time_stride": spec.strides[0], "frequency_stride": spec.strides[1],
    }  # fmt: skip
    return {"config.json": document, "preprocessor_config.json": _ast(spec)}


def _side(sides: tuple[int, int]) -> int | list[int]:
    """A square's one side, which release 4 of transformers reads too."""
    return sides[0] if sides[0] == sides[1] else list(sides)


def _vit(task: ImageTask, spec: ImageInput) -> dict[str, Any]:
    size = dict(zip(("height", "width"), spec.size, strict=True))
    square = task.augment.eval_resize == "square"
    crop = {"size": size} if square else {
        "size": {"shortest_edge": image_eval_side(spec.size, task.augment)}, "do_center_crop": True,
        "crop_size": size,
    }  # fmt: skip
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": HALF,
        "image_std": HALF,
        **crop,
    }


def _vivit(task: VideoTask, spec: VideoInput) -> dict[str, Any]:
    # Their rescaling takes 1 away after the factor: pixels become -1..1, and there is nothing left to normalise.
    return {
        "do_resize": True,
        "resample": BILINEAR,
        "size": {"shortest_edge": video_eval_side(spec.size, task.augment)},
        "do_center_crop": True,
        "crop_size": dict(zip(("height", "width"), spec.size, strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "do_normalize": False,
    }


def _ast(spec: AudioInput) -> dict[str, Any]:
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "sampling_rate": spec.sample_rate,
        "num_mel_bins": spec.mel_bins,
        "max_length": spec.frames,
        "feature_size": 1,
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": spec.mean,
        "std": spec.std / 2,  # theirs divides by twice the deviation
        "return_attention_mask": False,
    }
