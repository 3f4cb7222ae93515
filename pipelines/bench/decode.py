"""Decoding against peers: JPEG to tokens, H.264 to clips, sound to log-mel, videos with sound to sequences. A
section of `polyvit bench feed`.

    python -m pipelines.bench.decode --data DIR [--rounds N] [--photos N] [--clips N] [--opens N] [--json FILE]

Every contender decodes every item in every round, in random order. What is measured is the CPU time of the whole
process, so that a library's own threads count too. Torch and OpenCV have one thread. Frames are compared with a
sequential decoding, pixels by PSNR, log-mel by its largest difference.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipelines.bench import decode_media, kit
from pipelines.bench import decode_peers as peers
from pipelines.bench.decode_sequences import sequence_tables
from pipelines.bench.kit import Rows, Runs, decode_machine, print_table, psnr, timed_items
from pipelines.runtime import command_line, console
from polyvit.config import (
    AudioInput,
    AudioTask,
    ImageAugment,
    ImageInput,
    ImageTask,
    VideoAugment,
    VideoInput,
    VideoTask,
)
from polyvit.data.decode import audio, image, video
from polyvit.data.loading import example_arrays
from polyvit.data.transforms import Box, example_rng, inception_box, patchify_video, window_indices, window_start
from polyvit.errors import UserError

FRAMES, STRIDE = 32, 2
SEQUENCES = 2
"""Long videos at most; making one takes 20 s of CPU time."""
TASK = {"layout": "csv", "num_classes": 2, "steps": 1, "batch": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pipelines.bench.decode`."""
    parser = command_line.parser("bench feed decode", "Decoding against peers, one core.")
    parser.add_argument("--data", type=Path, required=True, help="a folder with photos and sounds below it")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; medians count")
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument(
        "--clips", type=int, default=4, help="clips of each kind; encoding one takes 10 s of CPU time"
    )
    parser.add_argument("--opens", type=int, default=0, help="how often to open videos, to look for leaks")
    parser.add_argument("--seed", type=int, default=0)
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    return decode_section(
        arguments.data, arguments.rounds, arguments.photos, arguments.clips, arguments.opens, arguments.seed
    )


def decode_section(
    data: Path, rounds: int = 5, photos: int = 48, clips: int = 4, opens: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Run the whole benchmark and print its tables. Returns its document.

    data: a folder with JPEGs and sounds anywhere below it. rounds: of every table. photos: how many JPEGs.
    clips: how many clips of each kind. opens: how often videos are opened to look for leaks; 0: not at all.
    seed: of the material and of the order of contenders.

    Raises UserError where `data` lacks either, and for counts below 1.
    """
    if min(rounds, photos, clips) < 1 or opens < 0:
        raise UserError("--rounds, --photos and --clips must be at least 1, --opens at least 0")
    threads, before = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            pictures = decode_media.photos(data, photos, seed)
            document = {
                "benchmark": "decode", "machine": decode_machine(), "rounds": rounds, "seed": seed,
                "absent": peers.absent(),
                "unit": "milliseconds of the process's CPU time an item",
                "image": image_tables(pictures, rounds, seed),
                "video": video_tables(pictures[:clips], Path(folder), rounds, seed),
                "audio": audio_tables(data, rounds, seed),
                "audiovisual": sequence_tables(min(clips, SEQUENCES), rounds, seed),
                "opens": video_opens(pictures[0], opens, seed) if opens else None,
            }  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for name, why in peers.absent().items():
        console.print(f"absent: {name}: {why}")
    claims = kit.claims(before)
    console.print(f"absolute numbers may be quoted: {claims['absolute']} ({claims['why']})")
    return {**document, "claims": claims}


# ------------------------------------------------------------------------------------------------------ image


def image_tables(photos: list[bytes], rounds: int, seed: int) -> list[dict[str, Any]]:
    """Originals to 224 and 384 pixels, and large photos to 224."""
    large = decode_media.large_photos(photos, max(2, len(photos) // 6))
    cases = [("originals", photos, 224), ("originals", photos, 384), ("large", large, 224)]
    tables: list[dict[str, Any]] = []
    for name, files, out in cases:
        rows = image_rows(files, out, rounds, seed)
        size = statistics.mean(map(len, files))
        tables.append({"photos": name, "count": len(files), "mean_bytes": size, "out": out, "rows": rows})
        print_table(f"JPEG ({name}) to {out} tokens", rows)
    return tables


def image_rows(photos: list[bytes], out: int, rounds: int, seed: int) -> Rows:
    """PIL first; every contender draws and cuts the crop of `example_arrays`. No flips, so that pixels compare."""
    spec = ImageInput(size=(out, out), patch_size=peers.PATCH)
    augment = ImageAugment(flip=0)
    sides = [image.decode_image(photo).shape[:2] for photo in photos]

    def box(i: int) -> Box:
        rng = example_rng(seed, "bench", 0, str(i))
        height, width = sides[i]
        return inception_box(height, width, augment.crop_area or (1.0, 1.0), augment.crop_ratio, rng)

    def ours(**changes: bool) -> Callable[[int], np.ndarray]:
        task = ImageTask.model_validate({**TASK, "augment": augment.model_dump() | changes})
        return lambda i: example_arrays(photos[i], task, spec, example_rng(seed, "bench", 0, str(i)))["tokens"][0]

    def peer(name: str) -> Callable[[int], np.ndarray]:
        decode = peers.image_peers()[name]
        return lambda i: decode(photos[i], box(i), out)

    runs = {name: peer(name) for name in peers.image_peers()}
    runs |= {
        "ours": ours(),
        "ours, whole decode": ours(scaled_decode=False),
        "ours, antialias": ours(antialias=True),
        "ours, antialias, whole": ours(antialias=True, scaled_decode=False),
        "ours, flipped": ours(flip=True),
    }
    rows = timed_items(runs, len(photos), rounds, seed)
    filtered, exact = ([runs[name](i) for i in range(len(photos))] for name in ("PIL", "simplejpeg + OpenCV"))
    for name in rows.keys() - {"limit: decode only", "ours, flipped"}:
        tokens = [runs[name](i) for i in range(len(photos))]
        rows[name]["psnr_antialias"] = _median_p5(tokens, filtered)
        rows[name]["psnr_bilinear"] = _median_p5(tokens, exact)
    return rows


def _median_p5(actual: list[np.ndarray], expected: list[np.ndarray]) -> list[float]:
    values = [psnr(a, b) for a, b in zip(actual, expected, strict=True)]
    return [float(np.median(values)), float(np.percentile(values, 5))]


# ------------------------------------------------------------------------------------------------------ video


def video_tables(photos: list[bytes], folder: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """One table a kind of clip, and where the time of a whole example goes."""
    tables: list[dict[str, Any]] = []
    for kind, options in decode_media.CLIPS.items():
        clips = []
        for i, photo in enumerate(photos):
            data = decode_media.clip(photo, options, seed + i)
            path = folder / f"{len(tables)}_{i}.mp4"
            path.write_bytes(data)
            clips.append(peers.Clip(data, path))
        size = statistics.mean(len(clip.data) for clip in clips)
        table = {"clips": kind, "count": len(clips), "mean_bytes": size, **video_rows(clips, rounds, seed)}
        tables.append(table)
        print_table(f"{FRAMES} frames at stride {STRIDE} of H.264, {kind}", table["rows"])
        print_table(f"Stages of a training clip, {kind}", table["stages"])
    return tables


def video_rows(clips: list[peers.Clip], rounds: int, seed: int) -> dict[str, Any]:
    """decord first. `identical`: every frame of every reader equals a sequential decoding's."""

    def generator(i: int) -> np.random.Generator:
        return example_rng(seed, "bench", 0, str(i))

    length = decode_media.SECONDS * decode_media.FPS
    starts = [window_start(length, FRAMES, STRIDE, generator(i)) for i in range(len(clips))]
    numbers = [window_indices(length, FRAMES, STRIDE, start).tolist() for start in starts]

    def peer(name: str) -> Callable[[int], np.ndarray]:
        read = peers.clip_peers()[name]
        return lambda i: read(clips[i], numbers[i])

    def ours(reader: str) -> Callable[[int], Sequence[np.ndarray]]:
        return lambda i: video.read_frames(clips[i].data, FRAMES, STRIDE, generator(i), reader=reader)  # type: ignore[arg-type]

    runs: dict[str, Callable[[int], Any]] = {name: peer(name) for name in peers.clip_peers()}
    runs["ours"] = ours("pyav")
    if "decord" not in peers.absent():
        runs["ours, reader=decord"] = ours("decord")
    expected = [peers.sequential(clip, wanted) for clip, wanted in zip(clips, numbers, strict=True)]
    same = {n: all(np.array_equal(run(i), frames) for i, frames in enumerate(expected)) for n, run in runs.items()}
    rows = {
        name: {**row, "identical": same[name]} for name, row in timed_items(runs, len(clips), rounds, seed).items()
    }
    return {"rows": rows, "stages": video_stages(clips, expected, rounds, seed)}


def video_stages(clips: list[peers.Clip], frames: list[np.ndarray], rounds: int, seed: int) -> Rows:
    """A whole training example, and its parts."""
    spec, task = VideoInput(), VideoTask.model_validate({**TASK, "modality": "video"})
    plain = VideoAugment(colour_jitter=0, colour_drop=0, flip=1)

    def generator(i: int) -> np.random.Generator:
        return example_rng(seed, "bench", 0, str(i))

    def walk(i: int) -> None:
        with video.open_container(clips[i].data) as container:
            video.walk(container)

    def opened(i: int) -> None:
        video.open_container(clips[i].data).close()

    cut = [video.train_video(video_THWC, spec.size, plain, generator(0)) for video_THWC in frames]
    runs: Runs = {
        "tokens": lambda i: example_arrays(clips[i].data, task, spec, generator(i))["tokens"][0],
        "open": opened,
        "open and walk": walk,
        "read": lambda i: video.read_frames(clips[i].data, FRAMES, STRIDE, generator(i)),
        "crop, resize, flip": lambda i: video.train_video(frames[i], spec.size, plain, generator(i)),
        "the same and colours": lambda i: video.train_video(
            frames[i], spec.size, VideoAugment(colour_jitter=1), generator(i)
        ),
        "patchify": lambda i: patchify_video(cut[i], spec.tubelet_size),
    }
    return timed_items(runs, len(clips), rounds, seed)


def video_opens(photo: bytes, opens: int, seed: int) -> dict[str, dict[str, int]]:
    """Memory, file descriptors and threads before and after `opens` clips read, after 100 that are not counted."""
    data = decode_media.clip(photo, decode_media.CLIPS["gop 32 fastdecode"], seed)
    document: dict[str, dict[str, int]] = {}
    for reader in [name for name in ("pyav", "decord") if name not in peers.absent()]:
        marks = []
        for count in (100, opens):
            for number in range(count):
                video.read_frames(data, FRAMES, STRIDE, np.random.default_rng(number), reader=reader)  # type: ignore[arg-type]
            process = psutil.Process()
            marks.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        (rss, fds, threads), (rss_after, fds_after, threads_after) = marks
        document[reader] = {
            "opens": opens, "rss_bytes": rss, "rss_growth_bytes": rss_after - rss, "fds": fds,
            "fds_after": fds_after, "threads": threads, "threads_after": threads_after,
        }  # fmt: skip
        console.print(
            f"{opens} opens by {reader}: memory {(rss_after - rss) / 1e6:+.1f} MB of {rss / 1e6:.0f} MB, "
            f"files {fds} to {fds_after}, threads {threads} to {threads_after}"
        )
    return document


# ------------------------------------------------------------------------------------------------------ audio


def audio_tables(data: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Each kind of file to a waveform at 16 kHz and on to log-mel of 800 x 128, and the log-mel alone."""
    kinds: list[dict[str, Any]] = []
    waves: list[np.ndarray] = []
    for kind in decode_media.RECORDINGS:
        files = decode_media.recordings(data, kind, 6, seed)
        waves = waves or [audio.decode_waveform(file, 16_000) for file in files]
        read, whole = recording_rows(files, kind.startswith("m4a"), rounds, seed)
        kinds.append(
            {"kind": kind, "mean_bytes": statistics.mean(map(len, files)), "read": read, "log_mel": whole}
        )
        print_table(f"{kind} to a waveform at 16 kHz", read)
        print_table(f"{kind} to log-mel, peers by torchaudio", whole)
    return {"kinds": kinds, **log_mel_table(waves, rounds, seed), "resampling": resampling()}


def recording_rows(files: list[bytes], m4a: bool, rounds: int, seed: int) -> tuple[Rows, Rows]:
    """Reading alone, and reading with log-mel."""
    spec, task = AudioInput(), AudioTask.model_validate({**TASK, "modality": "audio"})
    readers_of_peers = peers.sound_peers(m4a)

    def read(name: str) -> Callable[[int], np.ndarray]:
        return lambda i: readers_of_peers[name](files[i])

    def read_mel(name: str) -> Callable[[int], np.ndarray]:
        return lambda i: peers.torchaudio_log_mel(readers_of_peers[name](files[i]))

    def ours(i: int) -> np.ndarray:
        return audio.decode_waveform(files[i], 16_000)

    def tokens(i: int) -> np.ndarray:
        return example_arrays(files[i], task, spec, example_rng(seed, "bench", 0, str(i)))["tokens"][0]

    readers: Runs = {**{name: read(name) for name in readers_of_peers}, "ours": ours}
    whole: Runs = {
        **{name: read_mel(name) for name in readers_of_peers},
        "ours": lambda i: audio.eval_waveform(ours(i), spec),
        "ours, training tokens": tokens,
    }
    return timed_items(readers, len(files), rounds, seed), timed_items(whole, len(files), rounds, seed)


def log_mel_table(waves: list[np.ndarray], rounds: int, seed: int) -> dict[str, Any]:
    """Ours against torchaudio's MelSpectrogram, and the largest difference, for sounds and for noise."""
    spec = AudioInput()
    runs: Runs = {
        "torchaudio": lambda i: peers.torchaudio_log_mel(waves[i]),
        "ours": lambda i: audio.log_mel(waves[i], spec, 0, 800),
    }
    rows = timed_items(runs, len(waves), rounds, seed)
    noise_S = np.random.default_rng(seed).standard_normal(128_000, np.float32) / 10
    apart = [
        float(np.abs(audio.log_mel(wave, spec) - peers.torchaudio_log_mel(wave)).max())
        for wave in (noise_S, *waves)
    ]
    print_table("log-mel alone", rows)
    console.print(
        f"largest difference: {apart[0]:.1e} of noise, {max(apart[1:]):.1e} of sounds with silence in them"
    )
    return {"log_mel": rows, "difference_noise": apart[0], "difference_sounds": max(apart[1:])}


def resampling() -> dict[str, Any]:
    """Signal to error, in dB, of tones below the new limit of 8 kHz; and how far down tones above it are."""
    time_S = np.arange(44_100 * 2) / 44_100
    after_S = np.arange(16_000 * 2) / 16_000
    document: dict[str, Any] = {}
    for name, change in (("ours", lambda tone_S: audio._resample(tone_S, 44_100, 16_000)),
                         ("torchaudio", lambda tone_S: peers.resample(tone_S, 44_100))):  # fmt: skip
        kept, aliased = {}, {}
        for hertz in (1_000, 5_000, 7_000):
            resampled_S = change(np.sin(2 * np.pi * hertz * time_S).astype(np.float32))[1000:-1000]
            error = resampled_S - np.sin(2 * np.pi * hertz * after_S)[1000 : 1000 + len(resampled_S)]
            kept[hertz] = -10 * float(np.log10(2 * np.mean(error**2)))
        for hertz in (8_500, 9_000, 12_000):
            resampled_S = change(np.sin(2 * np.pi * hertz * time_S).astype(np.float32))[1000:-1000]
            aliased[hertz] = -10 * float(np.log10(2 * np.mean(resampled_S.astype(np.float64) ** 2)))
        document[name] = {"signal_to_error_db": kept, "alias_db_down": aliased}
    return document


if __name__ == "__main__":
    sys.exit(main())
