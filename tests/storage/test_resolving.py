"""A bucket's host that nobody knows is named once, at once."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from polyvit.config import load_config
from polyvit.data.layouts.roots import task_roots
from polyvit.errors import UserError
from polyvit.storage import resolving
from polyvit.storage.resolving import host_of, unknown_host, unresolved


@pytest.fixture(autouse=True)
def nothing_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "_asked", {})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_which_host_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_of("s3://bucket/a?endpoint_override=store.example:9000&scheme=http") == "store.example"
    assert host_of("s3://bucket/a") == "s3.amazonaws.com"
    assert host_of("s3://bucket/a?region=eu-west-1") == "s3.eu-west-1.amazonaws.com"
    assert host_of("s3://bucket/a?region=cn-north-1") == "s3.cn-north-1.amazonaws.com.cn"
    assert host_of("gs://bucket/a") == "storage.googleapis.com"
    assert host_of("https://data.example:80/a") == "data.example"
    assert host_of("memory://a") == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[::1]:9000")
    assert host_of("s3://bucket/a") == "::1"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert host_of("s3://bucket/a") == ""


def resolver(answers: dict[str, int]) -> Callable[..., Any]:
    """getaddrinfo that knows a host after so many failures, and counts."""

    def ask(host: str, port: object) -> list[Any]:
        answers[host] = answers.get(host, 99) - 1
        if answers[host] >= 0:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    return ask


def test_a_name_is_asked_for_again_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"late": 1, "known": 0}
    monkeypatch.setattr(socket, "getaddrinfo", resolver(answers))
    assert unresolved("late") == ""
    assert unresolved("never") == "Name or service not known"
    for _ in range(3):
        assert unknown_host("s3://b/x?endpoint_override=known:1") is None
        assert unknown_host("s3://b/x?endpoint_override=gone:1") == ("gone", "Name or service not known")
    assert (answers["known"], answers["gone"]) == (-1, 97)
    monkeypatch.setattr(resolving, "REMEMBERED_S", -1.0)
    answers["gone"] = 0
    assert unknown_host("s3://b/x?endpoint_override=gone:1") is None


def test_all_tasks_in_a_bucket_share_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver({}))
    config = load_config(
        "demo", ["data.root=s3://b/data?endpoint_override=no-such.example:9000"], ["pets", "vggsound"]
    )
    with pytest.raises(UserError, match="data are missing") as caught:
        task_roots(config)
    assert caught.value.problems == (
        "tasks pets, vggsound: the host no-such.example cannot be resolved (Name or service not known); correct"
        " the URL or AWS_ENDPOINT_URL, or see to the network",
    )
    assert len(task_roots(config, check=False)) == 2
