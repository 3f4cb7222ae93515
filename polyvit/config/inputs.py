"""What the model takes of each modality: sizes, patches, and all shapes that follow from them.

An input section says which named arrays the feed brings for one view of an example (`arrays`), and which module
decodes them (`codec`). A new form of input is one class here, or in a package of the user's (`modalities.py`).

Pairs are (height, width) or (time, frequency); triples are (time, height, width).
"""

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveFloat, PositiveInt

Modality = str
"""A modality's name: image, video, audio, or one of `plugins.modalities`."""


class ArraySpec(NamedTuple):
    """Shape and numpy dtype of one named array of one view of an example."""

    shape: tuple[int, ...]
    dtype: str


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Pair = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InputSection(Section):
    """What every modality's input section says. Subclasses add the user's keys and fill in the properties.

    The class variables describe the modality to the rest of the house, which asks them and never the class.
    """

    codec: ClassVar[str]
    """Module that decodes: see `data/loading/example.py` for the functions that it has."""
    display: ClassVar[str | None] = None
    """Module that examines and draws examples for `polyvit inspect`; None: they are counted, and not drawn."""
    size_keys: ClassVar[tuple[str, ...]] = ("size",)
    """Keys of the section that make up `media_size`, for messages."""
    patch_key: ClassVar[str] = "patch_size"
    """Key of the section that holds `patch`, for messages."""
    sides: ClassVar[tuple[str, ...]]
    """What the axes of `media_size` are called."""
    channels_last: ClassVar[bool] = True
    """Whether media have an axis of three colours behind `media_size`."""
    vit_positions: ClassVar[Literal["resize", "new"]] = "resize"
    """How positions start from an image ViT's table: resized to the last two sides of the grid and repeated over
    any side before them; or `new`, at random, with a patch kernel at random too."""

    @property
    def media_size(self) -> tuple[int, ...]:
        """Sides of the media as the model sees them, without a channel axis."""
        raise NotImplementedError

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of one patch (or tubelet), one for each side of `media_size`."""
        raise NotImplementedError

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps from patch to patch along each side: `stride`, or `patch` where that is null."""
        stride: tuple[int, ...] | None = getattr(self, "stride", None)
        return stride or self.patch

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each side of `media_size`."""
        sides = zip(self.media_size, self.patch, self.strides, strict=True)
        return tuple((s - p) // d + 1 for s, p, d in sides)

    @property
    def num_tokens(self) -> int:
        """N: patches of one example, without the class token."""
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        """P: numbers in one flattened patch, as the feed brings it."""
        return math.prod(self.patch) * (3 if self.channels_last else 1)

    @property
    def kernel_repeats(self) -> int:
        """How often the patch kernel repeats over its last axis, fed the same numbers: see `Tokenizer.kernel`."""
        return 1

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Patch kernel without its output axis: (*patch, channels)."""
        return (*self.patch, 3 if self.channels_last else self.kernel_repeats)

    @property
    def normalisation(self) -> tuple[float, float] | None:
        """(mean, deviation) of float media, which the feed has taken out; None: media are uint8 pixels."""
        return None

    def as_one_patch(self) -> Self:
        """The same input cut into one patch as large as all of it; overlapping patches cannot be joined again."""
        return self.model_copy(update={self.patch_key: self.media_size, "stride": None})

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Named arrays of one view of an example, as they leave the CPU: `tokens` [N, P]."""
        return {"tokens": ArraySpec((self.num_tokens, self.patch_dim), "uint8")}


class ImageInput(InputSection):
    """Images as the model sees them: RGB, `size` pixels, cut into `patch_size` patches."""

    codec: ClassVar[str] = "polyvit.data.loading.codecs.image"
    display: ClassVar[str | None] = "polyvit.reports.inspect.displays.image"
    sides: ClassVar[tuple[str, ...]] = ("height", "width")

    size: Pair = (224, 224)
    """(height, width) in pixels."""
    patch_size: Pair = (16, 16)
    """(height, width) of a patch in pixels."""
    stride: Pair | None = None
    """Step between patches; null means `patch_size` (no overlap). Patches that overlap may leave a rest uncovered
    at the end of a side, as AST's do; patches that do not must divide it."""

    @property
    def media_size(self) -> tuple[int, ...]:
        """(height, width), pixels."""
        return self.size

    @property
    def patch(self) -> tuple[int, ...]:
        """(height, width) of a patch."""
        return self.patch_size


class VideoInput(InputSection):
    """Clips: `frames` RGB frames of `size` pixels, cut into `tubelet_size` = (t, h, w) tubelets."""

    codec: ClassVar[str] = "polyvit.data.loading.codecs.video"
    display: ClassVar[str | None] = "polyvit.reports.inspect.displays.video"
    size_keys: ClassVar[tuple[str, ...]] = ("frames", "size")
    patch_key: ClassVar[str] = "tubelet_size"
    sides: ClassVar[tuple[str, ...]] = ("frames", "height", "width")

    frames: PositiveInt = 32
    """Frames of a clip."""
    size: Pair = (224, 224)
    """(height, width) in pixels."""
    tubelet_size: Triple = (4, 16, 16)
    """(time, height, width) of a tubelet in frames and pixels."""
    stride: Triple | None = None
    """Step between tubelets; null means `tubelet_size`, as for images."""

    @property
    def media_size(self) -> tuple[int, ...]:
        """(frames, height, width)."""
        return (self.frames, *self.size)

    @property
    def patch(self) -> tuple[int, ...]:
        """(time, height, width) of a tubelet."""
        return self.tubelet_size


class AudioInput(InputSection):
    """Log-mel spectrograms of (`frames`, `mel_bins`), cut into `patch_size` = (time, frequency) patches."""

    codec: ClassVar[str] = "polyvit.data.loading.codecs.audio"
    display: ClassVar[str | None] = "polyvit.reports.inspect.displays.audio"
    size_keys: ClassVar[tuple[str, ...]] = ("frames", "mel_bins")
    sides: ClassVar[tuple[str, ...]] = ("frames", "mel_bins")
    channels_last: ClassVar[bool] = False

    frames: PositiveInt = 800
    """Time frames of a spectrogram; 100 are a second at the default `hop_ms`."""
    mel_bins: PositiveInt = 128
    """Mel frequency bins."""
    patch_size: Pair = (16, 16)
    """(time, frequency) of a patch in frames and bins."""
    stride: Pair | None = None
    """Step between patches; null means `patch_size`, as for images."""
    channels: Literal[1, 3] = 3
    """Input planes of the patch kernel. 3 repeats the one plane, so that an RGB ViT kernel fits
    (the official release); 1 is a kernel for the plane alone."""
    sample_rate: PositiveInt = 16000
    """Hz; every recording is resampled to it."""
    window_ms: PositiveFloat = 25.0
    """Length of the Hann window in milliseconds."""
    hop_ms: PositiveFloat = 10.0
    """Milliseconds between frames."""
    mean: float = 0.0
    """See `std`."""
    std: PositiveFloat = 1.0
    """The spectrogram is (log-mel - mean) / std. The official config leaves 0 and 1."""

    @property
    def media_size(self) -> tuple[int, ...]:
        """(time, frequency): frames and mel bins."""
        return (self.frames, self.mel_bins)

    @property
    def patch(self) -> tuple[int, ...]:
        """(time, frequency) of a patch."""
        return self.patch_size

    @property
    def kernel_repeats(self) -> int:
        """`channels`: a spectrogram is one plane, which an RGB kernel is fed three times."""
        return self.channels

    @property
    def normalisation(self) -> tuple[float, float] | None:
        """`mean` and `std` of the log-mel."""
        return self.mean, self.std

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """`tokens` [N, P] of normalised log-mel; half floats halve the bytes."""
        return {"tokens": ArraySpec((self.num_tokens, self.patch_dim), "float16")}
