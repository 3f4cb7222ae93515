"""Config keys that have a new name: the old one works for one release and says so.

In: a config as plain data, from a file, a command line or a checkpoint. Out: the same under today's names.
"""

import logging
from typing import Any

logger = logging.getLogger(__name__)

RENAMED = {
    "optim.untouched": "optim.inactive_params",
    "data.decode_seconds": "data.decode_timeout_s",
    "data.decode_labels": "data.decode_node_labels",
    "train.worker_labels": "train.worker_node_labels",
    "feed.decoders": "feed.decode_workers",
}
"""{old key: new key}, both in the same section. The old keys work in 0.1 and go with 0.2."""
_said: set[str] = set()


def new_name(key: str) -> str:
    """Today's name of a dotted key. One warning a process for each old one."""
    if key not in RENAMED:
        return key
    if key not in _said:
        _said.add(key)
        logger.warning("config key %s is now %s; the old name works until the next release", key, RENAMED[key])
    return RENAMED[key]


def with_new_names(document: dict[str, Any]) -> dict[str, Any]:
    """The config with today's keys; a copy where something changes.

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
        new_name(old)
        renamed = {new_key if name == key else name: value for name, value in values.items()}
        document = {**document, section: renamed}
    return document
