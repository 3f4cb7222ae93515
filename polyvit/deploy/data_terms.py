"""What a card says of the data: their licences, and which of them are toys under the names of real data sets.

In: a run's config. Out: names and sentences.
"""

from polyvit.config import RunConfig
from polyvit.synthetic import is_synthetic


def synthetic_tasks(config: RunConfig) -> list[str]:
    """The tasks whose data `polyvit synth` wrote: a marker lies beside them. Buckets are not looked at."""
    roots = {
        name: task.root or (f"{config.data.root}/{name}" if config.data.root else "")
        for name, task in config.tasks.items()
    }
    return [name for name, root in roots.items() if root and "://" not in root and is_synthetic(root)]


def licence_words(config: RunConfig, name: str) -> str:
    """The licence of a task's data; a data set's own does not hold for toys that have its name."""
    if name in synthetic_tasks(config):
        return "none: synthetic, drawn by `polyvit synth`"
    return config.tasks[name].licence or "not stated: ask the data set's owners"
