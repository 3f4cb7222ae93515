"""What the site has beyond the pages in the repository: a page for each door of the library, from its stub.

In: `nav` of mkdocs.yml, where `api/PACKAGE.md` asks for such a page. Out: pages for mkdocstrings.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each `api/PACKAGE.md` of the navigation."""
    for address in re.findall(r"'(api/[\w.]+\.md)'", repr(config.nav)):
        package = address.removeprefix("api/").removesuffix(".md")
        files.append(File.generated(config, address, content=_page(package)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """In a cell of a table GitHub wants a bar in code escaped, and Python-Markdown shows the escape."""
    return re.sub(r"`[^`\n]*`", lambda code: code.group().replace("\\|", "|"), markdown)


def _page(package: str) -> str:
    """The docstring of a package, then each name that its stub gives to others, in the order of the files."""
    folder = ROOT.joinpath(*package.split("."))
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    about = re.split(r"^Read: ", about, flags=re.MULTILINE)[0]
    names = [
        alias.name
        for node in ast.parse((folder / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return "\n\n".join([f"# `{package}`", about, *(_directive(package, name) for name in names)])


def _directive(package: str, name: str) -> str:
    """What mkdocstrings reads: where it is defined, under the name by which it is imported."""
    return f"::: {_origin(package, name)}\n    options:\n      heading: {package}.{name}\n      toc_label: {name}"


def _origin(package: str, name: str) -> str:
    """Where a name of a door is defined, through the doors below it."""
    folder = ROOT.joinpath(*package.split("."))
    if not (folder / "__init__.pyi").exists():
        return f"{package}.{name}"
    for node in ast.parse((folder / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            module = f"{package}.{node.module}"
            return _origin(module, name) if ROOT.joinpath(*module.split(".")).is_dir() else f"{module}.{name}"
    return f"{package}.{name}"
