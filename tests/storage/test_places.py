"""Folders for output: made, or refused with the flag and the reason."""

from pathlib import Path

import pytest

from polyvit.errors import UserError
from polyvit.storage import output_folder


def test_it_is_made_and_left_empty(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert list(output_folder(tmp_path / "a" / "b", "--out").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_what_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--report .* cannot be written \(.*\); give another folder$"):
        output_folder(tmp_path / place, "--report")
