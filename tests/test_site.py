"""The navigation of the site names every page once, and nothing else; `make docs` checks the links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_page_and_notebook_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.(?:md|ipynb))$", navigation, re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", "tests/benchmarks/RESULTS.md"}
    pages |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    pages |= {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.ipynb")}
    assert {page for page in listed if not page.startswith("api/")} == pages


def test_every_page_of_the_api_is_of_a_door() -> None:
    packages = re.findall(r"api/(\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert "polyvit" in packages
    assert all(ROOT.joinpath(*package.split("."), "__init__.pyi").exists() for package in packages)
