"""What the README and the guides tell their reader is true: commands parse, configs load, links and keys exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.bench import main as bench
from pipelines.cli import COMMANDS, MODULES
from pipelines.runtime import command_line
from polyvit.config import config_sections, load_config, recipe_names
from polyvit.data.layouts.scanner import scan
from polyvit.errors import UserError
from polyvit.synthetic.write import write_example_pair

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md", *GUIDES]
CONFIG_COMMANDS = ("index", "shard", "inspect", "plan", "cotrain", "sweep")
CODE_LINE = re.compile(r"^(?: {4,}|)(?:\.venv/bin/)?(polyvit \w.*|python -m pipelines\..*|ray job submit .*)$")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _code_lines(text: str) -> Iterator[str]:
    """Command lines of indented and fenced blocks, with their continuation lines, without comments."""
    for block in re.findall(r"(?:^ {4}.*\n?)+|^```(?:sh|bash|console)?\n(?:.*\n)*?```", text, re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if match := CODE_LINE.match(line):
                yield match.group(1)


def _inline(text: str) -> Iterator[str]:
    """`polyvit ...` between backticks, with arguments, in running text and tables."""
    for command in re.findall(r"`(polyvit \w+ [^`]+|python -m pipelines\.[\w.]+ [^`]+)`", text):
        yield command.replace("\\|", " or ").replace(" or URL", "").replace("[", "").replace("]", "")


def _words(line: str) -> list[str]:
    """A command line as the arguments that `polyvit` gets; placeholders stay as they are."""
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    if "-m" in words:  # python -m pipelines.NAME, or ray job submit ... -- python -m pipelines.NAME
        place = words.index("-m")
        return [*words[place + 1].removeprefix("pipelines.").split("."), *words[place + 2 :]]
    return words[1:]


def _commands() -> list[tuple[str, list[str]]]:
    lines = []
    for page in PAGES:
        text = page.read_text()
        outside = re.sub(r"(?:^ {4}.*\n?)+", "", text, flags=re.MULTILINE)
        commands = [*_code_lines(text), *_inline(outside)]
        ours = [line for line in commands if "pipelines" in line or line.startswith("polyvit ")]
        lines += [(_name(page), _words(line)) for line in ours]
    return lines


def _main(words: list[str]) -> tuple[object, list[str]]:
    """The `main` behind a command, and its arguments."""
    command, *arguments = words
    if command == "bench" and arguments:
        return importlib.import_module(f"pipelines.bench.{arguments[0]}").main, arguments[1:]
    return importlib.import_module(f"pipelines.{MODULES.get(command, command)}").main, arguments


COMMAND_LINES = _commands()


def test_there_is_something_to_check() -> None:
    assert {words[0] for _, words in COMMAND_LINES} == set(COMMANDS)
    assert {words[1] for _, words in COMMAND_LINES if words[0] == "bench"} == {*bench.BENCHES, "decode"}
    assert {page for page, _ in COMMAND_LINES} >= {
        "README.md",
        "docs/data.md",
        "docs/sweeps.md",
        "docs/clusters.md",
    }
    assert len(COMMAND_LINES) > 60


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=[" ".join(words) for _, words in COMMAND_LINES])
def test_every_command_line_parses(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command's own parser; nothing runs."""
    parsed = []

    def parse(parser, body, argv=None) -> int:
        parsed.append(parser.parse_intermixed_args(argv))
        return 0

    monkeypatch.setattr(command_line, "run", parse)
    main, arguments = _main(words)
    try:
        main(arguments)
    except SystemExit as error:
        raise AssertionError(f"{page}: polyvit {' '.join(words)} does not parse") from error
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "words", [words for _, words in COMMAND_LINES if words[0] in CONFIG_COMMANDS], ids=" ".join
)
def test_every_config_of_a_command_line_has_only_known_keys(words: list[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(_yaml_block())
    recipe = words[1] if len(words) > 1 else "--"
    if recipe in ("CONFIG", "RECIPE") or recipe.startswith("-"):
        recipe = "tiny-nine"
    assert recipe == "mine.yaml" or recipe in recipe_names(), f"{recipe} does not ship"
    overrides = [word for word in words[2:] if re.match(r"^[a-z_]+(\.[\w-]+)*=", word)]
    try:
        load_config(str(mine) if recipe == "mine.yaml" else recipe, overrides)
    except UserError as error:  # such as baselines that are measured first
        wrong = [
            line for line in (error.message, *error.problems) if "unknown" in line or "not an override" in line
        ]
        assert wrong == []


def _yaml_block() -> str:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    return block


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_yaml_block_is_a_config(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        (tmp_path / "block.yaml").write_text(block)
        assert load_config(str(tmp_path / "block.yaml")).tasks


def test_the_two_dataset_config_trains_on_the_example_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_example_pair(Path("pair"))
    Path("mine.yaml").write_text(_yaml_block())
    config = load_config("mine.yaml", ["schedule.kind=uniform", "model.l_adapt=2"])
    assert list(config.tasks) == ["shapes", "sounds"]
    for name, task in config.tasks.items():
        assert task.root is not None
        examples = scan(task, Path(task.root), name)
        assert examples.problems == []
        assert examples.counts()["train"] > 0
        assert examples.counts()[task.eval_split] > 0
        assert len(examples.classes) == task.num_classes == 3


def test_the_line_that_writes_the_example_pair_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r'`python -c "([^"]+)"`', README)
    monkeypatch.chdir(tmp_path)
    exec(" ".join(code.split()), {})
    assert (tmp_path / "pair" / "sounds" / "data.csv").is_file()


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = set(re.findall(r"^\| `polyvit (\w+)", README, re.MULTILINE))
    assert documented == set(COMMANDS)


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{_name(page)}: {target}"
        assert file.is_relative_to(ROOT.resolve())
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{_name(page)}: {target}"


def test_every_guide_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w/.-]+\.md)", README))
    assert linked == {_name(path) for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`((?:polyvit|pipelines|tests|docs|cluster)/[\w/.*-]+)`", page.read_text()):
        if "NAME" not in name and name != "cluster/.env":
            assert list(ROOT.glob(name.rstrip("/"))), f"{_name(page)}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_config_key_that_is_named_exists(page: Path) -> None:
    paths = {key.path for section in config_sections() for key in section.keys}
    sections = {path.partition(".")[0] for path in paths if "." in path} - {"tasks"}
    known = paths | {path.removeprefix("tasks.NAME.") for path in paths}
    pattern = rf"`((?:{'|'.join(sorted(sections))}|augment)\.[a-z_]+(?:\.[a-z_]+)*)(?<!\.txt)[=:` ]"
    for key in re.findall(pattern, page.read_text()):
        assert key in known or any(path.startswith(f"{key}.") for path in known), f"{_name(page)}: {key}"


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 160
