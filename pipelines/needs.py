"""What each train worker of a run needs: decoding cores, feed, network, checkpoints; the end of `polyvit plan`.

Figures are predictions of `cost/cluster_model.py` for H200 machines; docs/scaling.md says how far to trust them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pipelines.runtime import console
from polyvit.config import RunConfig
from polyvit.cost import Hardware, run_cost
from polyvit.schedule import Schedule


def needs_document(config: RunConfig, schedule: Schedule) -> dict[str, Any]:
    """`scaling.run_cost` of the config's own number of workers, as data; seconds, bytes and GB/s."""
    hardware = Hardware()
    run = run_cost(config, schedule.counts(), config.train.workers, hardware)
    steps = {
        name: {**asdict(cost), "step_s": cost.step_s, "cores": cost.cores, "efficiency": cost.efficiency}
        for name, cost in run.steps.items()
    }
    peak = hardware.peak_flops[config.train.precision]
    assumed = (
        f"H200, {hardware.utilisation:.0%} of {peak / 1e12:g} TFLOP/s ({config.train.precision}), "
        f"{hardware.workers_per_node} a node"
    )
    return {**asdict(run), "steps": steps, "assumed": assumed}


def print_needs(document: Mapping[str, Any]) -> None:
    """The needs as a table and a few lines."""
    workers = document["workers"]
    table = Table(title=f"each of {workers} train workers, predicted for {document['assumed']}")
    for column in ("task", "local batch", "step ms", "waits for network ms", "network MB/step", "feed MB/step",
                   "decoding cores", "efficiency"):  # fmt: skip
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, cost in document["steps"].items():
        table.add_row(
            name, str(cost["local_batch"]), f"{cost['step_s'] * 1e3:.1f}", f"{cost['exposed_s'] * 1e3:.2f}",
            f"{cost['wire_bytes'] / 1e6:,.0f}", f"{cost['feed_bytes'] / 1e6:,.1f}", f"{cost['cores']:.1f}",
            f"{cost['efficiency']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"CPU cores per GPU needed to decode: {document['cores_peak']:.1f} so that no step ever waits, "
        f"{document['cores_mean']:.1f} on average over the schedule"
    )
    console.print(
        f"each worker: feed {document['feed_gb_s_mean']:.2g} GB/s (at most {document['feed_gb_s_peak']:.2g}), "
        f"files read {document['read_gb_s_mean']:.2g} GB/s, "
        f"gradients at most {document['network_gb_s_peak']:.3g} GB/s each way"
    )
    console.print(
        f"a checkpoint of {document['checkpoint_bytes'] / 1e9:.3g} GB; about {document['hours']:.3g} hours "
        f"of steps, at {document['efficiency']:.0%} of even arithmetic"
    )
