"""The project installs where its users are: wheels on every platform of the table, and its own wheel runs."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from polyvit import __version__

ROOT = Path(__file__).parents[1]
UV = str(Path(sys.executable).parent / "uv")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLATFORMS = {
    "Linux x86-64": ("x86_64-manylinux_2_28", True),
    "Linux aarch64": ("aarch64-manylinux_2_28", False),
    "macOS arm64": ("aarch64-apple-darwin", False),
}
"""{row of the table: (uv's platform, whether decord has wheels)}."""
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NO_INDEX = re.compile(
    r"error sending request|failed to fetch|dns error|could not connect|connection (refused|reset)|timed out"
    r"|network connectivity is disabled|was not found in the provided package locations",
    re.IGNORECASE,
)


def _uv(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run uv; skip where it says that no index can be reached, or gets no answer in time."""
    try:
        done = subprocess.run([UV, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package index did not answer within {timeout_s:.0f} s")
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[0]}")
    return done


def _table(page: str) -> dict[str, list[str]]:
    """{platform: its cells} of the table of platforms in a page; rows are named as in PLATFORMS or longer."""
    rows = re.findall(r"^\| ((?:Linux|macOS) [^|]+?) \| (.+?) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r" \(.*", "", name): cells.split(" | ") for name, cells in rows}


def _resolve(platform: str, python: str) -> subprocess.CompletedProcess[str]:
    return _uv(
        "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate",
        "--python-platform", platform, "--python-version", python, "--only-binary", ":all:",
    )  # fmt: skip


@pytest.fixture(scope="module")
def resolutions() -> Iterator[dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]]]:
    """{(row, Python): what uv says}, several at a time, since uv mostly waits for the index."""
    with ThreadPoolExecutor(6) as pool:
        yield {
            (row, python): pool.submit(_resolve, platform, python)
            for row, (platform, _) in PLATFORMS.items()
            for python in PYTHONS
        }


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("row", PLATFORMS)
def test_everything_resolves_to_wheels(
    row: str, python: str, resolutions: dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]]
) -> None:
    done = resolutions[row, python].result()
    _, with_decord = PLATFORMS[row]
    assert done.returncode == 0, done.stderr
    names = {line.partition("==")[0] for line in done.stdout.splitlines()}
    assert {"torch", "torchaudio", "ray", "mlflow", "av"} <= names
    assert ("decord" in names) == with_decord


def test_the_pages_say_what_is_resolved_here() -> None:
    for page in ("README.md", "docs/install.md"):
        rows = _table(page)
        assert set(PLATFORMS) <= set(rows)
        for row in PLATFORMS:
            assert rows[row][: len(PYTHONS)] == ["yes"] * len(PYTHONS)
    install = _table("docs/install.md")
    assert {row: install[row][-1] == "yes" for row in PLATFORMS} == {
        row: wheels for row, (_, wheels) in PLATFORMS.items()
    }


def test_any_python_from_3_11_on_is_taken() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    supported = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    assert supported == set(PYTHONS)
    (check,) = re.findall(r"-c '(import sys; .*?)'", (ROOT / "Makefile").read_text())
    for version, status in (((3, 10), 1), ((3, 11), 0), ((3, 13), 0), ((3, 20), 0)):
        code = f"import sys; sys.version_info = {(*version, 0)}; {check}"
        assert subprocess.run([sys.executable, "-c", code]).returncode == status, version


def test_versions_are_ranges_here_and_exact_in_the_constraints() -> None:
    """Exact only what belongs together (torch, torchaudio) or has no other release (decord)."""
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {
        "balancing",
        "serve",
        "search",
        "complete",
        "export",
        "hub",
        "bench",
        "docs",
        "tensorboard",
        "dev",
    }
    requirements = [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    exact = {line.partition("==")[0] for line in requirements if re.match(r"[\w.\[\],-]+==", line)}
    assert exact == {"torch", "torchaudio", "decord"}
    for line in requirements:
        assert re.match(r"[\w.,\[\]-]+(==|>=)\d", line) or line.startswith("polyvit["), (
            f"{line} has no lower bound"
        )
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for line in requirements:
        name = re.match(r"[\w.-]+", line).group(0)
        assert name == "polyvit" or name in pins, f"{name} has no exact version in constraints.txt"


def test_no_file_names_a_package_index_or_a_lock() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert "uv.lock" not in {path.name for path in files}
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org"]))
    for path in files:
        if path.is_file() and path.suffix not in (".png", ".svg"):
            assert not hosts.search(path.read_text(errors="ignore")), path
    assert "urls" not in PROJECT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout, with the setuptools of this environment: no index is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "polyvit", "pipelines"):
        (source / name).symlink_to(ROOT / name)
    done = _uv(
        "build",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(folder),
        str(source),
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_what_is_no_python_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"polyvit/py.typed", "pipelines/py.typed"} <= names
    suffixes = (".py", ".pyi", ".yaml", ".j2", ".typed")
    for package in ("polyvit", "pipelines"):
        files = [
            path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert {path.suffix for path in files} <= set(suffixes), (
            "add the new kind to package-data and to this test"
        )
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    info = f"polyvit-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    assert not {name.partition("/")[0] for name in names} - {"polyvit", "pipelines", info}
    metadata = zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Project-URL" not in metadata


@pytest.mark.slow
def test_the_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Without this checkout on the path; the packages that it needs are seen through a .pth file."""
    clean = tmp_path / "clean"
    assert _uv("venv", "--quiet", "--python", sys.executable, str(clean)).returncode == 0
    done = _uv("pip", "install", "--quiet", "--python", str(clean / "bin" / "python"), "--no-deps", str(wheel))
    assert done.returncode == 0, done.stderr
    (site,) = (clean / "lib").glob("python3*/site-packages")
    outer = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "outer.pth").write_text("".join(f"{path}\n" for path in outer))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(
        str(clean / "bin" / "python"),
        "-c",
        "import polyvit, pipelines; print(polyvit.__file__, pipelines.__file__)",
    )
    assert all(Path(file).is_relative_to(site) for file in where.split())
    assert run(str(clean / "bin" / "polyvit"), "--version").strip() == __version__
    assert "tiny-nine" in run(str(clean / "bin" / "polyvit"), "recipes")
    assert "`optim.lr`" in run(str(clean / "bin" / "polyvit"), "config", "reference")


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == __version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert [paper["identifiers"][0]["value"] for paper in citation["references"]] == [
        "arXiv:2111.12993", "arXiv:2012.04124",
    ]  # fmt: skip
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_pre_commit_and_the_workflow_run_what_the_makefile_runs() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    tools = [line.rpartition("$(BIN)/")[2].strip() for line in lint.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]] == tools
    check = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    assert subprocess.run(check, capture_output=True).returncode == 0
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    assert [step["run"] for step in workflow["jobs"]["checks"]["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_picture_is_drawn_by_its_script(tmp_path: Path) -> None:
    """The same bytes as the file that the README shows."""
    file = tmp_path / "polyvit.svg"
    script = ROOT / "docs" / "pictures" / "draw_house.py"
    assert subprocess.run([sys.executable, str(script), str(file)], cwd=tmp_path).returncode == 0
    assert file.read_bytes() == (ROOT / "docs" / "pictures" / "polyvit.svg").read_bytes()
