"""Whole files for `tests/fuzz.py` to damage: media of many formats, and a small data set of every layout."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from kit import DATA_DIR, task
from PIL import Image

from polyvit.config import AudioInput, ImageInput, InputSection, TaskConfig, VideoInput

LARGEST = 60_000
"""Bytes of a kit file that is taken: small ones are decoded faster, and damage meets more of their structure."""
PER_FOLDER = 6
INDEXES = (
    "imagenet", "cifar10", "cifar100", "pets", "resisc45", "kinetics", "moments", "audioset", "vggsound",
    "imagefolder", "csv", "webdataset", "parquet",
)  # fmt: skip


def decoding(kind: str) -> tuple[TaskConfig, InputSection]:
    """A task and an input of a modality, small; `decord` is video through that reader."""
    if kind == "decord":
        _, spec = decoding("video")
        return task("imagefolder", modality="video", augment={"reader": "decord"}), spec
    specs: dict[str, InputSection] = {
        "image": ImageInput(size=32, patch_size=16),
        "video": VideoInput(frames=4, size=32, tubelet_size=(2, 16, 16)),
        "audio": AudioInput(frames=32, mel_bins=16, patch_size=16),
    }
    return task("imagefolder", modality=kind), specs[kind]


def media_corpus(kind: str) -> list[bytes]:
    """Files of one modality: made ones of every format, and small ones of the kit."""
    kind = "video" if kind == "decord" else kind
    made = {"image": _images, "video": _videos, "audio": _sounds}[kind]()
    folders = {
        "image": ("broken/images", "imagenet/val", "pets/images"),
        "video": ("broken/video", "kinetics400/val", "moments_in_time/validation"),
        "audio": ("broken/audio", "audioset/audio", "vggsound/audio", "broken/video"),
    }[kind]
    for folder in folders:
        paths = sorted(path for path in (DATA_DIR / folder).rglob("*") if path.is_file())
        small = [path for path in paths if 0 < path.stat().st_size <= LARGEST]
        most = len(small) if folder.startswith("broken") else PER_FOLDER
        made += [path.read_bytes() for path in small[:most]]
    return made


def _images() -> list[bytes]:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:48, :64]
    picture = np.stack([x * 4 % 256, y * 5 % 256, (x * y) % 256], axis=-1) + rng.integers(0, 20, (48, 64, 3))
    rgb = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {}), (rgb, "PNG", {}), (rgb.convert("P"), "PNG", {}),
        (rgb.convert("I;16"), "PNG", {}), (rgb.convert("LA"), "PNG", {}), (rgb, "GIF", {}), (rgb, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}), (rgb, "BMP", {}), (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb, "TIFF", {"compression": "jpeg"}), (rgb, "PPM", {}),
        (rgb, "JPEG2000", {}), (rgb, "AVIF", {}), (rgb.convert("1"), "TIFF", {"compression": "group4"}),
    ]  # fmt: skip
    found = []
    for form, name, options in forms:
        with io.BytesIO() as file:
            form.save(file, name, **options)
            found.append(file.getvalue())
    return found


def _videos() -> list[bytes]:
    codecs = [
        ("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("webm", "libvpx"),
        ("mpegts", "mpeg2video"), ("mov", "mjpeg"), ("flv", "flv"), ("mp4", "libx265"),
    ]  # fmt: skip
    return [_video(form, codec) for form, codec in codecs]


def _video(form: str, codec: str) -> bytes:
    y, x = np.mgrid[:48, :64]
    with io.BytesIO() as file:
        with av.open(file, "w", format=form) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            for t in range(12):
                pixels = np.stack([(x + 5 * t) * 4 % 256, y * 5 % 256, (x + y + t) % 256], -1).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return file.getvalue()


def _sounds() -> list[bytes]:
    t = np.arange(8000)
    wave = (0.5 * np.sin(t * 0.2) + 0.1 * np.sin(t * 1.3)).astype(np.float32)
    stereo = np.stack([wave, -wave], axis=-1)
    forms = [
        (wave, "WAV", "PCM_16"), (stereo, "WAV", "PCM_24"), (wave, "WAV", "FLOAT"), (wave, "WAV", "ULAW"),
        (wave, "WAV", "MS_ADPCM"), (wave, "FLAC", "PCM_16"), (stereo, "FLAC", "PCM_24"), (wave, "OGG", "VORBIS"),
        (wave, "OGG", "OPUS"), (stereo, "MP3", "MPEG_LAYER_III"), (wave, "AIFF", "PCM_16"), (wave, "AU", "ULAW"),
        (wave, "CAF", "ALAC_16"), (wave, "W64", "PCM_16"), (wave, "RF64", "PCM_16"),
    ]  # fmt: skip
    found = []
    for samples, form, subtype in forms:
        with io.BytesIO() as file:
            soundfile.write(file, samples, 16000, format=form, subtype=subtype)
            found.append(file.getvalue())
    return found


# ------------------------------------------------------------------------------------------------- layouts


def write_roots(folder: Path, layout: str) -> tuple[TaskConfig, list[str]]:
    """A small data set of a layout; its task, and the files that an index reader reads."""
    folder.mkdir(parents=True)
    media = {"image": _images()[0], "video": _videos()[0], "audio": _sounds()[0]}
    packed = {"cifar10": _cifar, "cifar100": _cifar, "webdataset": _webdataset, "parquet": _parquet}
    if layout in packed:
        targets = packed[layout](folder, layout, media["image"])
    else:
        kind, files, texts = _LISTS[layout]()
        contents = {
            **dict.fromkeys(files, media[kind][:700]),
            **{path: text.encode() for path, text in texts.items()},
        }
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        targets = [*texts] or files[:2]
    modality = {"kinetics": "video", "moments": "video", "audioset": "audio", "vggsound": "audio"}.get(
        layout, "image"
    )
    metric = {"loss": "sigmoid", "metric": "map"} if layout == "audioset" else {}
    classes = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "pets": 37, "resisc45": 45, "audioset": 527}
    return task(layout, classes.get(layout, 400), modality, **metric), targets


def _cifar(folder: Path, layout: str, _: bytes) -> list[str]:
    ten = layout == "cifar10"
    where = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    where.mkdir()
    rows, key = 6, "labels" if ten else "fine_labels"
    batch = {
        "data": np.arange(rows * 3072, dtype=np.uint32).astype(np.uint8).reshape(rows, 3072),
        key: [n % 10 for n in range(rows)],
        "batch_label": "a batch",
        "filenames": [f"{n}.png" for n in range(rows)],
    }  # fmt: skip
    names = ["airplane", "bird"] * 5 if ten else [f"class {n}" for n in range(100)]
    meta = {"label_names" if ten else "fine_label_names": [f"{name} {n}" for n, name in enumerate(names)]}
    files = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for number, file in enumerate(files):
        (where / file).write_bytes(pickle.dumps(batch, protocol=2 + number % 2 * 2))
    (where / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return [f"{where.name}/{path.name}" for path in sorted(where.iterdir())]


def _webdataset(folder: Path, _: str, jpeg: bytes) -> list[str]:
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(folder / f"train-{number:03d}.tar", "w", format=form) as tar:
            for i in range(4):
                stem = f"{'long/' * (25 if i == 3 else 0)}{number}{i:04d}"
                members = {"jpg": jpeg[:700], "cls": b"%d" % (i % 2), "json": b'{"label": 1, "who": "me"}'}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{stem}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return [path.name for path in sorted(folder.iterdir())]


def _parquet(folder: Path, _: str, jpeg: bytes) -> list[str]:
    (folder / "data").mkdir()
    features = b'{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
    for split in ("train", "validation"):
        table = pa.table(
            {"image": [{"bytes": jpeg, "path": f"{i}.jpg"} for i in range(6)], "label": [0, 1] * 3}
        ).replace_schema_metadata({"huggingface": features})
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet", row_group_size=3)
    return [f"data/{path.name}" for path in sorted((folder / "data").iterdir())]


# Each: (modality, media files, text files) of a layout that comes with text files, or with folders alone.
_Parts = tuple[str, list[str], dict[str, str]]


def _imagenet() -> _Parts:
    wnids = [f"n{i:08d}" for i in range(1000)]
    names = [(split, wnid, i) for split in ("train", "val") for wnid in wnids[:3] for i in range(2)]
    lines = "".join(f"{wnid} thing, number {wnid}\n" for wnid in wnids)
    files = [f"{split}/{wnid}/{wnid}_{i}.JPEG" for split, wnid, i in names]
    return "image", files, {"LOC_synset_mapping.txt": lines}


def _pets() -> _Parts:
    images = [f"Breed_{label}_{i}" for label in range(1, 38) for i in range(2)]
    lines = "".join(f"{image} {int(image.split('_')[1])} 1 1\n" for image in images)
    texts = {f"annotations/{name}.txt": lines for name in ("trainval", "test")}
    return "image", [f"images/{image}.jpg" for image in images], {**texts, "annotations/list.txt": "#\n" + lines}


def _resisc45() -> _Parts:
    names = [f"class_{label:02d}/class_{label:02d}_{i:03d}.jpg" for label in range(45) for i in range(3)]
    texts = {
        f"resisc45-{split}.txt": "".join(f"{name.split('/')[1]}\n" for name in names[number::3])
        for number, split in enumerate(("train", "val", "test"))
    }
    return "image", [f"NWPU-RESISC45/{name}" for name in names], texts


def _kinetics() -> _Parts:
    ids = [f"abcdefghi{i:02d}" for i in range(8)]
    rows = "".join(f"label {i % 2},{name},1,11,train\n" for i, name in enumerate(ids))
    names = [f"label {i % 2}/{name}_000001_000011.mp4" for i, name in enumerate(ids)]
    texts = {f"{split}.csv": f"label,youtube_id,time_start,time_end,split\n{rows}" for split in ("train", "val")}
    return "video", [f"{split}/{name}" for split in ("train", "val") for name in names], texts


def _moments() -> _Parts:
    rows = "".join(f"clapping/{i}.mp4,clapping,3,1\n" for i in range(4))
    texts = {
        "moments_categories.txt": "clapping,0\nrun+stop,1\n",
        "trainingSet.csv": rows,
        "validationSet.csv": rows,
    }
    return "video", [f"{name}/clapping/{i}.mp4" for name in ("training", "validation") for i in range(4)], texts


def _audioset() -> _Parts:
    header = "# a\n# b\n# YTID, start_seconds, end_seconds, positive_labels\n"
    rows = "".join(f'abcdefghij{i}, 1.000, 11.000, "/m/{i:05x},/m/00003"\n' for i in range(4))
    classes = "".join(f'{i},/m/{i:05x},"Sound, {i}"\n' for i in range(527))
    splits = ("balanced_train", "eval")
    texts = {f"{split}_segments.csv": header + rows for split in splits}
    texts["class_labels_indices.csv"] = "index,mid,display_name\n" + classes
    return "audio", [f"audio/{split}_segments/abcdefghij{i}.wav" for split in splits for i in range(4)], texts


def _vggsound() -> _Parts:
    rows = [f'abcdefghij{i},{i},"a, label {i % 2}",{"test" if i % 3 == 0 else "train"}\n' for i in range(6)]
    return "audio", [f"audio/abcdefghij{i}_{i:06d}.wav" for i in range(6)], {"vggsound.csv": "".join(rows)}


def _csv() -> _Parts:
    files = [f"pictures/{i}.jpg" for i in range(6)]
    rows = [f"{path},name {i % 2},{'val' if i > 3 else 'train'}\n" for i, path in enumerate(files)]
    return "image", files, {"data.csv": "".join(["path,label,split\n", *rows])}


def _imagefolder() -> _Parts:
    return (
        "image",
        [f"{split}/{label}/{i}.jpg" for split in ("train", "val") for label in "ab" for i in range(3)],
        {},
    )


_LISTS = {
    "imagenet": _imagenet, "pets": _pets, "resisc45": _resisc45, "kinetics": _kinetics, "moments": _moments,
    "audioset": _audioset, "vggsound": _vggsound, "csv": _csv, "imagefolder": _imagefolder,
}  # fmt: skip
