"""Recipes: names, files, `extends`, overrides; every recipe that ships."""

import time
from pathlib import Path
from typing import Any

import pytest
from small import document, write_yaml

from polyvit.config import apply_override, left_out_tasks, load_config, read_recipe, recipe_names
from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.errors import UserError
from polyvit.schedule.schedule import build_schedule


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert len(config.source) > 20
    assert len(build_schedule(config.schedule, config.tasks, config.seed)) > config.warmup_steps


def test_the_recipes_there_are() -> None:
    assert {"demo", "tiny-nine"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", ["demo", "tiny-nine"])
def test_nine_tasks_in_the_papers_order(name: str) -> None:
    assert list(load_config(name).tasks) == list(PAPER_TASKS)


def test_demo_extends_tiny_nine() -> None:
    demo, tiny = load_config("demo"), load_config("tiny-nine")
    assert demo.optim.kind == tiny.optim.kind == "adamw"
    assert demo.model.width == 96
    assert demo.tasks["imagenet"].loss == tiny.tasks["imagenet"].loss == "softmax"
    assert PAPER_TASKS["imagenet"]["loss"] == "sigmoid"


@pytest.mark.parametrize(
    ("given", "hint"),
    [("dmeo", "Did you mean demo?"), ("xyzzy", "Recipes: "), ("tiny-nin", "Did you mean tiny-nine?")],
)
def test_an_unknown_recipe_names_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"unknown recipe '{given}'") as caught:
        load_config(given)
    assert hint in str(caught.value)
    assert "tiny-nine" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml is not a file"):
        load_config(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", r"key 'seed' is given twice"),
        ("tasks:\n  a: {steps: 1}\n  b: {}\n  a: {steps: 2}\n", "line 2: key 'a' is given twice"),
        ("model: {width: 1, depth: 2, width: 1}", "key 'width' is given twice"),
        ("a: [1, 2", "is not readable YAML"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("{[1]: 2}", "is not readable YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not readable YAML"),
        ("\x00", "is not readable YAML"),
    ],
)
def test_unreadable_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(path))
    assert "mine.yaml" in str(caught.value)


def test_numbers_as_keys_are_an_error_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 problem") as caught:
        load_config(str(write_yaml(tmp_path / "mine.yaml", {**document(), 3: 4})))
    assert caught.value.problems[0].startswith("3: ")


def test_an_own_file_is_named_after_itself(tmp_path: Path) -> None:
    content = document()
    del content["name"]
    assert load_config(str(write_yaml(tmp_path / "mine.yaml", content))).name == "mine"
    extending = write_yaml(tmp_path / "other.yaml", {"extends": "demo", "seed": 3})
    assert load_config(str(extending)).name == "other"


# ------------------------------------------------------------------------------------------------- extends


def test_tasks_that_an_extending_file_does_not_name_are_told_of(tmp_path: Path) -> None:
    some = write_yaml(
        tmp_path / "some.yaml", {"extends": "images-only", "tasks": {"pets": {"batch": 4}, "cifar10": {}}}
    )
    assert list(load_config(str(some)).tasks) == ["pets", "cifar10"]
    words = left_out_tasks(str(some))
    assert words is not None
    assert "of images-only it leaves out imagenet, cifar100, resisc45" in words
    assert "`imagenet: {}` is enough" in words
    for content in ({"extends": "images-only", "seed": 1}, document()):
        assert left_out_tasks(str(write_yaml(tmp_path / "all.yaml", content))) is None
    assert left_out_tasks("images-only") is None  # a recipe that ships means it


def test_extends_merges_key_by_key(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "mine.yaml", {"extends": "demo", "model": {"image": {"size": 64}}, "seed": 9})
    mine, demo = load_config(str(path)), load_config("demo")
    assert mine.model.image.size == (64, 64)
    assert mine.model.image.patch_size == demo.model.image.patch_size == (8, 8)
    assert mine.model.video == demo.model.video
    assert mine.tasks == demo.tasks
    assert (mine.seed, demo.seed) == (9, 0)


def test_a_recipe_with_tasks_trains_exactly_those(tmp_path: Path) -> None:
    tasks = {"vggsound": None, "pets": {"steps": 7}, "mine": document()["tasks"]["word"]}
    path = write_yaml(tmp_path / "mine.yaml", {"extends": "demo", "tasks": tasks})
    mine, demo = load_config(str(path)), load_config("demo")
    assert list(mine.tasks) == ["vggsound", "pets", "mine"]
    assert mine.tasks["vggsound"] == demo.tasks["vggsound"]
    assert mine.tasks["pets"] == demo.tasks["pets"].model_copy(update={"steps": 7})


def test_a_task_of_the_paper_starts_from_the_paper(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "mine.yaml", {"tasks": {"pets": {"steps": 7}}})
    pets = load_config(str(path)).tasks["pets"]
    assert (pets.steps, pets.batch, pets.num_classes, pets.loss, pets.lr_coef) == (7, 512, 37, "sigmoid", 0.03)


def test_extends_through_files_and_the_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "a.yaml", {"extends": "b.yaml", "seed": 1})
    write_yaml(tmp_path / "b.yaml", {"extends": "demo", "seed": 2, "optim": {"lr": 0.5}})
    config = load_config("a.yaml")
    assert (config.seed, config.optim.lr, config.model.width) == (1, 0.5, 96)
    write_yaml(tmp_path / "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(UserError, match=r"in a circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config("a.yaml")


def test_extending_what_is_not_there(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", {"extends": "dem"})
    with pytest.raises(UserError, match=r"unknown recipe 'dem'\. Did you mean demo\?"):
        load_config(str(path))


def test_reading_a_recipe_changes_no_shared_data() -> None:
    before = str(PAPER_TASKS)
    config = read_recipe("demo")
    apply_override(config, "tasks.imagenet.num_classes=3")
    config["tasks"]["cifar10"]["steps"] = 1
    assert str(PAPER_TASKS) == before
    assert load_config("demo").tasks["cifar10"].steps != 1


# ----------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=true", {"a": {"b": {"c": True}}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a=", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("a={b: 2}", {"a": {"b": 2}}),
        ("a='1'", {"a": "1"}),
    ],
)
def test_override_values_are_yaml(override: str, expected: dict[str, Any]) -> None:
    changed: dict[str, Any] = {}
    apply_override(changed, override)
    assert changed == expected


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_what_is_no_override(override: str) -> None:
    with pytest.raises(UserError, match=r"is not an override; write key\.path=value"):
        load_config("demo", [override])


def test_an_override_that_is_no_yaml() -> None:
    with pytest.raises(UserError, match="the value of 'seed=\\[1' is not YAML"):
        load_config("demo", ["seed=[1"])


def test_overrides_in_order_the_last_wins() -> None:
    config = load_config("demo", ["optim.lr=1e-3", "model.l_adapt=1", "model.l_adapt=2", "schedule.kind=uniform"])
    assert (config.optim.lr, config.model.l_adapt, config.schedule.kind) == (0.001, 2, "uniform")
    assert config.model.depth == 3


def test_an_overridden_typo_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", ["model.l_adpt=2", "tasks.imagnet.steps=3"])
    assert "model.l_adpt: unknown key; did you mean l_adapt?" in caught.value.problems
    assert any(p.startswith("tasks.imagnet") for p in caught.value.problems)


def test_a_mistyped_task_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", ["tasks.imagnet.batch=4", "tasks.zzz.batch=4"])
    near, far = caught.value.problems
    assert near.startswith("tasks.imagnet: the recipe has no such task; did you mean imagenet?")
    assert far.startswith("tasks.zzz: the recipe has no such task; it has imagenet, cifar100,")


def test_yaml_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "extends: demo\ntasks:\n  cifar10: &base\n    batch: 6\n    steps: 7\n"
        "  cifar100: &more\n    <<: *base\n    steps: 9\n  pets:\n    <<: [*more]\n    batch: 2\n"
    )
    tasks = load_config(str(path)).tasks
    assert {name: (task.batch, task.steps) for name, task in tasks.items()} == {
        "cifar10": (6, 7), "cifar100": (6, 9), "pets": (2, 9),
    }  # fmt: skip
    path.write_text(path.read_text() + "    batch: 3\n")
    with pytest.raises(UserError, match="key 'batch' is given twice"):
        load_config(str(path))


def test_only() -> None:
    assert list(load_config("demo", only=["pets", "cifar10"]).tasks) == ["cifar10", "pets"]
    with pytest.raises(UserError, match="--only petz: the recipe has no such task; it has imagenet"):
        load_config("demo", only=["petz"])


def test_paths_become_absolute_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("demo", ["data.root=d", "tasks.pets.root=p", "storage=s", "tasks.cifar10.root=/x"])
    assert (config.data.root, config.tasks["pets"].root) == (f"{tmp_path}/d", f"{tmp_path}/p")
    assert (config.storage, config.tasks["cifar10"].root) == (f"{tmp_path}/s", "/x")
    assert config.init.path is None
    assert load_config("demo", ["init.path=vit.npz"]).init.path == f"{tmp_path}/vit.npz"
    assert load_config("demo", ["data.root=s3://bucket/d"]).data.root == "s3://bucket/d"


def test_a_list_of_classes_is_the_tasks_own_before_it_is_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d" / "pets").mkdir(parents=True)
    for path in ("d/pets/own.txt", "own.txt", "here.txt"):
        (tmp_path / path).write_text("a\n")
    monkeypatch.chdir(tmp_path)

    def classes(name: str) -> str | None:
        return load_config("demo", ["data.root=d", f"tasks.pets.classes={name}"]).tasks["pets"].classes

    assert [classes(name) for name in ("own.txt", "here.txt", "none.txt", "null")] == [
        "own.txt", f"{tmp_path}/here.txt", "none.txt", None,
    ]  # fmt: skip


def _lines(count: int, line: str) -> str:
    """`line` for i = 1 ... count, {before} being the one before it."""
    return "".join(line.format(i=i, before=i - 1) for i in range(1, count + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a0: &a0 [x, x]\n" + _lines(30, "a{i}: &a{i} [*a{before}, *a{before}, *a{before}]\n"), "100,000 values"),
        ("a0: &a0 {x: 1}\n" + _lines(40, "a{i}: &a{i}\n  <<: [*a{before}, *a{before}]\n"), "100,000 values"),
        ("a: &a [*a, *a]\n", "line 1: more than 50 levels, or an alias of itself"),
        ("a: &a\n  b: *a\n", "more than 50 levels, or an alias of itself"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 levels"),
        ("a: " + "[" * 500 + "]" * 500, "more than 50 levels"),
        ("{a: " * 2000 + "}" * 2000, "more than 50 levels"),
        ("a: " + "x" * 2**20, "a config has at most 1,048,576"),
        ("a: 2024-99-99\n", "month must be in 1..12"),
        ("a: " + "9" * 9000, "limit"),
    ],
    ids=[
        "bomb",
        "merges",
        "itself",
        "itself in a mapping",
        "nested",
        "deep",
        "deep mappings",
        "large",
        "date",
        "number",
    ],
)
def test_yaml_that_grows_without_bounds_is_one_short_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert len(str(caught.value).replace(str(path), "")) < 250
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5
