"""The decode benchmark on tiny material: every table, exact frames, absent peers named, mistakes refused."""

import io
import json
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines.bench import decode, decode_media, decode_peers, decode_sequences
from pipelines.bench.kit import psnr, timed_items


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos that are large enough, one that is not, a damaged one, and a sound."""
    rng = np.random.default_rng(0)
    for name, side in (("a", 400), ("b", 420), ("small", 40)):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.jpg", quality=90)
    (tmp_path / "damaged.jpeg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    soundfile.write(tmp_path / "a.wav", rng.standard_normal(16_000) / 10, 16_000)
    return tmp_path


def files_open(*_: object) -> int:
    """Descriptors of this process without sockets: those to the Ray of other tests come and go."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            count += not str(descriptor.readlink()).startswith("socket:")
    return count


@pytest.mark.slow
def test_every_table(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("SIZE", (64, 80)), ("SECONDS", 3), ("LARGE", (480, 640))):
        monkeypatch.setattr(decode_media, name, value)
    monkeypatch.setattr(decode_sequences, "SIZE", (32, 48))
    monkeypatch.setattr(decode_sequences, "SECONDS", 3.0)
    monkeypatch.setattr("psutil.Process.num_fds", files_open)
    monkeypatch.setattr(decode_peers, "absent", lambda: {"torchcodec": "gone", "torchvision": "gone too"})
    file = folder / "decode.json"
    arguments = ["--data", str(folder), "--rounds", "1", "--photos", "3", "--clips", "1", "--opens", "2"]
    assert decode.main([*arguments, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["absent"] == {"torchcodec": "gone", "torchvision": "gone too"}
    assert "absent: torchvision: gone too" in capsys.readouterr().out
    assert [(t["photos"], t["count"], t["out"]) for t in document["image"]][:2] == [
        ("originals", 2, 224),
        ("originals", 2, 384),
    ]
    for table in document["image"]:
        assert table["rows"]["PIL"]["speed"] == 1
        assert "torchvision" not in table["rows"]
        assert table["rows"]["ours, whole decode"]["psnr_bilinear"] == [99.0, 99.0]
        assert table["rows"]["ours, antialias, whole"]["psnr_antialias"][1] > 45
    for table in document["video"]:
        assert all(row["identical"] for row in table["rows"].values())
        assert {"decord", "PyAV, seeking", "OpenCV", "ours"} <= table["rows"].keys()
    assert document["video"][0]["stages"]["read"]["median_ms"] > 0
    assert [kind["kind"] for kind in document["audio"]["kinds"]] == list(decode_media.RECORDINGS)
    assert document["audio"]["difference_noise"] < 1e-4
    assert document["audio"]["resampling"]["ours"]["signal_to_error_db"]["7000"] > 60
    for table in document["audiovisual"]:
        assert table["stages"]["example"]["median_ms"] > table["stages"]["log-mel"]["median_ms"] > 0
    assert document["opens"]["pyav"]["fds_after"] == document["opens"]["pyav"]["fds"]
    assert {"load_average", "cores", "versions"} <= document["machine"].keys()
    assert document["machine"]["versions"]["decord"] == "0.6.0"


def test_a_folder_without_media_and_absurd_counts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode.main(["--data", str(tmp_path)]) == 2
    assert "no JPEG below it" in capsys.readouterr().err
    assert decode.main(["--data", str(tmp_path), "--rounds", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_speed_is_the_median_of_ratios_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    cost = {"first": 2.0, "second": 0.5}
    monkeypatch.setattr("pipelines.bench.kit.time.process_time", lambda: clock[0])

    def spend(name: str, item: int) -> None:
        clock[0] += cost[name] * (item + 1)

    rows = timed_items({name: lambda i, name=name: spend(name, i) for name in cost}, 3, 5, seed=0)
    assert rows["second"]["speed"] == pytest.approx(4)
    assert rows["first"]["median_ms"] == rows["first"]["min_ms"] == pytest.approx(4000)


def test_psnr() -> None:
    assert psnr(np.zeros(4, np.uint8), np.zeros(4, np.uint8)) == 99
    assert psnr(np.zeros(4, np.uint8), np.full(4, 255, np.uint8)) == 0


def test_material_follows_from_the_seed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_media, "SECONDS", 1)
    photo = decode_media.photos(folder, 1, 0)[0]
    assert decode_media.photos(folder, 1, 0) == [photo]
    assert len(decode_media.photos(folder, 9, 0)) == 2
    assert decode_media.photos(folder, 9, 0, least_pixels=10**6)[0] in [
        p.read_bytes() for p in folder.glob("*.jpg")
    ]
    data = decode_media.clip(photo, decode_media.CLIPS["gop 32"], 0)
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame_HWC.shape for frame_HWC in frames] == [(256, 340, 3)] * 25
    assert not np.array_equal(frames[0], frames[-1])
    recordings = decode_media.recordings(folder, "flac 16 kHz", 2, 0)
    waves = [soundfile.read(io.BytesIO(recording)) for recording in recordings]
    assert [(len(wave), rate) for wave, rate in waves] == [(128_000, 16_000)] * 2
