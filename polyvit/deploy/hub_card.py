"""README.md of a folder for timm or Hugging Face: the hub's YAML front matter, how to load it, where it differs.

In: a run's config, a task, what was measured. Out: Markdown. Its Python is run by a test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyvit import __version__
from polyvit.config import AudioInput, ImageTask, RunConfig, VideoTask
from polyvit.data.decode import transform_sizes
from polyvit.deploy.data_terms import licence_words
from polyvit.deploy.hub_config import Library

_TIMM = """import timm
from PIL import Image

model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open(file).convert("RGB"))[None])
label = model.pretrained_cfg["label_names"][logits.argmax(-1).item()]
"""
_IMAGE = """from PIL import Image
from transformers import AutoImageProcessor, ViTForImageClassification

model = ViTForImageClassification.from_pretrained(folder)
inputs = AutoImageProcessor.from_pretrained(folder)(Image.open(file).convert("RGB"), return_tensors="pt")
logits = model(**inputs).logits
label = model.config.id2label[logits.argmax(-1).item()]
"""
_VIDEO = """import av
import numpy as np
from transformers import VivitForVideoClassification, VivitImageProcessor

model = VivitForVideoClassification.from_pretrained(folder)
with av.open(file) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
count, stride = {frames}, {stride}
start = max(0, len(frames) - count * stride) // 2
clip = [frames[i % len(frames)] for i in start + stride * np.arange(count)]
logits = model(**VivitImageProcessor.from_pretrained(folder)(clip, return_tensors="pt")).logits
label = model.config.id2label[logits.argmax(-1).item()]
"""
_AUDIO = """import soundfile
import torch
import torchaudio
from transformers import ASTForAudioClassification

model = ASTForAudioClassification.from_pretrained(folder)
wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
wave = torchaudio.functional.resample(torch.from_numpy(wave).mean(1), rate, {rate})
mel = torchaudio.transforms.MelSpectrogram(
    {rate}, n_fft={fft}, win_length={window}, hop_length={hop}, f_min=20.0, n_mels={bins}, center=False
)
padded = torch.nn.functional.pad(wave, ({left}, {fft}))
log_mel = torch.log(mel(padded) + 1e-6).T[: -(-len(wave) // {hop})]
start = max(0, len(log_mel) - {frames}) // 2
log_mel = log_mel[(start + torch.arange({frames})) % len(log_mel)]
inputs = ((log_mel - {mean}) / {std})[None]
mask = torch.ones(1, {tokens} + 2)
mask[:, 1] = 0  # hides the distillation token, which this model does not have
logits = model(inputs, attention_mask=mask).logits
label = model.config.id2label[logits.argmax(-1).item()]
"""


def differences(config: RunConfig, name: str, library: Library) -> list[str]:
    """Sentences: where the library prepares media or answers otherwise than our evaluation."""
    task = config.tasks[name]
    spec = config.model.input(task.modality)
    notes = []
    if isinstance(spec, AudioInput):
        notes += [
            "AST has a distillation token, this model has none: pass `attention_mask` as below, with 0 at place 1 "
            "(transformers 5.10 or newer). Without it the class token counts twice in each attention.",
            "`ASTFeatureExtractor` computes Kaldi's filter banks (pre-emphasis, other windows). This model was "
            "trained on the log-mel below: use its normalisation alone, not its spectrogram.",
            "The training feed rounds spectrograms to half floats; unrounded ones move logits in the third or "
            "fourth digit.",
        ]
    if isinstance(task, ImageTask) and not task.augment.antialias:
        notes.append(
            "The processor filters where it shrinks a picture; our evaluation does not (antialias: false)."
        )
    cropped = isinstance(task, ImageTask) and task.augment.eval_resize == "crop"
    if library == "timm" and cropped and len(set(config.model.image.size)) > 1:  # type: ignore[union-attr]
        notes.append("timm resizes before an oblong crop by the longer side; our evaluation by the smaller one.")
    if isinstance(task, VideoTask):
        notes.append("The processor filters where it shrinks a frame; our evaluation does not.")
    if task.eval_views > 1:
        notes.append(f"Our evaluation averages {task.eval_views} views of an example; this model answers for one.")
    if task.loss == "sigmoid":
        notes.append("Several classes may be right at once: probabilities are sigmoids of the logits, each alone.")
    return notes


def readme(
    config: RunConfig, name: str, library: Library, difference: float, result: Mapping[str, Any] | None
) -> str:
    """README.md. difference: of logits, measured. result: of the task's last evaluation; None: there is none."""
    task = config.tasks[name]
    kind = f"{task.modality}-classification"
    front = ["---", f"library_name: {'timm' if library == 'timm' else 'transformers'}", f"pipeline_tag: {kind}"]
    front += ["tags:", f"- {kind}", "- polyvit", "---"]
    value = (result or {}).get("value")
    scored = "" if value is None else f" Its {result['metric']} was {value:.4f} on {result['examples']} examples."  # type: ignore[index]
    return "\n".join(
        [
            *front,
            "",
            f"# {name}: one task of the PolyViT {config.name}",
            "",
            f"Classifies {task.modality} files into {task.num_classes} classes. Written by polyvit {__version__}; "
            f"on noise its logits differ from the PolyViT's by {difference:.1e} of the largest.{scored}",
            f"Licence of the data it was trained on: {licence_words(config, name)}.",
            "",
            "```python",
            'folder, file = "path/to/this/folder", "path/to/a/file"',
            _code(config, name, library).rstrip(),
            "```",
            "",
            *_bullets("Where answers differ from our evaluation's", differences(config, name, library)),
        ]
    )


def _bullets(title: str, notes: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {note}" for note in notes), ""] if notes else []


def _code(config: RunConfig, name: str, library: Library) -> str:
    task = config.tasks[name]
    spec = config.model.input(task.modality)
    if isinstance(task, VideoTask):
        return _VIDEO.format(frames=config.model.video.frames, stride=task.augment.frame_stride)  # type: ignore[union-attr]
    if not isinstance(spec, AudioInput):
        return _TIMM if library == "timm" else _IMAGE
    fft, window, hop = transform_sizes(spec)
    return _AUDIO.format(
        rate=spec.sample_rate, fft=fft, window=window, hop=hop, bins=spec.mel_bins, left=(fft - window) // 2,
        frames=spec.frames, mean=spec.mean, std=spec.std, tokens=spec.num_tokens,
    )  # fmt: skip
