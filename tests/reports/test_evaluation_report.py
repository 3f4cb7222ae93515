"""The report on an evaluation: every file, a page that loads nothing, names shown as they are."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import small_config

from polyvit.errors import UserError
from polyvit.evaluation.detail import TaskDetail, WorstExample, task_detail
from polyvit.reports.evaluation.report import write_report
from polyvit.reports.evaluation.worst_sheet import _words
from polyvit.reports.html import MOST_EMBEDDED, Figure, Table, render


def detail(task: str, names: list[str], examples: int) -> TaskDetail:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), examples)
    logits_BK = rng.normal(size=(examples, len(names)))
    logits_BK[np.arange(examples), labels] += 2
    return task_detail(task, small_config().tasks[task], names, logits_BK, np.eye(len(names), dtype=int)[labels])


ROW = {"metric": "top1", "value": 0.5, "examples": 300, "eval_split": "test"}


def test_the_page_the_tables_and_the_pictures(tmp_path: Path) -> None:
    words, many = ["yes", "no <b>", "perhaps"], [f"class {k}" for k in range(120)]
    details = {"word": detail("word", words, 300), "sound": detail("sound", many, 900)}
    files = write_report(details, {"word": ROW, "sound": ROW}, "run: evaluation after step 9", tmp_path / "report")
    assert {path.name for path in files.values()} == {
        "report.html", "classes_word.csv", "classes_sound.csv", "confusion_word.csv", "confusion_word.png",
        "reliability_word.png", "reliability_sound.png",
    }  # fmt: skip
    page = files["report"].read_text()
    assert "run: evaluation after step 9" in page
    assert "no &lt;b&gt;" in page
    assert "100 of 120; classes_sound.csv" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert len(page) < 2_000_000
    with files["confusion_table_word"].open() as file:
        head, *rows = csv.reader(file)
    assert head == ["true class", *words]
    assert sum(int(count) for row in rows for count in row[1:]) == 300
    with files["classes_word"].open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == words
    wrong = details["word"].confusion
    assert wrong is not None
    off = wrong - np.diag(np.diag(wrong))
    pairs = re.findall(r'"word">([^<]*)</td>\s*<td class="word">([^<]*)</td>\s*<td>(\d+)</td>', page)
    assert pairs[0][2] == str(off.max())


def test_the_worst_examples_on_a_sheet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    worst = tuple(
        WorstExample(
            f"k{i}", 3.0 - i, ("yes",), ("no",), f"a/{i}.jpg", rng.integers(0, 255, (32, 32, 3), np.uint8)
        )
        for i in range(2)
    )
    files = write_report(
        {"word": replace(detail("word", ["yes", "no"], 9), worst=worst)}, {"word": ROW}, "t", tmp_path
    )
    lines = files["worst_table_word"].read_text().splitlines()
    assert lines == ["loss,true,predicted,key,path", "3.0,yes,no,k0,a/0.jpg", "2.0,yes,no,k1,a/1.jpg"]
    assert files["worst_word"].read_bytes()[:2] == b"\xff\xd8"
    assert "data:image/jpeg;base64," in files["report"].read_text()


def test_pictures_beyond_the_limit_are_named_instead(tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    picture.write_bytes(bytes(MOST_EMBEDDED))
    task = {"name": "t", "facts": [], "figures": [Figure(picture, "A chart.")], "classes": Table([]), "count": 0,
            "listed": 1, "mixed": None, "worst": 0, "sheet": None}  # fmt: skip
    page = render("evaluation.html.j2", title="t", tasks=[task])
    assert len(page) < 20_000
    assert "see large.png beside it" in page


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--report .*cannot be written"):
        write_report({"word": detail("word", ["a", "b", "c"], 9)}, {"word": ROW}, "t", tmp_path / "file")


def test_a_long_name_of_a_class_is_cut_and_not_left_out() -> None:
    example = WorstExample("a.jpg", 0.25, ("american_pit_bull_terrier_of_the_north",), ())
    assert _words(example).splitlines() == ["loss 0.25", "true: american_pit_bull_ter...", "predicted: none"]
