"""Config keys that have a new name: the old one works for one release and says so.

In: a config as plain data, from a file, a command line or a checkpoint. Out: the same under today's names.
"""

import logging
from typing import Any

logger = logging.getLogger(__name__)

RENAMED = {
    "optim.untouched": "optim.inactive_params",
    "data.decode_seconds": "data.decode_timeout_s",
}
"""{old key: new key}, both in the same section. The old keys work in 0.1 and go with 0.2."""
_said: set[str] = set()


def with_new_names(document: dict[str, Any]) -> dict[str, Any]:
    """The config with today's keys; a copy where something changes. One warning a process for each old key.

    Raises ValueError where a key is given under both names.
    """
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        new_key = new.partition(".")[2]
        values = document.get(section)
        if not isinstance(values, dict) or key not in values:
            continue
        if new_key in values:
            raise ValueError(f"{old} is the old name of {new}; both are given: leave out {old}")
        if old not in _said:
            _said.add(old)
            logger.warning("config key %s is now %s; the old name works until the next release", old, new)
        renamed = {new_key if name == key else name: value for name, value in values.items()}
        document = {**document, section: renamed}
    return document
