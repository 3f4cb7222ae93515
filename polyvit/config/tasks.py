"""What is set for each task: augmentation, dataset, loss, metric, and the task's own hyperparameters.

Part of the config's key space (`polyvit.config.run`): everything under `tasks.NAME`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny

from polyvit.config.formats import extensions
from polyvit.config.inputs import Section
from polyvit.config.layouts import LayoutName

Probability = Annotated[float, Field(ge=0, le=1)]
VideoReader = Literal["pyav", "decord"]
Loss = Literal["softmax", "sigmoid", "multi_margin", "contrastive"]
ViewAverage = Literal["logits", "probabilities"]
"""What is averaged over the views of one example. ViViT's test step in scenic averages logits by default."""


_IMAGE = extensions("image")
_VIDEO = extensions("video")
# A video container is a recording too: its sound track is what an audio task reads.
_AUDIO = extensions("audio", "video")


# ---------------------------------------------------------------------------------------------- augmentation


class ImageAugment(Section):
    """Training crops and flips of images; evaluation resizing. Defaults: the official image pipeline."""

    crop_area: tuple[PositiveFloat, PositiveFloat] | None = (0.05, 1.0)
    """Inception crop: share of the picture's area, min and max. Null: resize the whole picture."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Inception crop: aspect ratio (width / height), min and max."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    antialias: bool = False
    """Antialiased resizing. The official training crop is bilinear without it."""
    scaled_decode: bool = True
    """Decode a JPEG at 1/2, 1/4 or 1/8 size in training where its crop is that much larger than the input."""
    randaugment_ops: Annotated[int, Field(ge=0)] = 0
    """RandAugment: operations on a training picture, drawn from the paper's 14; 0 is off, 2 is usual."""
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """RandAugment: strength of each operation, 0 to 10."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of a training picture is replaced by noise."""
    eval_resize: Literal["square", "crop"] = "square"
    """`square`: resize to the input size. `crop`: smaller side to `eval_resize_size`, then centre crop."""
    eval_resize_size: PositiveInt | None = None
    """Pixels of the smaller side with `eval_resize: crop`; null: 7/6 of the input's longer side."""


class VideoAugment(Section):
    """Frame sampling and clip augmentation. Defaults: the official Kinetics pipeline."""

    frame_stride: PositiveInt = 2
    """Every `frame_stride`-th frame is taken; a short video repeats itself."""
    resize_side: PositiveInt | None = None
    """Smaller side after resizing, pixels; null: 8/7 of the input size (256 for 224)."""
    scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = (0.9, 1.33)
    """Height and width factors, drawn independently from this range."""
    flip: Probability = 0.5
    """Probability of a horizontal flip of the whole clip."""
    colour_jitter: Probability = 0.8
    """Probability of brightness 32/255, saturation and contrast (0.6, 1.4), hue 0.2: one draw a clip."""
    colour_drop: Probability = 0.1
    """Probability of turning the clip grey."""
    reader: VideoReader = "pyav"
    """The same frames from both; `pyav` decodes no more than the clip needs. `decord` reads whole MP4, MOV, MKV
    and WebM files of an even frame rate, `pyav` the rest, for decord crashes on damaged ones."""


class AudioAugment(Section):
    """SpecAugment. Defaults are what the official pipeline really does: one frequency band, no time masks."""

    freq_mask_count: Annotated[int, Field(ge=0)] = 1
    """Frequency bands that are set to 0."""
    freq_mask_bins: Annotated[int, Field(ge=0)] = 48
    """A band's width is int(freq_mask_bins * u), u in [0, 1)."""
    time_mask_count: Annotated[int, Field(ge=0)] = 0
    """Stretches of time that are set to 0."""
    time_mask_frames: Annotated[int, Field(ge=0)] = 48
    """A stretch's length is int(time_mask_frames * u), u in [0, 1)."""
    time_shift: bool = True
    """Random contiguous window of a long recording; off: the middle."""


# ---------------------------------------------------------------------------------------------------- tasks


class TaskBase(Section):
    """One task: a dataset, a head, a loss, a metric, and its own hyperparameters.

    A modality's tasks are a subclass with its `modality`, its `augment` section, and what its evaluation knows.
    """

    head_init: ClassVar[Literal["lecun_normal", "zeros"]] = "zeros"
    """Initial values of a head's weights; source: the official release."""
    reference_clips_locally: ClassVar[bool] = True
    """Whether the official release clips this modality's gradients on each device, before their mean."""
    extensions: ClassVar[tuple[str, ...]] = ()
    """Of the modality's files: lower case with the dot, best first where a stem has several."""
    evaluation_keys: ClassVar[frozenset[str]] = frozenset({"augment"})
    """Keys that decide the arrays of an evaluation view; tasks with equal values share them."""

    layout: LayoutName
    """How the data lie on disk: imagenet, cifar10, cifar100, pets, resisc45, kinetics, moments, audioset,
    vggsound, ucf101, esc50, kinetics_sounds, charades, imagefolder, csv, webdataset, parquet, or one of
    `plugins.layouts`."""
    root: str | None = None
    """The dataset's folder or URL; null: `data.root` / the task's name."""
    num_classes: PositiveInt
    """K: classes of the head."""
    classes: str | None = None
    """A text file of class names, one a line, in index order. Null: what the layout itself knows."""
    loss: Loss = "softmax"
    """`softmax`: cross-entropy, one class an example. `sigmoid`: binary cross-entropy, any number of classes.
    `multi_margin`: hinge of `margin`, one class an example. `contrastive`: pre-training of AVBert, no labels."""
    margin: PositiveFloat = 0.1
    """`multi_margin`: by how much the right class must score above each other. 0.1: AVBert's release, ESC-50."""
    metric: Literal["top1", "map", "retrieval", "pair_accuracy"] = "top1"
    """`top1`: accuracy. `map`: mean average precision over classes. Of `loss: contrastive`: `retrieval`, how often
    the masked clip scores above its negatives (mean over the streams), or `pair_accuracy`."""
    steps: PositiveInt
    """U_j: SGD steps of this task alone; co-training takes as many."""
    batch: PositiveInt
    """Examples of one minibatch over all workers together."""
    accumulate: PositiveInt | None = None
    """Fewest passes in which a worker computes its part of a minibatch (gradient accumulation); null:
    `train.accumulate`."""
    lr_coef: PositiveFloat = 1.0
    """Multiplies `optim.lr` in this task's steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Added to the run's warmup when `optim.warmup_steps` is null."""
    drop_path: Probability = 0.0
    """Stochastic depth of the last layer, rising linearly from 0 at the first."""
    label_smoothing: Probability = 0.0
    """Share of the label that is spread evenly over all classes."""
    eval_split: Literal["train", "validation", "test"] = "validation"
    """Split that evaluations read."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Layout options, such as the column names of a CSV: see the layout's docstring."""
    train_examples: PositiveInt | None = None
    """Training examples of the whole dataset, for `polyvit plan` where the data are not at hand."""
    licence: str | None = None
    """Licence of the data; shown on the model card."""
    source: str | None = None
    """Where the numbers above come from."""
    modality: str
    augment: SerializeAsAny[Section] = Section()

    @property
    def needed_streams(self) -> frozenset[str]:
        """Of `visual` and `audio`: what each file must hold by its header to be in the index; empty: no header is
        read."""
        return frozenset()

    @property
    def eval_views(self) -> int:
        """Views of each example in an evaluation."""
        return 1

    def with_one_view(self) -> Self:
        """The same task with one evaluation view of each example, the middle one."""
        keys = {"eval_clips", "eval_crops"} & set(type(self).model_fields)
        return self.model_copy(update=dict.fromkeys(keys, 1))

    @property
    def view_average(self) -> ViewAverage:
        """What is averaged over the views of an example."""
        return "logits"

    @property
    def mixup(self) -> float:
        """Alpha of mixup; 0 is off."""
        return 0.0

    @property
    def cutmix(self) -> float:
        """Alpha of CutMix; 0 is off."""
        return 0.0

    @property
    def mix_switch(self) -> float:
        """Probability that a step is CutMix's, where mixup is on too."""
        return 0.0

    @property
    def pairs_examples(self) -> bool:
        """Whether training mixes examples in pairs, so that a pair must lie on one rank."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def protocol(self) -> str:
        """Which views of an example count and how, in words: "4 clips x 3 crops, logits averaged"."""
        return "1 view"


class ImageTask(TaskBase):
    """A task on images."""

    extensions: ClassVar[tuple[str, ...]] = _IMAGE
    head_init: ClassVar[Literal["lecun_normal", "zeros"]] = "lecun_normal"
    reference_clips_locally: ClassVar[bool] = False

    modality: Literal["image"] = "image"
    """Images."""
    augment: ImageAugment = ImageAugment()
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Beta(alpha, alpha) of mixup, one weight a step; 0 is off."""
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Beta(alpha, alpha) of CutMix, one rectangle a step; 0 is off."""
    cutmix_switch: Probability = 0.5
    """Where both are on: probability that a step is CutMix's, and else mixup's."""

    @property
    def mixup(self) -> float:
        """`mixup_alpha`; slots 2i and 2i + 1 are mixed."""
        return self.mixup_alpha

    @property
    def cutmix(self) -> float:
        """`cutmix_alpha`."""
        return self.cutmix_alpha

    @property
    def mix_switch(self) -> float:
        """`cutmix_switch`."""
        return self.cutmix_switch

    @property
    def protocol(self) -> str:
        """The whole picture or its centre."""
        return "1 view, whole image" if self.augment.eval_resize == "square" else "1 view, centre crop"


class VideoTask(TaskBase):
    """A task on video clips."""

    extensions: ClassVar[tuple[str, ...]] = _VIDEO
    evaluation_keys: ClassVar[frozenset[str]] = frozenset({"augment", "eval_clips", "eval_crops"})

    modality: Literal["video"] = "video"
    """Video clips."""
    augment: VideoAugment = VideoAugment()
    eval_clips: PositiveInt = 1
    """Clips of each video in an evaluation, spread evenly from its start to its end; 1 is the middle one."""
    eval_crops: Literal[1, 3] = 1
    """1: the centre crop; 3: both ends of the longer side too. View = clip x crop (ViViT: 4 x 3)."""
    eval_average: ViewAverage = "logits"
    """What is averaged over the views of one example."""

    @property
    def eval_views(self) -> int:
        """Clips x crops."""
        return self.eval_clips * self.eval_crops

    @property
    def view_average(self) -> ViewAverage:
        """`eval_average`."""
        return self.eval_average

    @property
    def protocol(self) -> str:
        """Clips x crops and how they are averaged."""
        return f"{_clips(self.eval_clips)} x {crops_in_words(self.eval_crops)}" + _averaged(self)


class AudioTask(TaskBase):
    """A task on recordings."""

    extensions: ClassVar[tuple[str, ...]] = _AUDIO
    evaluation_keys: ClassVar[frozenset[str]] = frozenset({"eval_clips"})

    modality: Literal["audio"] = "audio"
    """Sound recordings, or the sound track of videos."""
    augment: AudioAugment = AudioAugment()
    eval_clips: PositiveInt = 1
    """Windows of each recording in an evaluation, as for videos; 1 is the middle one."""
    eval_average: ViewAverage = "logits"
    """What is averaged over the windows of one recording."""
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Beta(alpha, alpha) of mixup, one weight a step; 0 is off."""

    @property
    def eval_views(self) -> int:
        """Windows of each recording."""
        return self.eval_clips

    @property
    def view_average(self) -> ViewAverage:
        """`eval_average`."""
        return self.eval_average

    @property
    def mixup(self) -> float:
        """`mixup_alpha`; slots 2i and 2i + 1 are mixed."""
        return self.mixup_alpha

    @property
    def protocol(self) -> str:
        """Windows and how they are averaged."""
        return _clips(self.eval_clips) + _averaged(self)


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"


def crops_in_words(number: int) -> str:
    """1 crop, 3 crops."""
    return "1 crop" if number == 1 else f"{number} crops"


def _averaged(task: TaskBase) -> str:
    return "" if task.eval_views == 1 else f", {task.view_average} averaged"
