"""`key=value` of a command line: text is kept whole, everything else is YAML."""

from pathlib import Path
from typing import Any

import pytest
from small import small_config

from pipelines.tracking.runs import tracking_uri
from pipelines.training import find_run, new_run, resumed_config
from polyvit.config import apply_override, load_config, override_values, run_name, text_override
from polyvit.errors import UserError

DOCUMENT = {"tasks": {"t": {"modality": "audio", "layout": "csv"}}}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("storage", "/data/exp #3/runs", "/data/exp #3/runs"),
        ("storage", "2024-11-02", "2024-11-02"),
        ("storage", "0042", "0042"),
        ("storage", " a: b", " a: b"),
        ("storage", "[x] {y}", "[x] {y}"),
        ("storage", "&anchor *star !tag %d @home `x`", "&anchor *star !tag %d @home `x`"),
        ("storage", '"/data/exp #3"', "/data/exp #3"),
        ("storage", "", None),
        ("name", "yes", "yes"),
        ("init.path", "null", None),
        ("init.path", "/w #1.npz", "/w #1.npz"),
        ("tracking.uri", "http://h:1/#/x", "http://h:1/#/x"),
        ("data.root", "~", None),
        ("tasks.t.root", "/my #data", "/my #data"),
        ("tasks.t.licence", "no", "no"),
        ("data.decode_node_labels.zone", "0x10", "0x10"),
        ("optim.kind", "off", "off"),
        ("seed", "7", 7),
        ("train.workers", "[1, 2]", [1, 2]),
        ("optim.frozen", "[a, b]", ["a", "b"]),
        ("tasks.t.num_classes", "3", 3),
        ("tasks.t.options.label_separator", "|", "|"),
        ("tasks.t.options.label_separator", "#", "#"),
        ("tasks.t.options.label_separator", "-", "-"),
        ("tasks.t.options.label_separator", ">", ">"),
        ("tasks.t.options.label_separator", " ", " "),
        ("tasks.t.options.label_separator", ": ", ": "),
        ("tasks.t.options.label_column", "class #1", "class #1"),
        ("tasks.t.options.label_column", "no", "no"),
        ("tasks.t.options.file", "007", "007"),
        ("tasks.t.options.file", "2024-11-02", "2024-11-02"),
        ("tasks.t.options.validation_fraction", "0.2", 0.2),
        ("tasks.t.options.n", "3", 3),
        ("tasks.t.options.flag", "true", True),
        ("tasks.t.options.list", "[a, 1]", ["a", 1]),
        ("tasks.new", "{modality: image}", {"modality": "image"}),
    ],
)
def test_what_a_value_means(path: str, text: str, value: Any) -> None:
    document: dict[str, Any] = {"tasks": {"t": dict(DOCUMENT["tasks"]["t"])}}
    apply_override(document, f"{path}={text}")
    place: Any = document
    for key in path.split("."):
        place = place[key]
    assert place == value
    assert type(place) is type(value)


def test_values_of_a_sweep() -> None:
    assert override_values(DOCUMENT, "init.path", "/a #1,/b") == ["/a #1", "/b"]
    assert override_values(DOCUMENT, "model.l_adapt", "0,2") == [0, 2]
    with pytest.raises(UserError, match="is not YAML"):
        override_values(DOCUMENT, "model.l_adapt", "0,]")


def test_resume_finds_the_storage_that_a_new_run_wrote(tmp_path: Path) -> None:
    """The last of several counts, as for a new run."""
    storage = tmp_path / "exp #3" / "runs"
    given = [f"storage={tmp_path}/other", f"storage={storage}"]
    assert text_override(given, "storage", "runs") == str(storage)
    assert text_override([], "storage", "runs") == "runs"
    config = small_config(f"storage={storage}")
    run_dir = new_run(config, "one")
    assert run_dir.folder == storage / "one"
    run_dir.write("run.json", {"mlflow_run": "1"})
    again = find_run("one", text_override(given, "storage", "runs"))
    assert again.folder == run_dir.folder
    assert resumed_config(again, given).storage == str(storage)


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "a b", "x #3", "", ".hidden", "-flag", "a\n", "q?", "x" * 201, "%41"]
)
def test_a_name_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name"):
        new_run(small_config(f"storage={tmp_path}"), name)
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken_and_those_made_of_a_recipes_name() -> None:
    config = small_config()
    assert run_name(config, "lr_0.1-größer@2") == "lr_0.1-größer@2"
    odd = config.model_copy(update={"name": "my exp/1 #2"})
    assert run_name(odd, None).startswith("my-exp-1-2-")


@pytest.mark.parametrize(
    "uri", ["http://me:hush@host:5000", "postgresql://me:hush@db/mlflow", "http://h/?token=hush"]
)
def test_a_password_in_the_tracking_address_is_refused_and_not_repeated(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri holds a password") as caught:
        load_config("demo", [f"tracking.uri={uri}"])
    assert "hush" not in str(caught.value)
    config = small_config(f"storage={tmp_path}")
    run_dir = new_run(config, "one")
    with pytest.raises(UserError, match=r"tracking\.uri holds a password"):
        resumed_config(run_dir, [f"tracking.uri={uri}"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI holds a password") as caught:
        tracking_uri(config)
    assert "hush" not in str(caught.value)


def test_a_storage_that_mlflow_would_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="would cut the name"):
        tracking_uri(small_config(f"storage={tmp_path}/q?x"))
