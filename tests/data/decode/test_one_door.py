"""FFmpeg reads foreign bytes through one function only, which tells it the formats that it may read."""

import re
from pathlib import Path

import pytest

from polyvit.data.decode.headers import audio_header, video_header

ROOT = Path(__file__).parents[3]
DOOR = "polyvit/data/decode/containers.py"
OWN_BYTES = ("pipelines/bench/decode_peers.py",)
"""Benchmarks that time FFmpeg on files which they have made themselves."""
FOR_READERS = "polyvit/deploy/hub_card.py"
"""Writes the README of an exported folder, whose lines open the reader's own files: we never run them."""


def test_nothing_else_opens_media_to_read_them() -> None:
    opened = []
    for top in ("polyvit", "pipelines"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name, text = str(path.relative_to(ROOT)), path.read_text()
            if name in (DOOR, FOR_READERS, *OWN_BYTES):
                continue
            calls = re.findall(r"\bav\.open\(.*|\bav\.container\.open\(.*|from av import .*\bopen\b.*", text)
            opened += [f"{name}: {call}" for call in calls if not re.search(r'av\.open\([^,()]+, "w"', call)]
            opened += [f"{name}: {word}" for word in re.findall(r"\bffmpeg\b[\"'],|StreamReader\(", text)]
    assert not opened


@pytest.mark.parametrize("header", [video_header, audio_header])
def test_a_playlist_opens_no_other_file(header: object, tmp_path: Path) -> None:
    """Headers are read by the same rules as content: `inspect` once followed a playlist to a local file."""
    other = tmp_path / "other.ts"
    other.write_bytes(b"G" + bytes(187))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
    ):
        with pytest.raises(Exception, match=r"Invalid (data|argument)"):
            header(text.encode())  # type: ignore[operator]
