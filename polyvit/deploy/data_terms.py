"""What a card says of the data: their licences, and which of them are toys under the names of real data sets.

In: a run's config. Out: names and sentences.
"""

from polyvit.config import RunConfig
from polyvit.synthetic import is_synthetic


def synthetic_tasks(config: RunConfig) -> list[str]:
    """The tasks whose data `polyvit synth` wrote: a marker lies beside them. Buckets are not looked at."""
    return [name for name in config.tasks if _is_toy(config, name)]


def licence_words(config: RunConfig, name: str) -> str:
    """The licence of a task's data; a data set's own does not hold for toys that have its name."""
    if _is_toy(config, name):
        return "none: synthetic, drawn by `polyvit synth`"
    return config.tasks[name].licence or "not stated: ask the data set's owners"


def _is_toy(config: RunConfig, name: str) -> bool:
    root = config.tasks[name].root or (f"{config.data.root}/{name}" if config.data.root else "")
    return bool(root) and "://" not in root and is_synthetic(root)
