"""Several nodes: where work is placed, nodes that are lost, runs that shrink, clusters that are too small."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import Command, Nodes, decoded_on, nodes
from pipelines_kit import pair_document, planned, scanned
from safetensors.torch import load_file
from small import Heard, write_yaml

from pipelines.feed.worker_feed import make_decoder
from pipelines.runtime.placement import Node, placement_problems
from polyvit.checkpoint.state import TrainState, TrainUnit, read_document
from polyvit.config import RunConfig, load_config, validate_config
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.model.polyvit import PolyViT
from polyvit.training.loop import train
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess

CPU, TRAIN = {"pool": "cpu"}, {"pool": "train"}
STEPS = 160


# ------------------------------------------------------------------------------ what a cluster can hold (no Ray)


def config(**keys: Any) -> RunConfig:
    """The pair's config with train and data keys: `train_x`, `data_x`."""
    document = pair_document(Path("data"))
    document["tasks"]["sounds"]["batch"] = 8
    for key, value in keys.items():
        section, _, name = key.partition("_")
        document.setdefault(section, {})[name] = value
    return validate_config(document)


def node(cpus: float, gpus: float = 0, **labels: str) -> Node:
    return Node(labels, {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})


@pytest.mark.parametrize(
    ("selector", "carried"),
    [({}, True), ({"pool": "cpu"}, True), ({"pool": "gpu"}, False), ({"pool": "!gpu"}, True),
     ({"pool": "in(gpu, cpu)"}, True), ({"pool": "!in(gpu, cpu)"}, False), ({"zone": "x"}, False),
     ({"zone": "!x"}, True), ({"pool": "cpu", "zone": "x"}, False)],
)  # fmt: skip
def test_a_selector(selector: dict[str, str], carried: bool) -> None:
    assert node(1, pool="cpu").carries(selector) is carried


def test_clusters_that_hold_the_run() -> None:
    assert placement_problems(config(train_workers=2), [node(3)], gpu=False) == []
    assert placement_problems(config(train_workers=2), [node(2), node(2)], gpu=False) == []
    both = config(
        train_workers=2, train_worker_node_labels={"pool": "train"}, data_decode_node_labels={"pool": "cpu"}
    )
    apart = [node(1, pool="cpu"), node(1, pool="train"), node(1, pool="train")]
    assert placement_problems(both, apart, gpu=False) == []
    elastic = config(train_workers=3, train_min_workers=1)
    assert placement_problems(elastic, [node(2), node(2)], gpu=False) == []
    assert placement_problems(elastic, [node(8, gpus=2)], gpu=True) == []


def problem(nodes: list[Node], gpu: bool = False, **keys: Any) -> str:
    """The one problem."""
    (message,) = placement_problems(config(**keys), nodes, gpu)
    return message


def test_labels_that_no_node_carries() -> None:
    apart = [node(4, pool="cpu"), node(4, pool="train"), node(4, pool="train")]
    assert problem(apart, train_worker_node_labels={"pool": "gpu"}) == (
        "train.worker_node_labels={pool: gpu}: no node carries it; the 3 nodes carry "
        "pool: cpu (1), pool: train (2)"
    )
    assert problem([node(4)], data_decode_node_labels={"pool": "cpu"}) == (
        "data.decode_node_labels={pool: cpu}: no node carries it; the 1 nodes carry none but their ids"
    )


def test_too_little_on_the_nodes_that_carry_the_labels() -> None:
    apart = [node(9, pool="cpu"), node(1, pool="train")]
    labels = {"train_worker_node_labels": {"pool": "train"}, "data_decode_node_labels": {"pool": "cpu"}}
    assert problem(apart, train_workers=2, **labels) == (
        "CPU: needs 2, the cluster has 1 with train.worker_node_labels={pool: train}"
    )
    assert problem([node(9, pool="cpu"), node(9, 1, pool="train")], True, train_workers=2, **labels) == (
        "GPU: needs 2, the cluster has 1 with train.worker_node_labels={pool: train}; "
        "or set train.use_gpu=false to train on CPUs"
    )
    split = problem([node(3), node(3)], train_workers=2, train_cpus_per_worker=2, data_decode_cpus=2)
    assert split.startswith("data.decode_cpus=2: the train workers may fill every node;")
    assert "each: nodes have room for 0, 1 are needed" in problem([node(3), node(3)], train_cpus_per_worker=4)
    assert problem([node(2)], data_decode_cpus=3, data_decode_node_labels={"a": "!b"}) == (
        "data.decode_cpus=3: no node that may decode has as many CPUs"
    )


def test_decoding_that_the_workers_could_starve() -> None:
    """One node decodes and two could train: Ray may put both workers there. Or elastic ones fill all there is."""
    everywhere = problem([node(2), node(2)], train_workers=4, train_min_workers=1)
    assert everywhere.startswith("data.decode_cpus=1: the train workers may fill every node;")
    found = problem([node(2, pool="cpu"), node(2)], train_workers=2, data_decode_node_labels=CPU)
    assert found.startswith(
        "data.decode_cpus=1: the train workers may fill every node with data.decode_node_labels"
    )


def test_elastic_with_labels_that_ray_would_not_heed() -> None:
    apart = [node(1, pool="cpu"), node(1, 1, pool="train")]
    keys = {
        "train_min_workers": 1,
        "train_workers": 2,
        "train_worker_node_labels": TRAIN,
        "data_decode_node_labels": CPU,
    }
    assert "others have room for 1 workers" in problem(apart, **keys)
    assert placement_problems(config(**keys), apart, gpu=True) == []


# ------------------------------------------------------------------------------------------ real nodes, real loss

on_nodes = pytest.mark.ray


@pytest.fixture(scope="module")
def group() -> Iterator[Nodes]:
    """A head that decodes and two nodes that train."""
    with nodes(head=(2, CPU), a=(3, TRAIN), b=(3, TRAIN)) as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, pair_root: Path) -> Path:
    """The pair, for two workers on a node each."""
    document = pair_document(pair_root)
    document["tasks"]["shapes"]["steps"] = STEPS - document["tasks"]["sounds"]["steps"]
    document["optim"] = {"lr": 0.05, "warmup_steps": 2}
    document["data"]["decode_node_labels"] = CPU
    document["train"] = {"workers": 2, "cpus_per_worker": 3, "checkpoint_every": 10, "log_every": 10}
    return write_yaml(tmp_path_factory.mktemp("nodes") / "pair.yaml", document)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> tuple[dict[str, torch.Tensor], TrainState]:
    """Parameters and state of the same run in this process, without Ray."""
    made = load_config(str(recipe), ["train.workers=1"])
    indexes = scanned(made)
    plan = planned(made, indexes)
    model = PolyViT(made.model, made.tasks, seed=made.seed)
    optimiser = build_optimiser(dict(model.named_parameters()), made.optim)
    feed = InlineFeed(Requests.of(made, plan, indexes.scans, 0, 1), make_decoder(made, indexes))
    state = train(TrainUnit(model, optimiser), plan.schedule, feed, made, SingleProcess(), TrainState(), Heard())
    return {name: p.detach() for name, p in model.named_parameters()}, state


def assert_same_run(document: dict[str, Any], undisturbed: tuple[dict[str, torch.Tensor], TrainState]) -> None:
    """Ended with all steps, and with the undisturbed run's parameters but for the order of sums."""
    assert document["status"] == 0, document["log"][-4000:]
    assert document["steps"] == STEPS
    parameters, state = undisturbed
    found = load_file(Path(document["checkpoint"]) / "model.safetensors")
    torch.testing.assert_close({n: found[n] for n in parameters}, parameters, rtol=1e-3, atol=1e-4)
    ended = read_document(Path(document["checkpoint"]))
    assert (ended["read"], ended["bad"]) == (state.read, state.bad)


def cotrain(group: Nodes, recipe: Path, name: str, *overrides: str) -> tuple[Command, Path]:
    """`polyvit cotrain`, under way; and its run's folder."""
    storage = recipe.parent / "runs"
    given = ["cotrain", str(recipe), f"storage={storage}", "--name", name, *overrides]
    return Command(group, recipe.parent, *given), storage / name


@pytest.mark.slow
@on_nodes
@pytest.mark.parametrize("backend", ["ray_core", "ray_data"])
def test_decoding_stays_on_the_nodes_with_its_labels(group: Nodes, backend: str) -> None:
    assert decoded_on(group, backend, CPU, TRAIN) == [{"head"}, {"a", "b"}]


@pytest.mark.slow
@on_nodes
def test_a_label_that_no_node_carries_ends_the_command_at_once(group: Nodes, recipe: Path) -> None:
    command, _ = cotrain(group, recipe, "refused", "data.decode_node_labels={pool: none}")
    document = command.ended()
    assert document["status"] == 2
    assert document["problems"] == [
        "data.decode_node_labels={pool: none}: no node carries it; the 3 nodes carry "
        "pool: cpu (1), pool: train (2)"
    ]


@pytest.mark.slow
@on_nodes
def test_a_lost_node_is_replaced(group: Nodes, recipe: Path, undisturbed: tuple) -> None:
    """Two workers on labelled nodes; kill -9 of one node; another joins; the run ends as if nothing had been."""
    command, run = cotrain(group, recipe, "replaced", "train.worker_node_labels={pool: train}")
    command.wait(until=lambda: any(run.glob("step_*/state.json")))
    group.kill("b")
    group.add("c", 3, TRAIN)
    assert_same_run(command.ended(), undisturbed)
    assert command.where("RayTrainWorker") == {"a", "b", "c"}
    assert command.where("decode") == {"head"}


@on_nodes
@pytest.mark.soak
def test_an_elastic_run_goes_on_with_one_worker(group: Nodes, recipe: Path, undisturbed: tuple) -> None:
    command, run = cotrain(group, recipe, "elastic", "train.min_workers=1")
    command.wait(until=lambda: any(run.glob("step_*/state.json")))
    trainers = command.where("RayTrainWorker")
    assert len(trainers) == 2
    group.kill(max(trainers))
    assert_same_run(command.ended(), undisturbed)
    assert command.where("decode") == {"head"}
