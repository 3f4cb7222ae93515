"""One example: media bytes to tokens, as they leave the CPU.

In: a file's bytes, or pixels that need no decoding (CIFAR rows). Out: tokens_NP of the shape and dtype that
`token_shape` and `token_dtype` say: uint8 pixels of images and video, float16 normalised log-mel of audio.

The decoders are imported where they are used: a process that decodes pictures never loads torch,
torchaudio or decord, which costs seconds in every new Ray worker.
"""

import math
from collections.abc import Sequence

import numpy as np

from polyvit.config import (
    AudioInput,
    AudioTask,
    ImageInput,
    ImageTask,
    Modality,
    ModelInput,
    TaskConfig,
    VideoInput,
    VideoTask,
)
from polyvit.data.transforms import CropPosition, View, patchify_audio, patchify_image, patchify_video
from polyvit.errors import BadMedia

Media = bytes | np.ndarray


def example_tokens(
    media: Media,
    task: TaskConfig,
    spec: ModelInput,
    rng: np.random.Generator | None,
    start_s: float = 0.0,
    end_s: float = -1.0,
    view: View | None = None,
    crop: CropPosition = "centre",
) -> np.ndarray:
    """tokens_NP of one example of `task`.

    rng: the example's own generator (`augment.example_rng`) for training; None is the evaluation view, of
    which `view` (i, n) and, for video, `crop` ("left", "centre", "right") choose another.
    start_s, end_s: seconds inside the recording or video; end_s < 0 is its end.
    Raises BadMedia for media that cannot be decoded, TypeError where task and spec are of two modalities.
    """
    if isinstance(task, ImageTask) and isinstance(spec, ImageInput):
        return _image_tokens(media, task, spec, rng)
    if isinstance(media, np.ndarray):
        raise TypeError(f"pixels without a file are for image tasks; this one is {task.modality}")
    if isinstance(task, VideoTask) and isinstance(spec, VideoInput):
        return _video_tokens(media, task, spec, rng, (start_s, end_s), view, crop)
    if isinstance(task, AudioTask) and isinstance(spec, AudioInput):
        return _audio_tokens(media, task, spec, rng, (start_s, end_s), view)
    raise TypeError(f"a task of modality {task.modality} cannot take a {type(spec).__name__}")


def evaluation_tokens(
    media: Media, task: TaskConfig, spec: ModelInput, start_s: float = 0.0, end_s: float = -1.0
) -> np.ndarray:
    """tokens_VNP of one example: every evaluation view, as `example_tokens` makes each of `evaluation_views`.

    What views share is decoded once: a recording, and the clip of several crops. Raises as `example_tokens`;
    one view that cannot be decoded spoils the example.
    """
    segment_s = (start_s, end_s)
    if isinstance(task, VideoTask) and isinstance(spec, VideoInput) and isinstance(media, bytes):
        crops = eval_crops(task)
        views = [_video_views(media, task, spec, segment_s, time, crops) for time in eval_times(task)]
        return np.concatenate(views)
    if isinstance(task, AudioTask) and isinstance(spec, AudioInput) and isinstance(media, bytes):
        return _audio_views(media, spec, segment_s, eval_times(task))
    return example_tokens(media, task, spec, None, start_s, end_s)[None]


def evaluation_views(task: TaskConfig) -> list[tuple[View | None, CropPosition]]:
    """(view, crop) of every evaluation view, clips outermost."""
    if isinstance(task, ImageTask):
        return [(None, "centre")]
    crops = eval_crops(task) if isinstance(task, VideoTask) else ("centre",)
    return [(time, crop) for time in eval_times(task) for crop in crops]


def eval_times(task: VideoTask | AudioTask) -> list[View | None]:
    """One clip is the middle one; n lie at int(linspace(0, max(0, len - frames * stride), n))."""
    return [None] if task.eval_clips == 1 else [(i, task.eval_clips) for i in range(task.eval_clips)]


def eval_crops(task: VideoTask) -> tuple[CropPosition, ...]:
    """The centre, or three along the longer side."""
    return ("left", "centre", "right") if task.eval_crops == 3 else ("centre",)


def token_shape(spec: ModelInput) -> tuple[int, int]:
    """(N, P) of one example's tokens, without the class token."""
    return math.prod(spec.grid), spec.patch_dim


def token_dtype(modality: Modality) -> np.dtype:
    """uint8 for pixels in [0, 255], float16 for normalised log-mel."""
    return np.dtype(np.float16 if modality == "audio" else np.uint8)


def _image_tokens(media: Media, task: ImageTask, spec: ImageInput, rng: np.random.Generator | None) -> np.ndarray:
    from polyvit.data.decode import image

    if isinstance(media, bytes):
        if rng is not None:
            image_HWC = image.train_jpeg(media, spec.size, task.augment, rng)
        else:
            image_HWC = image.eval_image(image.decode_image(media), spec.size, task.augment)
    elif media.dtype != np.uint8 or media.ndim != 3 or media.shape[2] != 3 or not media.size:
        raise BadMedia(f"image: an array {media.dtype}{list(media.shape)} is not uint8 [H, W, 3]")
    elif rng is not None:
        image_HWC = image.train_image(media, spec.size, task.augment, rng)
    else:
        image_HWC = image.eval_image(media, spec.size, task.augment)
    return patchify_image(image_HWC, spec.patch_size, spec.stride)


def _video_tokens(
    data: bytes,
    task: VideoTask,
    spec: VideoInput,
    rng: np.random.Generator | None,
    segment_s: tuple[float, float],
    view: View | None,
    crop: CropPosition,
) -> np.ndarray:
    from polyvit.data.decode import video

    if rng is None:
        return _video_views(data, task, spec, segment_s, view, (crop,))[0]
    augment = task.augment
    frames = video.read_frames(data, spec.frames, augment.frame_stride, rng, *segment_s, view, augment.reader)
    video_THWC = video.train_video(frames, spec.size, augment, rng)
    return patchify_video(video_THWC, spec.tubelet_size, spec.stride)


def _video_views(
    data: bytes,
    task: VideoTask,
    spec: VideoInput,
    segment_s: tuple[float, float],
    view: View | None,
    crops: Sequence[CropPosition],
) -> np.ndarray:
    """tokens [crops, N, P] of one clip, without augmentation."""
    from polyvit.data.decode import video

    augment = task.augment
    frames = video.read_frames(data, spec.frames, augment.frame_stride, None, *segment_s, view, augment.reader)
    cut = [video.eval_video(frames, spec.size, augment, crop) for crop in crops]
    return np.stack([patchify_video(crop_THWC, spec.tubelet_size, spec.stride) for crop_THWC in cut])


def _audio_tokens(
    data: bytes,
    task: AudioTask,
    spec: AudioInput,
    rng: np.random.Generator | None,
    segment_s: tuple[float, float],
    view: View | None,
) -> np.ndarray:
    from polyvit.data.decode import audio

    if rng is None:
        return _audio_views(data, spec, segment_s, [view])[0]
    waveform_S = audio.decode_waveform(data, spec.sample_rate, *segment_s)
    spectrogram_TF = audio.train_waveform(waveform_S, spec, task.augment, rng)
    return patchify_audio(spectrogram_TF.astype(np.float16), spec.patch_size, spec.stride)


def _audio_views(
    data: bytes, spec: AudioInput, segment_s: tuple[float, float], views: Sequence[View | None]
) -> np.ndarray:
    """tokens [views, N, P] of one recording, without augmentation."""
    from polyvit.data.decode import audio

    waveform_S = audio.decode_waveform(data, spec.sample_rate, *segment_s)
    kept = [audio.eval_waveform(waveform_S, spec, view).astype(np.float16) for view in views]
    return np.stack([patchify_audio(spectrogram_TF, spec.patch_size, spec.stride) for spectrogram_TF in kept])
