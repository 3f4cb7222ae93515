"""The house as a stranger finds it: every package has a door that names its files and what others may use."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    path.parent
    for top in ("polyvit", "pipelines")
    for path in (ROOT / top).rglob("__init__.py")
    if path.parent.name != top
)
FILES = [path for top in ("polyvit", "pipelines") for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_door_says_what_comes_in_and_out_and_names_every_file(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    if package.name == "data":
        assert all(room.name in text for room in package.iterdir() if (room / "__init__.py").exists())
        return
    assert re.search(r"^In: .*Out: ", text, re.M | re.S)
    (order,) = re.findall(r"^Read: (.*?)\.$", text, re.M | re.S)
    named = [word.rstrip("/") for word in re.split(r",\s+", order)]
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(named) == files | rooms
    assert len(named) == len(set(named))


def names_of(stub: Path) -> list[tuple[str, str]]:
    """(module, name) of a stub's imports."""
    return [
        (node.module or "", alias.name)
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_door_gives_what_its_stub_names_and_no_name_is_a_module(package: Path) -> None:
    stub = package / "__init__.pyi"
    if not stub.exists():
        pytest.skip("nothing but modules")
    modules = {path.stem for path in package.iterdir()} - {"__init__", "__pycache__"}
    for module, name in names_of(stub):
        assert name not in modules, f"{name} is a module too: importing it would hide the name"
        source = package / module.replace(".", "/")
        assert source.with_suffix(".py").exists() or source.is_dir(), module


def test_no_file_and_no_function_is_too_long() -> None:
    long: list[str] = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_names_that_say_nothing_are_not_used() -> None:
    """`made` and `found` were the names of everything once."""
    used = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        for name in [getattr(node, "id", None) or getattr(node, "arg", None)]
        if name in ("made", "found") and isinstance(node, ast.Name | ast.arg)
    ]
    assert not used
