"""What a decoding process that a file has taken over can still do on this machine."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import task
from PIL import Image
from s3_kit import s3_server
from small import small_config

from polyvit.data.index import Example
from polyvit.data.isolation import Child, isolation_report
from polyvit.data.isolation.confinement import KEPT, NAMES
from polyvit.data.loading import Decoder, Request
from polyvit.storage import RemoteRoot, open_root, under

linux = pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bool]]:
    """What it tried, with what came of it; and which limits this machine has."""
    folder = tmp_path_factory.mktemp("confined")
    for name in ("secret", "own"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    hello = {"secret": str(folder / "secret/file"), "own": str(folder / "own/file")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
        patch.setenv("LANG", "C.UTF-8")
        child = Child("confined_probe", hello, environment={"OF_ITS_OWN": "1"}, readable=[str(folder / "own")])
    try:
        answers, _ = child.ask({}, b"", 30.0)
    finally:
        child.close()
    assert (folder / "own/file").exists()
    return answers, child.confined


def test_the_environment_is_what_it_needs(taken_over: tuple[dict[str, Any], dict[str, bool]]) -> None:
    given = taken_over[0]["environment"]
    assert set(given) <= {*KEPT, "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "OF_ITS_OWN"}
    assert (given["LANG"], given["OF_ITS_OWN"]) == ("C.UTF-8", "1")


@linux
def test_it_reads_what_it_has_to_and_nothing_else(
    taken_over: tuple[dict[str, Any], dict[str, bool]],
) -> None:
    answers, confined = taken_over
    assert (answers["own file"], answers["code"]) == ("own", "done")
    if not confined["files"]:
        pytest.skip("this kernel has no Landlock")
    for name in ("secret", "parent's environment", "write"):
        assert answers[name] == "errno 13", name


@linux
def test_it_changes_nothing_and_reaches_nobody(taken_over: tuple[dict[str, Any], dict[str, bool]]) -> None:
    answers, confined = taken_over
    assert confined["no_new_privs"]
    if not confined["system_calls"]:
        pytest.skip("no seccomp here")
    for name in ("delete", "chmod", "socket", "program", "signal", "trace", "mount"):
        assert answers[name] in ("errno 1", "errno 13"), name
    if os.geteuid() == 0:
        assert confined["rights"]
        assert answers["user"] == "errno 1"


@linux
def test_a_python_that_lies_where_it_may_not_be_read_still_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit on files is given up then, with a warning, before any file was seen."""
    monkeypatch.setattr("polyvit.data.isolation.worker.places_of_code", lambda: [str(tmp_path)])
    (tmp_path / "file").write_text("x")
    hello = {"secret": str(tmp_path / "file"), "own": str(tmp_path / "file")}
    child = Child("confined_probe", hello)
    try:
        child.wait_ready()
    finally:
        child.close()
    assert (child.confined["files"], child.confined["system_calls"], child.deaths) == (False, True, 0)
    assert "may read every file" in caplog.text


def test_the_report_names_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    report = isolation_report()
    assert "\n" not in report
    assert all(words in report for words in NAMES.values())
    monkeypatch.setattr(Child, "wait_ready", lambda self: self.confined.update(files=True))
    assert "limits, reads its own files only (Landlock); not possible here: no new" in isolation_report()


@pytest.mark.slow
def test_data_of_a_bucket_reach_a_process_without_network_and_credentials(tmp_path: Path) -> None:
    examples = [Example(f"{i}.png", f"{i}.png", (0,), "train") for i in range(3)]
    with s3_server() as url:
        root = open_root(under(url, "data"))
        assert isinstance(root, RemoteRoot)
        for i, example in enumerate(examples[:2]):
            content = io.BytesIO()
            Image.new("RGB", (20, 20), (i, 2, 3)).save(content, "png")
            (tmp_path / "file").write_bytes(content.getvalue())
            root.write(example.path, tmp_path / "file")
        spec = small_config().model.image
        decoder = Decoder({"pics": task("imagefolder", 2)}, {"pics": spec}, {"pics": under(url, "data")}, 5, 30.0)
        request = Request(1, "pics", examples, (0, 0, 0), 0, 3, ())
        careful, plain = decoder.decode(request, careful=True), decoder.decode(request)
    np.testing.assert_array_equal(careful.inputs["tokens"], plain.inputs["tokens"])
    assert (careful.keys, careful.bad) == (plain.keys, plain.bad)
    assert [entry.reason for entry in careful.bad] == ["file is missing"]
