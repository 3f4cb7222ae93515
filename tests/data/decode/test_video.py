"""Clips: which frames, from which files, cut to which size."""

import io

import av
import cv2
import numpy as np
import pytest
from image_checks_kit import damaged_rows
from kit import DATA_DIR, needs_data

from polyvit.config import VideoAugment
from polyvit.data.decode.video import eval_video, read_clip, train_video
from polyvit.errors import BadMedia


def video_bytes(frames: int, container: str = "mp4", codec: str = "libx264", side: int = 64) -> bytes:
    """A video whose frame i is grey of level 6 * i, at 10 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.bit_rate = 2_000_000
        for i in range(frames):
            frame_HWC = np.full((side, side, 3), 6 * i, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def frame_numbers(video_THWC: np.ndarray) -> list[int]:
    return [round(float(level) / 6) for level in video_THWC.mean((1, 2, 3))]


@pytest.fixture(scope="module")
def forty() -> bytes:
    return video_bytes(40)


def test_the_middle_window_and_the_views(forty: bytes) -> None:
    assert frame_numbers(read_clip(forty, 8, 2)) == [12 + 2 * i for i in range(8)]
    starts = [frame_numbers(read_clip(forty, 8, 2, view=(i, 3)))[0] for i in range(3)]
    assert starts == [0, 12, 24]


def test_the_random_window_is_the_generators(forty: bytes) -> None:
    clips = [frame_numbers(read_clip(forty, 8, 2, np.random.default_rng(seed))) for seed in (0, 0, 1, 2, 3)]
    assert clips[0] == clips[1]
    assert len({clip[0] for clip in clips}) > 2
    assert all(np.diff(clip).tolist() == [2] * 7 for clip in clips)


def test_a_segment_in_seconds(forty: bytes) -> None:
    assert frame_numbers(read_clip(forty, 5, 1, start_s=1.0, end_s=1.5)) == [10, 11, 12, 13, 14]
    with pytest.raises(BadMedia, match="no frame from 9 s"):
        read_clip(forty, 5, 1, start_s=9.0)


def test_short_videos_start_again() -> None:
    assert frame_numbers(read_clip(video_bytes(3), 5, 2)) == [0, 2, 1, 0, 2]
    assert frame_numbers(read_clip(video_bytes(3), 3, 2)) == [0, 2, 1]


def test_a_view_that_does_not_exist_is_the_callers_mistake(forty: bytes) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        read_clip(forty, 8, 2, view=(3, 3))


@pytest.mark.parametrize(
    ("container", "codec"), [("avi", "mpeg4"), ("matroska", "libx264"), ("mpegts", "libx264")]
)
def test_other_containers_give_the_same_frames(container: str, codec: str) -> None:
    assert frame_numbers(read_clip(video_bytes(40, container, codec), 8, 2)) == [12 + 2 * i for i in range(8)]


@needs_data
@pytest.mark.parametrize("row", damaged_rows("video"), ids=lambda row: row["file"])
def test_every_damaged_or_odd_video_of_the_kit(row: dict[str, str]) -> None:
    data = (DATA_DIR / "broken" / row["file"]).read_bytes()
    if row["status"] == "broken":
        for seed in (None, 0, 1):
            with pytest.raises(BadMedia):
                read_clip(data, 8, 2, None if seed is None else np.random.default_rng(seed))
        return
    video_THWC = read_clip(data, 8, 2)
    assert video_THWC.dtype == np.uint8
    with av.open(io.BytesIO(data)) as box:
        sides = box.streams.video[0].height, box.streams.video[0].width
    assert video_THWC.shape == (8, *(sides[::-1] if "rotated" in row["file"] else sides), 3)
    if "one_frame" in row["file"]:
        assert (video_THWC == video_THWC[0]).all()


@needs_data
def test_all_readers_give_equal_frames() -> None:
    clips = sorted(DATA_DIR.glob("kinetics400/train/*/*.mp4"))
    for path in [*clips[:: max(1, len(clips) // 4)], *DATA_DIR.glob("broken/video/*rotated*.mp4")]:
        data = path.read_bytes()
        wanted = read_clip(data, 8, 2)
        assert np.array_equal(read_clip(data, 8, 2, reader="decord"), wanted)
        assert np.array_equal(from_the_start(data, 8, 2), wanted)


def from_the_start(data: bytes, num_frames: int, frame_stride: int, seed: int | None = None) -> np.ndarray:
    """`read_clip`, with every frame decoded."""
    rng = None if seed is None else np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polyvit.data.decode.video._read_wanted", lambda *_: None)
        return read_clip(data, num_frames, frame_stride, rng)


ENCODINGS: list[tuple[str, str, dict[str, str]]] = [
    ("mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "b-pyramid=normal:scenecut=0"}),
    ("mp4", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}),
    ("mp4", "libx264", {"g": "12", "intra-refresh": "1"}),
    ("mp4", "libx264", {"g": "12", "bf": "0", "refs": "4"}),
    ("matroska", "libx264", {"g": "250", "bf": "2", "x264-params": "interlaced=1"}),
    ("mp4", "libx265", {"g": "12", "x265-params": "log-level=none:temporal-layers=3:bframes=4"}),
    ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
    ("webm", "libvpx-vp9", {"g": "12", "cpu-used": "8"}),
    ("webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"}),
]


@pytest.mark.parametrize(("container", "codec", "options"), ENCODINGS, ids=str)
def test_skipping_what_is_not_needed_changes_no_pixel(container: str, codec: str, options: dict[str, str]) -> None:
    data = moving_bytes(container, codec, options)
    for seed in range(4):
        found = read_clip(data, 6, 2, np.random.default_rng(seed))
        assert np.array_equal(found, from_the_start(data, 6, 2, seed))


def test_frames_nobody_refers_to_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = moving_bytes(*ENCODINGS[0])
    wanted = read_clip(data, 6, 2)
    spoilt, count = bytearray(data), 0
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(video=0):
            number = round(packet.pts * packet.time_base * 10) if packet.size else None
            # After its length of four bytes, a slice of nal_ref_idc 0 that is not an IDR's.
            if number is not None and number not in range(19, 30, 2) and bytes(packet)[4] == 1:
                spoilt[packet.pos + 5 : packet.pos + packet.size] = b"\xff" * (packet.size - 5)
                count += 1
    assert count > 8
    # Met by the decoder, they would spoil the clip: the quick way would fail over to reading from the start.
    monkeypatch.setattr("polyvit.data.decode.video._read_from_start", None)
    assert np.array_equal(read_clip(bytes(spoilt), 6, 2), wanted)


def moving_bytes(container: str, codec: str, options: dict[str, str]) -> bytes:
    """50 frames of noise that moves, 10 a second."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (80, 200, 3), dtype=np.uint8)
    smooth_HWC = cv2.GaussianBlur(noise_HWC, (5, 5), 0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(50):
            frame_HWC = np.ascontiguousarray(smooth_HWC[i // 7 : i // 7 + 64, 2 * i : 2 * i + 64])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def test_damaged_bytes_are_decoded_or_bad_media_and_always_the_same(forty: bytes) -> None:
    rng = np.random.default_rng(0)
    for trial in range(20):
        data = bytearray(forty[: len(forty) * (10 - trial % 5) // 10])
        for _ in range(trial):
            data[rng.integers(len(data))] = rng.integers(256)
        # Trial 5 damages a time stamp: decord alone gives three different answers to it.
        assert len({outcome(bytes(data)) for _ in range(6)}) == 1


def outcome(data: bytes) -> bytes | str:
    try:
        return read_clip(data, 4, 2).tobytes()
    except BadMedia as error:
        return error.reason


def test_training_clips_are_cut_alike_in_every_frame() -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    video_THWC = np.stack([frame_HWC] * 4)
    augment = VideoAugment(colour_jitter=1.0)
    first, again, other = (
        train_video(video_THWC, (32, 40), augment, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (4, 32, 40, 3)
    assert first.dtype == np.uint8
    assert (first == first[0]).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [(32, 40), (60, 90)])
def test_flipped_clips_are_mirrored_and_lie_in_memory_in_order(size: tuple[int, int]) -> None:
    video_THWC = np.random.default_rng(0).integers(0, 256, (3, 60, 90, 3), dtype=np.uint8)
    clips = []
    for flip in (0, 1):
        # At (60, 90) the crop is the picture, and nothing is resized.
        augment = VideoAugment(flip=flip, colour_jitter=0, colour_drop=0, scale_jitter=None, resize_side=60)
        clips.append(train_video(list(video_THWC), size, augment, np.random.default_rng(4)))
    assert np.array_equal(clips[1], clips[0][:, :, ::-1])
    assert clips[1].flags.c_contiguous
    if size == (60, 90):
        assert np.array_equal(clips[0], video_THWC)


@pytest.mark.parametrize("shape", [(1, 1), (6, 700), (600, 5), (300, 200)])
def test_any_shape_can_be_cut(shape: tuple[int, int]) -> None:
    video_THWC = np.zeros((2, *shape, 3), np.uint8)
    assert train_video(video_THWC, (32, 40), VideoAugment(), np.random.default_rng(0)).shape == (2, 32, 40, 3)
    assert eval_video(video_THWC, (32, 40), VideoAugment()).shape == (2, 32, 40, 3)


def test_evaluation_crops_lie_along_the_longer_side() -> None:
    ramp_THWC = np.arange(64, dtype=np.uint8)[None, None, :, None].repeat(32, 1).repeat(3, 3)
    augment = VideoAugment(resize_side=32)
    lefts = [eval_video(ramp_THWC, (32, 32), augment, where)[0, 0, 0, 0] for where in ("left", "centre", "right")]
    assert lefts == [0, 16, 32]
    upright_THWC = ramp_THWC.transpose(0, 2, 1, 3)
    tops = [
        eval_video(upright_THWC, (32, 32), augment, where)[0, 0, 0, 0] for where in ("left", "centre", "right")
    ]
    assert tops == [0, 16, 32]


def test_a_training_crop_equals_resizing_all_first() -> None:
    y, x = np.mgrid[0:128, 0:171]
    video_THWC = np.stack([x, y, x // 2 + y // 2], axis=-1).astype(np.uint8)[None]
    augment = VideoAugment(scale_jitter=None, flip=0, colour_jitter=0, colour_drop=0, resize_side=256)
    crop = train_video(video_THWC, (224, 224), augment, np.random.default_rng(3))[0].astype(float)
    # A smooth ramp doubled in size rises by half a level a pixel, wherever the crop lies.
    assert np.allclose((crop[5:-5, 200, 1] - crop[5:-5, 20, 1]), 0, atol=1)
    assert np.isclose(crop[100, 200, 0] - crop[100, 20, 0], 90, atol=2)
