"""A model on Hugging Face's hub and back, through huggingface_hub itself and a stand-in for the hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from hub_kit import READ_ONLY, TOKEN, Hub, hub
from huggingface_hub import constants
from use_kit import media, trained

import polyvit
from pipelines.export import main
from polyvit.deploy import hub_remote
from polyvit.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


_PAGE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + _PAGE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def test_a_model_is_pushed_in_one_commit_and_answers_the_same_when_it_comes_back(
    tmp_path: Path, server: Hub
) -> None:
    checkpoint, _, _ = trained(tmp_path)
    model = polyvit.load(checkpoint)
    address = model.push_to_hub("me/first", private=True, revision="tiny")
    assert address.startswith(f"{server.address}/me/first/commit/")
    assert server.commits == [("me/first", "tiny", "Upload polyvit model")]
    assert server.private == {"me/first": True}
    branches = server.repositories["me/first"]
    assert (branches["main"], set(branches["tiny"])) == (
        {}, {"model.safetensors", "state.json", "manifest.json", "config.json", "README.md"},
    )  # fmt: skip
    picture = media(tmp_path / "media")["image"]
    assert polyvit.load("hf://me/first@tiny").predict(picture) == model.predict(picture)
    back = polyvit.from_pretrained("hf://me/first", revision="tiny")
    assert back.folder.is_relative_to(tmp_path / "cache")
    model.push_to_hub("first", revision="tiny")
    assert [commit[:2] for commit in server.commits] == [("me/first", "tiny")] * 2
    with pytest.raises(UserError, match=r"cannot fetch hf://me/first@huge: no such repository or revision"):
        polyvit.load("hf://me/first@huge")


@pytest.mark.slow
def test_the_command_pushes_one_task_and_the_whole_model(tmp_path: Path, server: Hub) -> None:
    checkpoint, _, _ = trained(tmp_path)
    one, report = tmp_path / "one", tmp_path / "report.json"
    arguments = [str(checkpoint), "--task", "picture", "--to", "huggingface", "--out", str(one)]
    assert main([*arguments, "--push", "me/picture", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["pushed"].startswith(f"{server.address}/me/picture/commit/")
    files = server.repositories["me/picture"]["main"]
    assert files == {path.name: path.read_bytes() for path in one.iterdir()}
    assert transformers.ViTForImageClassification.from_pretrained("me/picture").config.num_labels == 5
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mine.txt").write_text("not of the model")
    assert main([str(checkpoint), "--to", "polyvit", "--out", str(tmp_path / "all"), "--push", "me/all"]) == 0
    assert len(server.repositories["me/all"]["main"]) == 5
    again = tmp_path / "again"
    assert main(["hf://me/all", "--task", "picture", "--to", "torch", "--out", str(again)]) == 0
    assert (again / "picture.pt2").is_file()


def test_what_the_hub_refuses_is_one_message(tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("a card")

    def push(repo_id: str, token: str | None = None) -> str:
        return hub_remote.push_folder(tmp_path, ["README.md"], repo_id, token=token)

    with pytest.raises(
        UserError, match=r"cannot push to me/a: .*`hf auth login` or HF_TOKEN \(answer 401 of http"
    ):
        push("me/a", "hf_wrong")
    with pytest.raises(UserError, match=r"the token may not do this; .*answer 403 .*You don't have the rights"):
        push("me/a", READ_ONLY)
    with pytest.raises(UserError, match=r"cannot push to a//b: a repository is ORG/NAME"):
        push("a//b")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no token to push to me/a: run `hf auth login`, set HF_TOKEN, or give"):
        push("me/a")
    with pytest.raises(UserError, match=r"cannot fetch hf://me/none: no such repository, or the token is not"):
        hub_remote.fetch_folder("hf://me/none")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot push to me/a: http://127.0.0.1:9 does not answer \(.*refused"):
        push("me/a", TOKEN)
    with pytest.raises(UserError, match=r"cannot fetch hf://me/a: http://127.0.0.1:9 does not answer"):
        hub_remote.fetch_folder("hf://me/a")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'polyvit\[hub\]'"):
        push("me/a", TOKEN)
    assert server.commits == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "torch", "--task", "picture", "--push", "me/a"], "--push uploads what a library loads"),
        (["--to", "polyvit", "--task", "picture"], "leave out --task"),
        (["--to", "polyvit", "--int8"], "--int8 is of the .pt2 and .onnx files"),
        (["--to", "timm"], "give --task NAME, --part CNN, or --to polyvit"),
        (["--to", "timm", "--task", "picture", "--private"], "--private and --revision say how --push uploads"),
    ],
)
def test_flags_that_do_not_go_together(
    tmp_path: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "out"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
