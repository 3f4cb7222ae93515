"""The nine tasks of the paper, two more of its datasets, and those of AVBert, as plain data.

`PAPER_TASKS`: source of every number but `train_examples` of the image tasks: google-research/scenic @ 4a38d475,
projects/polyvit/configs/polyvit_all.py. Those are the published sizes less the validation carve-out (1 % of
ImageNet, 2 % of CIFAR, 10 % of Pets, 40 % of RESISC45). Each entry validates as `task_config.TaskConfig`; a
recipe names a task and changes what it wants to change. Warmup is 500 steps for the image tasks together and 2.5
epochs for each of the others. `KNOWN_TASKS` adds tasks whose training numbers are ours: the release has none.
"""

from typing import Any

_SOURCE = "scenic polyvit_all.py @ 4a38d475"
_IMAGE = {"modality": "image", "loss": "sigmoid", "batch": 512, "lr_coef": 0.03, "source": _SOURCE}
_VIDEO = {"modality": "video", "loss": "softmax", "batch": 64, "source": _SOURCE}
_AUDIO = {
    "modality": "audio", "batch": 64, "lr_coef": 0.5, "drop_path": 0.3, "mixup_alpha": 0.3, "source": _SOURCE,
}  # fmt: skip

PAPER_TASKS: dict[str, dict[str, Any]] = {
    "imagenet": {
        **_IMAGE,
        "layout": "imagenet",
        "num_classes": 1000,
        "steps": 20_000,
        "warmup_steps": 500,
        "train_examples": 1_268_355,
        "licence": "ImageNet terms: non-commercial research and teaching",
    },
    "cifar100": {
        **_IMAGE,
        "layout": "cifar100",
        "num_classes": 100,
        "steps": 10_000,
        "train_examples": 49_000,
    },
    "cifar10": {
        **_IMAGE,
        "layout": "cifar10",
        "num_classes": 10,
        "steps": 10_000,
        "train_examples": 49_000,
    },
    "pets": {
        **_IMAGE,
        "layout": "pets",
        "num_classes": 37,
        "steps": 500,
        "train_examples": 3_312,
        "licence": "CC BY-SA 4.0",
    },
    "resisc45": {
        **_IMAGE,
        "layout": "resisc45",
        "num_classes": 45,
        "steps": 2_500,
        "lr_coef": 0.1,
        "train_examples": 18_900,
    },
    "kinetics400": {
        **_VIDEO,
        "layout": "kinetics",
        "num_classes": 400,
        "steps": 100_680,
        "lr_coef": 0.1,
        "warmup_steps": 8_390,
        "train_examples": 214_834,
        "licence": "CC BY 4.0 (annotations)",
    },
    "moments_in_time": {
        **_VIDEO,
        "layout": "moments",
        "num_classes": 339,
        "steps": 123_640,
        "lr_coef": 0.25,
        "warmup_steps": 30_910,
        "train_examples": 791_297,
    },
    "audioset": {
        **_AUDIO,
        "layout": "audioset",
        "num_classes": 527,
        "loss": "sigmoid",
        "metric": "map",
        "steps": 15_900,
        "warmup_steps": 795,
        "train_examples": 20_361,
        "licence": "CC BY 4.0 (annotations)",
    },
    "vggsound": {
        **_AUDIO,
        "layout": "vggsound",
        "num_classes": 309,
        "loss": "softmax",
        "steps": 134_700,
        "warmup_steps": 6_735,
        "train_examples": 172_427,
        "licence": "CC BY 4.0",
    },
}

_OURS: dict[str, dict[str, Any]] = {
    "kinetics600": {
        **PAPER_TASKS["kinetics400"],
        "num_classes": 600,
        "steps": 170_250,
        "warmup_steps": 14_187,
        "train_examples": 363_213,
        "source": "size, batch, 30 epochs and 2.5 of warmup: scenic vivit configs/kinetics600; lr_coef: ours, as"
        " Kinetics-400's in polyvit_all.py",
    },
    "audioset_500k": {
        **PAPER_TASKS["audioset"],
        "steps": 390_600,
        "warmup_steps": 19_530,
        "train_examples": 500_000,
        "options": {"train": "unbalanced"},
        "source": "ours: as balanced AudioSet in polyvit_all.py, 50 epochs and 2.5 of warmup, of 500,000 clips",
    },
}
_AV_SOURCE = "classes and sizes: the datasets' own lists; schedule: ours"
# Only keys that tasks of every modality have: `modality: audiovisual` makes them AVBert's.
_AV: dict[str, dict[str, Any]] = {
    "kinetics700": {
        **_VIDEO,
        "layout": "kinetics",
        "num_classes": 700,
        "steps": 250_000,
        "warmup_steps": 21_000,
        "lr_coef": 0.1,
        "train_examples": 545_000,
        "licence": "CC BY 4.0 (annotations)",
        "source": "ours: as Kinetics-400's in polyvit_all.py, 30 epochs and 2.5 of warmup, of about 545,000 clips",
    },
    "kinetics_sounds": {
        **_VIDEO,
        "layout": "kinetics_sounds",
        "num_classes": 32,
        "steps": 10_000,
        "warmup_steps": 800,
        "lr_coef": 0.1,
        "licence": "CC BY 4.0 (annotations)",
        "source": _AV_SOURCE,
    },
    "ucf101": {
        **_VIDEO,
        "layout": "ucf101",
        "num_classes": 101,
        "steps": 4_500,
        "warmup_steps": 370,
        "lr_coef": 0.1,
        "train_examples": 9_537,
        "licence": "none stated; for research",
        "source": f"{_AV_SOURCE}; train_examples: the first split",
    },
    "esc50": {
        "modality": "audio",
        "batch": 64,
        "lr_coef": 0.5,
        "layout": "esc50",
        "num_classes": 50,
        "loss": "softmax",
        "steps": 1_250,
        "warmup_steps": 60,
        "train_examples": 1_600,
        "licence": "CC BY-NC 3.0",
        "source": _AV_SOURCE,
    },
    "charades": {
        **_VIDEO,
        "layout": "charades",
        "num_classes": 157,
        "loss": "sigmoid",
        "metric": "map",
        "steps": 5_000,
        "warmup_steps": 400,
        "lr_coef": 0.1,
        "train_examples": 7_985,
        "licence": "non-commercial research",
        "source": _AV_SOURCE,
    },
}
KNOWN_TASKS = {**PAPER_TASKS, **_OURS, **_AV}
"""Every task that a recipe may name without saying what it is."""
