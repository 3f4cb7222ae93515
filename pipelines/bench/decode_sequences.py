"""Long videos with sound to sequences of clips: what an example costs, and its parts. Tables of `polyvit bench
decode`.

The videos are made: 40 s at 340 x 256 pixels and 25 frames a second, a key frame every 250, AAC at 44.1 kHz. Two
settings of AVBert: 30 one-second clips of 16 frames (its pre-training text) and 10 clips of 2.13 s with 32 frames,
spread over the video (its released fine-tuning).
"""

from typing import Any

import numpy as np

from pipelines.bench.kit import Runs, print_table, timed_items
from polyvit.config import AudiovisualTask, SequenceInput
from polyvit.data.decode import SequencePlan, clip_log_mel, open_container, read_sequence
from polyvit.data.decode.video import walk
from polyvit.data.loading import example_arrays
from polyvit.data.transforms import example_rng
from polyvit.synthetic import encode_video, song

SIZE, FPS, SECONDS, RATE = (256, 340), 25, 40.0, 44_100
SETTINGS: dict[str, tuple[SequenceInput, dict[str, Any]]] = {
    "30 x 1 s, 16 frames": (SequenceInput(clips=30, frames=16), {"spacing": "contiguous", "clip_seconds": 1.0}),
    "10 x 2.13 s, 32 frames": (SequenceInput(), {}),
}
TASK = {"modality": "audiovisual", "layout": "csv", "num_classes": 2, "steps": 1, "batch": 1}


def long_video(seed: int, seconds: float | None = None) -> bytes:
    """The bytes of one of the videos; seconds: None: `SECONDS`."""
    clip_THWC, wave = song(np.random.default_rng(seed), seed % 8, SIZE, FPS, seconds or SECONDS, RATE)
    return encode_video(clip_THWC, FPS, wave, RATE)


def sequence_tables(count: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    """A table for each setting: a whole example, and where its time goes. count: of videos."""
    videos, tables = [long_video(seed + i) for i in range(count)], []
    for name, (spec, augment) in SETTINGS.items():
        rows = timed_items(_runs(videos, spec, augment, seed), count, rounds, seed)
        size = sum(map(len, videos)) / count
        tables.append({"setting": name, "count": count, "mean_bytes": size, "stages": rows})
        print_table(f"Stages of a sequence, {name}", rows)
    return tables


def _runs(videos: list[bytes], spec: SequenceInput, augment: dict[str, Any], seed: int) -> Runs:
    task = AudiovisualTask.model_validate({**TASK, "augment": augment})
    sound = {**TASK, "augment": augment, "streams": "audio"}
    alone = {"audio": AudiovisualTask.model_validate(sound)}
    alone["visual"] = AudiovisualTask.model_validate({**sound, "streams": "visual"})
    plan = SequencePlan(
        spec.clips, spec.frames, task.augment.clip_seconds, task.augment.spacing, spec.sample_rate, "audio"
    )
    waves = read_sequence(videos[0], plan, lambda height, width: np.asarray)[1]
    assert waves is not None

    def rng(i: int) -> np.random.Generator:
        return example_rng(seed, "bench", 0, str(i))

    def walked(i: int) -> None:
        with open_container(videos[i]) as container:
            walk(container)

    return {
        "example": lambda i: example_arrays(videos[i], task, spec, rng(i)),
        "open and walk": walked,
        "pictures alone": lambda i: example_arrays(videos[i], alone["visual"], spec, rng(i)),
        "sound alone": lambda i: example_arrays(videos[i], alone["audio"], spec, rng(i)),
        "log-mel": lambda i: clip_log_mel(waves, spec.sample_rate, spec.spectrogram_frames, spec.mel_bins),
    }
