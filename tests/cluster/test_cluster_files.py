"""Each file under cluster/ against its own tool or schema, and against our pins, labels and recipes."""

import copy
import json
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyOptions
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.runtime.placement import Node, placement_problems
from polyvit.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
BIN = Path(sys.executable).parent
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PROJECT_VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
KUBERNETES = kubernetes_validate.latest_version()
KUBERAY_SCHEMA = yaml.safe_load((ROOT / "tests" / "kuberay-schema.yaml").read_text())
SPLIT = ["train.worker_node_labels={pool: gpu}", "data.decode_node_labels={pool: cpu}"]
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.name != ".env")


def _load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def _tool(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# --------------------------------------------------------------------------------------- scripts and images


@pytest.mark.parametrize("name", ["slurm.sbatch", "start-or-resume.sh"])
def test_shellcheck(name: str) -> None:
    for command in (["bash", "-n"], [str(BIN / "shellcheck"), "--shell=bash"]):
        done = _tool(*command, str(CLUSTER / name))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_hadolint(name: str) -> None:
    done = _tool(str(BIN / "hadolint"), str(CLUSTER / name))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_an_image_installs_only_pinned_packages_and_copies_only_what_it_is_sent(name: str) -> None:
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install (.+?)(?= && |\n)", text)
    assert installs
    for arguments in map(shlex.split, installs):
        assert arguments[arguments.index("--constraint") + 1] == "constraints.txt"
        values = {"--constraint", "--requirements", "--extra"}
        named = [a for before, a in zip(["", *arguments], arguments, strict=False) if before not in values]
        for package in (a for a in named if not a.startswith("-") and a != "."):
            assert package in PINS, f"{package} has no pin in constraints.txt"
    sent = {line[1:] for line in (CLUSTER / f"{name}.dockerignore").read_text().split() if line.startswith("!")}
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for path in copied.split():
            assert path in sent
            assert (ROOT / path).exists()
    assert text.index("USER 1000") > text.index("pip install")


def test_the_pythons_of_the_images_are_one_that_the_project_supports() -> None:
    for name in ("Dockerfile", "mlflow.Dockerfile"):
        (version,) = re.findall(
            r"^FROM python:(3\.\d+)\.\d+-slim-bookworm$", (CLUSTER / name).read_text(), re.MULTILINE
        )
        assert version in ("3.11", "3.12")


# ---------------------------------------------------------------------------------- ray up and KubeRay


def _documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def _ray_clusters() -> dict[str, dict[str, Any]]:
    """The RayCluster specs, by file."""
    found = {name: d for name, d in _documents() if d["apiVersion"].startswith("ray.io")}
    return {name: d["spec"].get("rayClusterSpec", d["spec"]) for name, d in found.items()}


def test_kuberay_files_fit_kuberays_schema() -> None:
    found = [document for _, document in _documents() if document["apiVersion"].startswith("ray.io")]
    assert sorted(document["kind"] for document in found) == ["RayCluster", "RayJob"]
    for document in found:
        jsonschema.validate(document, KUBERAY_SCHEMA)
        broken = copy.deepcopy(document)
        spec = broken["spec"].get("rayClusterSpec", broken["spec"])
        spec["workerGroupSpecs"][0]["minReplica"] = 1
        with pytest.raises(jsonschema.ValidationError, match="minReplica"):
            jsonschema.validate(broken, KUBERAY_SCHEMA)


def test_pods_and_volumes_fit_kubernetes_schemas() -> None:
    volumes = [document for _, document in _documents() if document["apiVersion"] == "v1"]
    assert [document["kind"] for document in volumes] == ["PersistentVolumeClaim"]
    kubernetes_validate.validate(volumes[0], KUBERNETES, strict=True)
    for spec in _ray_clusters().values():
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            template = group["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": "pod"}}
            kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)
            (claim,) = [volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"]]
            assert claim == volumes[0]["metadata"]["name"]
            assert template["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/shared"


def test_the_rayjob_runs_a_recipe_that_ships_with_the_cluster_that_stays() -> None:
    job, cluster = _load("kuberay/job.yaml")["spec"], _load("kuberay/cluster.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    interpreter, script, name, storage, recipe, *overrides = shlex.split(job["entrypoint"])
    assert (interpreter, script) == ("bash", "/opt/polyvit/cluster/start-or-resume.sh")
    assert name == _load("kuberay/job.yaml")["metadata"]["name"]
    assert storage.startswith("/shared/")
    config = load_config(recipe, overrides)
    assert (config.train.worker_node_labels, config.data.decode_node_labels) == ({"pool": "gpu"}, {"pool": "cpu"})
    assert int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600
    for problem in _problems(_kuberay_nodes(cluster), config):
        raise AssertionError(problem)


def test_a_token_is_asked_for_everywhere() -> None:
    for spec in _ray_clusters().values():
        assert spec["authOptions"] == {"mode": "token", "secretName": "polyvit-ray-token"}
    options = _load("aws.yaml")["docker"]["run_options"]
    (path,) = [o.removeprefix("--env=RAY_AUTH_TOKEN_PATH=") for o in options if "TOKEN_PATH" in o]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert str(Path(path).parent) in _load("aws.yaml")["file_mounts"]


def test_ray_up_config_passes_rays_validator() -> None:
    prepared = prepare_config(_load("aws.yaml"))
    validate_config(prepared)
    assert prepared["setup_commands"] == []
    broken = _load("aws.yaml")
    broken["available_node_types"]["gpu"]["label"] = {}
    with pytest.raises(jsonschema.ValidationError, match="label"):
        validate_config(prepare_config(broken))


def _nodes(types: Mapping[str, Mapping[str, Any]], count: str) -> list[Node]:
    return [
        Node(kind["labels"], kind["resources"])
        for name, kind in types.items()
        for _ in range(1 if name.startswith("head") else kind[count])
    ]


def _kuberay_nodes(spec: dict[str, Any], count: str = "min_workers") -> list[Node]:
    """The nodes as Ray's own autoscaler reads them from the custom resource."""
    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": spec}
    return _nodes(_derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"], count)


def _problems(nodes: list[Node], config: RunConfig) -> list[str]:
    return placement_problems(config, nodes, gpu=True)


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay/cluster.yaml"])
def test_the_smallest_cluster_holds_the_run_that_its_comment_names(name: str) -> None:
    """With the labels of the file's own comment; one worker more than it has GPUs is refused."""
    (comment,) = re.findall(r"^#   (train\.workers=.+)$", (CLUSTER / name).read_text(), re.MULTILINE)
    overrides = shlex.split(comment)
    assert overrides[1:] == SPLIT
    if name == "aws.yaml":
        nodes = _nodes(_load(name)["available_node_types"], "min_workers")
    else:
        nodes = _kuberay_nodes(_load(name)["spec"])
    config = load_config("polyvit-b-nine", overrides)
    assert _problems(nodes, config) == []
    more = load_config("polyvit-b-nine", [f"train.workers={config.train.workers + 1}", *SPLIT])
    assert [problem.split(":")[0] for problem in _problems(nodes, more)] == ["GPU"]


def test_clusters_scale_between_bounds() -> None:
    kinds = _load("aws.yaml")["available_node_types"]
    for kind in ("gpu", "cpu"):
        assert 0 < kinds[kind]["min_workers"] < kinds[kind]["max_workers"]
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == _load("aws.yaml")["max_workers"]
    for spec in _ray_clusters().values():
        assert spec["enableInTreeAutoscaling"] is True
        for group in spec["workerGroupSpecs"]:
            assert 0 < group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


# ------------------------------------------------------------------------------------------- MLflow


def test_compose_file_fits_the_compose_specification() -> None:
    text = (CLUSTER / "compose.yaml").read_text()
    merging, example = PyOptions(apply_merge=True), (CLUSTER / "compose.env.example").read_text()
    values = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    text = re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda found: values[found.group(1)], text)
    merging.from_yaml(text).validate()
    for right, wrong in (("healthcheck", "helthcheck"), ("condition: service_healthy", "condition: well")):
        with pytest.raises(ValueError, match=wrong.split()[-1]):
            merging.from_yaml(text.replace(right, wrong, 1))


def test_compose_services_wait_for_one_another_and_are_pinned() -> None:
    services = _load("compose.yaml")["services"]
    assert set(services) == {"postgres", "store", "bucket", "mlflow"}
    for name, service in services.items():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']} is not pinned"
        assert ("healthcheck" in service) == (name != "bucket")
        for other, how in service.get("depends_on", {}).items():
            healthy = "healthcheck" in services[other]
            assert how["condition"] == ("service_healthy" if healthy else "service_completed_successfully")
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "bucket"}
    assert set(services["bucket"]["depends_on"]) == {"store"}
    assert services["mlflow"]["build"] == {"context": "..", "dockerfile": "cluster/mlflow.Dockerfile"}
    needed = set(re.findall(r"\$\{(\w+)", (CLUSTER / "compose.yaml").read_text()))
    example = set(re.findall(r"^(\w+)=", (CLUSTER / "compose.env.example").read_text(), re.MULTILINE))
    assert needed == example
    assert ".env" in (ROOT / ".gitignore").read_text().split()


# ------------------------------------------------------------------------------------ versions and paths


def test_every_version_is_the_pinned_one() -> None:
    for name, spec in _ray_clusters().items():
        assert spec["rayVersion"] == PINS["ray"], name
    services = _load("compose.yaml")["services"]
    for name in ("bucket", "mlflow"):
        assert services[name]["image"] == f"polyvit-mlflow:{PINS['mlflow']}"
    images = [_load("aws.yaml")["docker"]["image"]]
    for spec in _ray_clusters().values():
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            images += [container["image"] for container in group["template"]["spec"]["containers"]]
    assert set(images) == {f"registry.example/polyvit:{PROJECT_VERSION}"}
    said = re.findall(r"\b(Ray|MLflow) (\d+\.\d+\.\d+)", (CLUSTER / "README.md").read_text())
    assert said
    assert all(version == PINS[tool.lower()] for tool, version in said)


def test_the_readme_names_every_file_and_no_other() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?<!tests/)cluster/([\w./-]+\w)", text)) - {".env"}
    files = {str(path.relative_to(CLUSTER)) for path in FILES if path.suffix not in (".pyc", ".dockerignore")}
    assert named == files - {"README.md"}


def test_job_environment_is_one_that_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**_load("job-env.yaml"))
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600
    assert json.loads(environment.serialize())["excludes"] == ["tests", "docs", ".ci"]


def test_scripts_that_are_called_by_name_can_be() -> None:
    for name in ("start-or-resume.sh",):
        assert (CLUSTER / name).stat().st_mode & stat.S_IXUSR
