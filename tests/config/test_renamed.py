"""Old names of config keys."""

import logging

import pytest
from small import document

from polyvit.config import apply_override, load_config, validate_config, with_new_names
from polyvit.config import renamed as table
from polyvit.errors import UserError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_said", set())


@pytest.mark.parametrize(("old", "new"), list(table.RENAMED.items()))
def test_an_old_key_works_and_names_the_new_one_once(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    section, key = new.split(".")
    value = getattr(getattr(validate_config(document()), section), key)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            changed = document()
            changed.setdefault(section, {})[old.split(".")[1]] = value
            assert getattr(getattr(validate_config(changed), section), key) == value
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"config key {old} is now {new}; the old name works until the next release"]


def test_on_the_command_line_too() -> None:
    assert load_config("tiny-nine", ["data.decode_seconds=7"]).data.decode_timeout_s == 7


def test_both_names_are_one_too_many() -> None:
    changed = document()
    changed["data"] = {"decode_seconds": 3, "decode_timeout_s": 4}
    with pytest.raises(UserError, match=r"data.decode_seconds is the old name of data.decode_timeout_s"):
        validate_config(changed)


def test_an_old_run_takes_an_override_by_either_name() -> None:
    old_run = document()
    old_run["data"] = {"decode_seconds": 3}
    for override in ("data.decode_seconds=4", "data.decode_timeout_s=4"):
        config = with_new_names(dict(old_run))
        apply_override(config, override)
        assert validate_config(config).data.decode_timeout_s == 4
