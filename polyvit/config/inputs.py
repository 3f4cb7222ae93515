"""What the model takes, per modality: sizes, patches, and the grids that follow from them.

Pairs are (height, width) or (time, frequency); triples are (time, height, width).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveFloat, PositiveInt

Modality = Literal["image", "video", "audio"]


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Pair = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ImageInput(Section):
    """Images as the model sees them: RGB, `size` pixels, cut into `patch_size` patches."""

    size: Pair = (224, 224)
    patch_size: Pair = (16, 16)
    stride: Pair | None = None
    """Step between patches; null means `patch_size` (no overlap). Patches that overlap may leave a rest uncovered
    at the end of a side, as AST's do; patches that do not must divide it."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along (height, width)."""
        return _grid(self.size, self.patch_size, self.stride)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: h * w * 3."""
        return self.patch_size[0] * self.patch_size[1] * 3


class VideoInput(Section):
    """Clips: `frames` RGB frames of `size` pixels, cut into `tubelet_size` = (t, h, w) tubelets."""

    frames: PositiveInt = 32
    size: Pair = (224, 224)
    tubelet_size: Triple = (4, 16, 16)
    stride: Triple | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Tubelets along (time, height, width)."""
        return _grid((self.frames, *self.size), self.tubelet_size, self.stride)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened tubelet: t * h * w * 3."""
        return self.tubelet_size[0] * self.tubelet_size[1] * self.tubelet_size[2] * 3


class AudioInput(Section):
    """Log-mel spectrograms of (`frames`, `mel_bins`), cut into `patch_size` = (time, frequency) patches."""

    frames: PositiveInt = 800
    mel_bins: PositiveInt = 128
    patch_size: Pair = (16, 16)
    stride: Pair | None = None
    channels: Literal[1, 3] = 3
    """Input planes of the patch kernel. 3 repeats the one plane, so that an RGB ViT kernel fits
    (the official release); 1 is a kernel for the plane alone."""
    sample_rate: PositiveInt = 16000
    """Hz; every recording is resampled to it."""
    window_ms: PositiveFloat = 25.0
    hop_ms: PositiveFloat = 10.0
    mean: float = 0.0
    std: PositiveFloat = 1.0
    """The spectrogram is (log-mel - mean) / std. The official config leaves 0 and 1."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along (time, frequency)."""
        return _grid((self.frames, self.mel_bins), self.patch_size, self.stride)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch as fed: t * f of the one plane."""
        return self.patch_size[0] * self.patch_size[1]


def _grid(size: tuple[int, ...], patch: tuple[int, ...], stride: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple((s - p) // d + 1 for s, p, d in zip(size, patch, stride or patch, strict=True))


ModelInput = ImageInput | VideoInput | AudioInput
