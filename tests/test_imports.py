"""Our own modules are imported at the top of a file; an import inside a function says which start-up time it
saves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("polyvit", "pipelines")
REASON = "# start-up: "


def is_ours(node: ast.AST) -> bool:
    """Whether a statement imports from this repository."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] in OURS
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] in OURS for alias in node.names)


def problems(source: str) -> Iterator[str]:
    """`line: statement` of imports of ours without a reason inside a function, and of all under TYPE_CHECKING."""
    lines, tree = source.splitlines(), ast.parse(source)
    seen: set[int] = set()
    for outer in ast.walk(tree):
        typing_only = isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test)
        if not typing_only and not isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(outer):
            if not is_ours(node) or node.lineno in seen:
                continue
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if typing_only or not text.partition(REASON)[2].strip():
                seen.add(node.lineno)
                yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from polyvit.model import PolyViT", 0),
        ("def f():\n    from polyvit.model import PolyViT", 1),
        ("class A:\n    async def f(self):\n        import pipelines.index", 1),
        ("def f():\n    from . import here", 1),
        ("def f():\n    from polyvit.model import PolyViT  # start-up:", 1),
        ("def f():\n    from polyvit.model import PolyViT  # start-up: torch", 0),
        ("def f():\n    from polyvit.model import (  # start-up: torch\n        PolyViT,\n    )", 0),
        ("def f():\n    import torch\n    import polyvitamins", 0),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import polyvit.x  # start-up: no", 1),
    ],
)
def test_what_is_a_problem(source: str, count: int) -> None:
    assert len(list(problems(source))) == count


def test_imports_inside_functions_have_a_reason() -> None:
    files = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
    offenders = [f"{path.relative_to(ROOT)}:{problem}" for path in files for problem in problems(path.read_text())]
    assert len(files) > 100
    assert not offenders, f"{len(offenders)} imports to move to the top, or to explain:\n" + "\n".join(offenders)
