"""The second system's model: AVBert, and the sequences of clips that it reads. `model.kind: avbert` chooses it.

Source of the numbers: Lee et al., ICLR 2021 (arXiv 2012.04124), and the official code, sangho-vision/avbert @
01c12b7.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from polyvit.config.formats import extensions
from polyvit.config.inputs import ArraySpec, InputSection, Modality, Pair, Section
from polyvit.config.pretraining import ContrastiveConfig
from polyvit.config.sharing import RoleSharing
from polyvit.config.tasks import Probability, TaskBase, ViewAverage, crops_in_words

Streams = Literal["both", "visual", "audio"]
NO_STREAM = {"audio": "no sound track", "visual": "no pictures"}
"""What is said of a file that lacks a stream."""
_OF_READS: dict[str, Streams] = {"visual_cnn": "visual", "audio_cnn": "audio"}


class SequenceInput(InputSection):
    """Long videos as a sequence of short clips, each with its log-mel spectrogram."""

    codec: ClassVar[str] = "polyvit.data.loading.codecs.audiovisual"
    display: ClassVar[str | None] = "polyvit.reports.inspect.displays.audiovisual"
    size_keys: ClassVar[tuple[str, ...]] = ("clips", "frames", "size")
    sides: ClassVar[tuple[str, ...]] = ("clips", "frames", "height", "width")

    clips: PositiveInt = 10
    """S: clips of one sequence. The release fine-tunes with 10; its pre-training text has 30 of one second."""
    frames: PositiveInt = 32
    """Of one clip. The release fine-tunes with 32; its pre-training text has 16, one second."""
    size: Pair = (112, 112)
    mel_bins: PositiveInt = 80
    spectrogram_frames: PositiveInt = 128
    sample_rate: PositiveInt = 44100
    """Hz; every sound track is resampled to it."""

    @property
    def media_size(self) -> tuple[int, ...]:
        """(clips, frames, height, width)."""
        return (self.clips, self.frames, *self.size)

    @property
    def patch(self) -> tuple[int, ...]:
        """A clip is one token."""
        return (1, self.frames, *self.size)

    @property
    def num_tokens(self) -> int:
        """Tokens of the joined sequence but its first: two summaries, and two of each clip."""
        return 2 * (1 + self.clips) - 1

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """`clips` [S, T, H, W, 3] of pixels and `spectrograms` [S, time, mel] of log-mel."""
        return {
            "clips": ArraySpec((*self.media_size, 3), "uint8"),
            "spectrograms": ArraySpec((self.clips, self.spectrogram_frames, self.mel_bins), "float16"),
        }


class SequenceAugment(Section):
    """Where the clips of a sequence lie, and one augmentation for all of them. Defaults: the released
    fine-tuning."""

    spacing: Literal["spread", "contiguous"] = "spread"
    """`spread`: from the video's start to its end at even steps, in training too (the release). `contiguous`: one
    after the other (the pre-training text); at a random time in training, in the middle in evaluations. A video
    shorter than such a sequence is read `spread`: its clips overlap."""
    clip_seconds: Annotated[float, Field(gt=0, le=60)] = 64 / 30
    """Of one clip, picture and sound. The release: 32 frames, every second of 30 a second, 2.13 s; its
    pre-training text: 1."""
    resize_sides: tuple[PositiveInt, PositiveInt] | None = None
    """Training: smaller side after resizing, pixels, drawn from this range once for the whole sequence; null: 8/7
    and 10/7 of the input size (128 to 160 for 112, the release)."""
    eval_resize_side: PositiveInt | None = None
    """Evaluation: smaller side, pixels; null: the input size, so that a crop has all of the smaller side. The
    release evaluates so at 128; set `model.audiovisual.size` for that."""
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    """Of resizing; the release: nearest."""
    flip: Probability = 0.5
    """Probability of a horizontal flip of the whole sequence."""
    freq_mask_bins: Annotated[int, Field(ge=0)] = 4
    """One band of mel bins is masked; its width is int(freq_mask_bins * u), u in [0, 1). The same for all
    clips."""
    time_mask_frames: Annotated[int, Field(ge=0)] = 6
    """One stretch of spectrogram frames is masked, drawn in the same way. The same for all clips."""
    fill: float = 0.0
    """What masks and the padding of a spectrogram hold. The release: 0, louder than most sound; silence is
    -13.8."""


class AudiovisualTask(TaskBase):
    """A task on sequences of clips with their sound."""

    extensions: ClassVar[tuple[str, ...]] = extensions("video", "audio")
    evaluation_keys: ClassVar[frozenset[str]] = frozenset({"augment", "eval_crops"})

    modality: Literal["audiovisual"] = "audiovisual"
    """Videos with their sound, as sequences of clips."""
    augment: SequenceAugment = SequenceAugment()
    streams: Streams | None = None
    """What is read of a file; null: what `reads` needs, pictures alone for `visual_cnn`, sound alone for
    `audio_cnn`, else both. `both`: files without a sound track, or without pictures, are left out of the index.
    `visual`: all spectrograms are `augment.fill`. `audio`: of recordings too; all pixels are 0."""
    eval_crops: Literal[1, 3] = 1
    """1: the centre crop; 3: both ends of the longer side too (the release). Each is a view of the whole
    sequence."""
    eval_average: ViewAverage = "probabilities"
    """What is averaged over the views of one example; the release: probabilities."""
    reads: Literal["summaries", "visual_cnn", "audio_cnn", "clips_and_sequence"] = "summaries"
    """What the head reads. `summaries`: both summary tokens. `visual_cnn`, `audio_cnn`: one CNN's output of each
    clip, one answer a clip; no transformer runs (the release's UCF-101, ESC-50). `clips_and_sequence`: an answer
    from both CNNs and one from the multimodal transformer for each clip, a loss each (its Kinetics-Sounds)."""
    head_dropout: Probability = 0.0
    """Of what the last linear map reads."""
    contrastive: ContrastiveConfig = ContrastiveConfig()
    """`loss: contrastive`: what is predicted among which negatives."""

    @property
    def loaded_streams(self) -> Streams:
        """`streams`, or where that is null what `reads` needs."""
        return self.streams or _OF_READS.get(self.reads, "both")

    @property
    def needed_streams(self) -> frozenset[str]:
        """The loaded ones, one by one."""
        loaded = self.loaded_streams
        return frozenset({"visual", "audio"}) if loaded == "both" else frozenset({loaded})

    def stream_problems(self, name: str) -> list[str]:
        """Where `streams` and what reads them contradict each other; one line each. name: of the task."""
        given, needed = self.streams, _OF_READS.get(self.reads)
        if self.loss == "contrastive" and given not in (None, "both"):
            return [
                f"tasks.{name}.streams={given}: loss=contrastive compares picture and sound; leave streams out"
            ]
        if given is None or needed is None or given == needed:
            return []
        what = "does not load what" if given != "both" else "loads more than"
        return [f"tasks.{name}.streams={given} {what} reads={self.reads} uses; leave it out, then it is {needed}"]

    @property
    def eval_views(self) -> int:
        """Crops."""
        return self.eval_crops

    @property
    def view_average(self) -> ViewAverage:
        """`eval_average`."""
        return self.eval_average

    @property
    def protocol(self) -> str:
        """Crops and how they are averaged."""
        crops = crops_in_words(self.eval_crops)
        return f"1 sequence x {crops}" + (f", {self.eval_average} averaged" if self.eval_crops > 1 else "")


class AVBertConfig(Section):
    """Two CNNs over clips, an audio, a visual and a multimodal transformer over their sequence."""

    kind: Literal["avbert"] = "avbert"
    width: PositiveInt = 768
    depth: PositiveInt = 6
    num_heads: PositiveInt = 12
    mlp_dim: PositiveInt = 3072
    fusion: Literal["early", "mid", "late"] = "mid"
    """`mid`: an audio and a visual transformer, then a multimodal one over both outputs, joined in length.
    `early`: the multimodal one alone. `late`: no multimodal one."""
    sharing: RoleSharing = RoleSharing()
    positions: PositiveInt = 22
    """Rows of the position tables: at least 1 + clips. The release has 22, too few for sequences of 30 clips."""
    dropout: Probability = 0.1
    """Of attention weights, of each branch's output and of embeddings. As in the release, none after the MLP where
    layers are shared."""
    norm_eps: PositiveFloat = 1e-12
    """Of layer norms; source: the release."""
    visual_width: PositiveInt = 64
    """Channels of the visual CNN's first stage: a 3-D ResNet; its output is 32 times as wide."""
    audio_width: PositiveInt = 32
    """Channels of the audio CNN's first stage: a 2-D ResNet without pooling in its stem."""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    """Residual blocks of the four stages of both CNNs: ResNet-50."""
    audiovisual: SequenceInput = SequenceInput()

    @property
    def roles(self) -> tuple[str, ...]:
        """The transformers that there are, in the order in which they run."""
        return {"early": ROLES[2:], "mid": ROLES, "late": ROLES[:2]}[self.fusion]

    @property
    def feature_width(self) -> int:
        """Numbers that heads and probes read: both summary tokens."""
        return 2 * self.width

    def input(self, modality: Modality) -> InputSection:
        """The input section of the one modality. Raises KeyError for another."""
        if modality != "audiovisual":
            raise KeyError(f"AVBert takes sequences of clips (audiovisual), not {modality}")
        return self.audiovisual

    def num_tokens(self, modality: Modality) -> int:
        """Tokens of the joined sequence, without its first summary token."""
        return self.input(modality).num_tokens

    def problems(self, modalities: tuple[Modality, ...]) -> list[str]:
        """Contradictions within the section, and with the modalities of the tasks; one line each."""
        problems = [
            f"model.kind=avbert takes tasks of modality audiovisual, not {modality}; give model.kind=polyvit"
            for modality in modalities
            if modality != "audiovisual"
        ]
        clips = self.audiovisual.clips
        if 1 + clips > self.positions:
            problems.append(
                f"model.positions={self.positions} must be at least {1 + clips}: a summary and"
                f" model.audiovisual.clips={clips}"
            )
        if self.sharing.roles.startswith("low_rank") and self.sharing.rank > self.width:
            problems.append(
                f"model.sharing.rank={self.sharing.rank} must be at most model.width={self.width}: a larger rank"
                " has more parameters than the map"
            )
        return problems


ROLES = ("visual", "audio", "multimodal")
