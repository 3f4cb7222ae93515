"""The HTTP service: answers, statuses, limits, and files that kill decoders but not the service."""

import argparse
import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests
from nodes_kit import free_port
from ray.exceptions import ActorDiedError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from use_kit import media, trained

from pipelines.serve import finish, main, start
from pipelines.serving import Ingress, ServiceLimits, http_requests
from pipelines.serving.front_page import front_page
from pipelines.serving.http_requests import MOST_PARTS, Refused, media_of_body, parse_query, read_body, refusal_of
from polyvit.data.decode.media_type import UNKNOWN
from polyvit.deploy.isolated_predict import DecoderDied, OverLimit
from polyvit.deploy.predict import Predictor
from polyvit.errors import BadMedia


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture(scope="module")
def service(checkpoint: Path, ray_cluster: None) -> Iterator[str]:
    given = argparse.Namespace(
        model=str(checkpoint), host="127.0.0.1", port=free_port(), replicas=1, decoders=2, batch=8,
        max_bytes=200_000, max_pixels=2000, max_seconds=60.0, decode_seconds=60.0, max_memory=2**31,
        max_requests=64,
    )  # fmt: skip
    yield start(given)
    from ray import serve

    serve.shutdown()


def test_what_a_query_may_say() -> None:
    query = QueryParams("task=a&task=b&top_k=7&modality=video")
    assert parse_query(query) == (["a", "b"], "video", 7)
    assert parse_query(QueryParams("")) == ([], None, 5)
    for wrong in ("top_k=0", "top_k=-1", "top_k=1e3", "top_k=1001", "modality=smell", "tasks=a"):
        with pytest.raises(Refused) as refused:
            parse_query(QueryParams(wrong))
        assert refused.value.status == 400


def test_status_of_a_file_that_cannot_be_used() -> None:
    assert refusal_of(OverLimit("large")) == (413, "large")
    assert refusal_of(BadMedia(UNKNOWN)) == (415, UNKNOWN)
    assert refusal_of(DecoderDied("crash")) == (422, "crash")
    assert refusal_of(BadMedia("cut short")) == (422, "cut short")


def test_the_file_of_a_form() -> None:
    prepared = requests.Request(
        "POST", "http://x", files={"f": ("a.bin", b"\x00\r\n--\xff")}, data={"note": "n"}
    ).prepare()
    body, kind = bytes(prepared.body or b""), prepared.headers["Content-Type"]
    assert media_of_body(body, kind) == b"\x00\r\n--\xff"
    assert media_of_body(b"raw", "image/png") == b"raw"
    for broken, kind_ in [(b"nothing", kind), (body, "multipart/form-data")]:
        with pytest.raises(Refused) as refused:
            media_of_body(broken, kind_)
        assert refused.value.status == 400


def test_a_form_of_very_many_parts_is_refused_early() -> None:
    """A million parts took 43 s."""
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    began = time.process_time()
    with pytest.raises(Refused, match=f"more than {MOST_PARTS} parts") as refused:
        media_of_body(part * 500_000 + b"--b--\r\n", "multipart/form-data; boundary=b")
    assert refused.value.status == 400
    assert time.process_time() - began < 1


# What needs no Ray: the class behind the deployment, with a model that is a few lines.


def ingress(answer: Callable[..., Any], requests: int = 2) -> Any:
    model = SimpleNamespace(
        answer=SimpleNamespace(remote=answer), description=SimpleNamespace(remote=lambda: _done({"tasks": {}}))
    )
    return Ingress.func_or_class.__mro__[1](model, ServiceLimits(requests=requests, replaced_s=0.1))  # type: ignore[attr-defined]


async def _done(value: Any) -> Any:
    return value


def posted(*chunks: bytes, every_s: float = 0.0, more: bool = False) -> Request:
    """A POST whose body comes in chunks; `more`: and then nothing."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting += [] if more else [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(every_s if waiting else 1000)
        return waiting.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    return Request(scope, receive)  # type: ignore[arg-type]


def test_a_body_that_trickles_or_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_requests, "READ_S", 0.2)
    assert asyncio.run(read_body(posted(b"ab", b"c", every_s=0.01), 10)) == b"abc"
    for slow in (posted(*[b"a"] * 100, every_s=0.02), posted(b"ab", more=True)):
        began = time.monotonic()
        with pytest.raises(Refused, match="the body comes too slowly; send 64 KiB a second") as refused:
            asyncio.run(read_body(slow, 1000))
        assert refused.value.status == 408
        assert time.monotonic() - began < 1
    many = posted(*[bytes(2**15)] * 20, every_s=0.02)  # fast enough, although it takes longer than READ_S
    assert len(asyncio.run(read_body(many, 2**20))) == 20 * 2**15


def test_bodies_that_are_on_their_way_take_no_slot() -> None:
    async def run() -> list[Any]:
        front = ingress(lambda *asked: _done((200, {"tasks": {}}, False)), requests=2)
        slow = [asyncio.create_task(front.predict(posted(b"a", more=True))) for _ in range(7)]
        await asyncio.sleep(0.05)
        replies = [await front.predict(posted(b"a file")), await front.healthz(), await front.livez()]
        slow.append(asyncio.create_task(front.predict(posted(b"a", more=True))))
        await asyncio.sleep(0.05)
        replies += [await front.predict(posted(b"a file")), await front.readyz()]
        for task in slow:
            task.cancel()
        return replies

    answered, health, live, refused, ready = asyncio.run(run())
    assert [answered.status_code, health.status_code, live.status_code] == [200, 200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "sending their bodies" in json.loads(refused.body)["error"]
    assert ready.status_code == 200


def test_the_page_for_a_browser_shows_names_as_they_are_and_loads_nothing_else() -> None:
    page = front_page({"a<b>": "image", "clip": "video"}, "http://h:1/", 1000)
    assert "<td>a&lt;b&gt;</td><td>image</td>" in page
    assert "at most 1,000 bytes" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert "<script" not in page
    assert "http://h:1/predict?task=NAME" in front_page({}, "http://h:1/", 1)


def test_a_busy_service_is_alive_and_ready_and_an_ending_one_answers_what_it_began() -> None:
    async def run() -> list[Any]:
        go = asyncio.Event()

        async def answer(*asked: Any) -> Any:
            await go.wait()
            return 200, {"tasks": {}}, False

        front = ingress(answer, requests=2)
        begun = [asyncio.create_task(front.predict(posted(b"a file"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        replies = [await front.predict(posted(b"a file")), await front.readyz()]
        draining = asyncio.create_task(front.drain(30.0))
        await asyncio.sleep(0.05)
        replies += [await front.predict(posted(b"a file")), await front.readyz(), await front.livez()]
        assert not draining.done()
        go.set()
        assert await draining == 0
        return [*replies, *await asyncio.gather(*begun)]

    replies = asyncio.run(run())
    assert [reply.status_code for reply in replies] == [503, 200, 503, 503, 200, 200, 200]
    assert "under way" in json.loads(replies[0].body)["error"]
    assert "ending" in json.loads(replies[2].body)["error"]


def test_a_request_whose_replica_died_goes_to_another_or_gets_a_503() -> None:
    calls: list[Any] = []

    async def dies_once(*asked: Any) -> Any:
        calls.append(asked)
        if len(calls) == 1:
            raise ActorDiedError
        return 200, {"tasks": {}}, False

    async def dies(*asked: Any) -> Any:
        raise ActorDiedError

    async def dies_and_is_not_replaced(*asked: Any) -> Any:
        calls.append(asked)
        if len(calls) == 1:
            raise ActorDiedError
        await asyncio.sleep(1000)

    async def has_a_bug(*asked: Any) -> Any:
        raise KeyError("a bug")

    for answer, status, text in [
        (dies_once, 200, ""), (dies, 503, "died"), (dies_and_is_not_replaced, 503, "died"),
        (has_a_bug, 500, "KeyError"),
    ]:  # fmt: skip
        calls.clear()
        reply = asyncio.run(ingress(answer).predict(posted(b"a file")))
        assert reply.status_code == status
        assert text in json.loads(reply.body).get("error", "")


@pytest.mark.ray
def test_it_answers_as_predict_does(service: str, checkpoint: Path, files: dict[str, Path]) -> None:
    predictor = Predictor.load(checkpoint)
    for name in ("image", "clip", "song"):
        (expected,) = predictor.predict([files[name]], top_k=2)
        reply = requests.post(f"{service}/predict?top_k=2", data=files[name].read_bytes(), timeout=120)
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert found["modality"] == expected["modality"]
        for task, best in expected["tasks"].items():
            assert [entry["label"] for entry in found["tasks"][task]] == [entry["label"] for entry in best]
            for one, other in zip(found["tasks"][task], best, strict=True):
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
    form = requests.post(
        f"{service}/predict?task=word", files={"f": files["clip"].read_bytes()}, timeout=60
    ).json()
    assert (form["modality"], list(form["tasks"])) == ("audio", ["word"])


@pytest.mark.ray
def test_it_refuses_with_a_reason_and_counts(service: str, files: dict[str, Path]) -> None:
    def count(status: int) -> float:
        text = requests.get(f"{service}/metrics", timeout=60).text
        lines = [
            line for line in text.splitlines() if line.startswith(f'polyvit_requests_total{{status="{status}"}}')
        ]
        return float(lines[0].split()[-1]) if lines else 0.0

    wide = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x75\x30\x00\x00\x75\x30\x08\x02\x00\x00\x00"
    for body, query, status, reason in [
        (files["page"].read_bytes(), "", 415, UNKNOWN),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "", 415, UNKNOWN),
        (files["photo"].read_bytes()[:300], "", 422, "image: "),
        (files["clip"].read_bytes()[:400], "", 422, "container: "),
        (files["image"].read_bytes(), "?task=word", 422, "no task for this file"),
        (files["image"].read_bytes(), "?task=cats", 400, "no task 'cats'; it has picture"),
        (b"", "", 400, "there is no file"),
        (bytes(200_001), "", 413, "larger than 200000 bytes"),
        (wide, "", 422, "image: "),
    ]:
        before = count(status)
        reply = requests.post(f"{service}/predict{query}", data=body, timeout=120)
        assert (reply.status_code, list(reply.json())) == (status, ["error"]), reply.text
        assert reason in reply.json()["error"]
        assert count(status) == before + 1
    chunked = requests.post(f"{service}/predict", data=(bytes(50_000) for _ in range(5)), timeout=60)
    assert chunked.status_code == 413
    health = requests.get(f"{service}/healthz", timeout=60)
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert health.json()["tasks"]["clip"] == "video"
    for path in ("/", "/docs"):
        page = requests.get(f"{service}{path}", timeout=60)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "<td>clip</td><td>video</td>" in page.text
        assert f"{service}/predict?top_k=3" in page.text
    described = requests.get(f"{service}/openapi.json", timeout=60).json()["paths"]
    assert "multipart/form-data" in described["/predict"]["post"]["requestBody"]["content"]
    assert {"/predict", "/livez", "/readyz", "/healthz", "/metrics"} == set(described)


def decoders_of_the_service() -> list[psutil.Process]:
    """The children of its replica: decoders of a batch job may linger in the same Ray."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # processes of Ray come and go
            parent = process.parent()
            if (
                parent
                and "polyvit.deploy.isolated_predict" in process.cmdline()
                and "ServeReplica" in " ".join(parent.cmdline())
            ):
                processes.append(process)
    return processes


@pytest.mark.ray
def test_a_dead_decoder_costs_one_request(service: str, files: dict[str, Path]) -> None:
    statuses: list[int] = []

    def post() -> None:
        reply = requests.post(f"{service}/predict", data=files["image"].read_bytes(), timeout=300)
        statuses.append(reply.status_code)

    decoders = decoders_of_the_service()
    assert len(decoders) == 2
    for _ in decoders:  # they take turns: now both have started
        post()
    assert statuses == [200, 200]
    statuses.clear()
    for decoder in decoders:
        decoder.send_signal(signal.SIGSEGV)
    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 6 + [422] * 2
    assert requests.get(f"{service}/healthz", timeout=60).json()["decoder_deaths"] == 2


@pytest.mark.ray
@pytest.mark.faults
def test_a_killed_replica_costs_no_request_and_the_end_waits_for_answers(
    service: str, files: dict[str, Path]
) -> None:
    replicas = {decoder.parent() for decoder in decoders_of_the_service()}
    assert len(replicas) == 1
    statuses: list[int] = []

    def post() -> None:
        reply = requests.post(f"{service}/predict", data=files["image"].read_bytes(), timeout=300)
        statuses.append(reply.status_code)

    def posting(count: int) -> list[threading.Thread]:
        threads = [threading.Thread(target=post) for _ in range(count)]
        for thread in threads:
            thread.start()
        return threads

    posters = posting(8)
    (replica,) = replicas
    assert replica is not None
    replica.kill()
    for thread in posters + posting(2):
        thread.join()
    assert statuses == [200] * 10
    posters = posting(8)
    time.sleep(0.2)
    finish(60.0, threading.Event())
    for thread in posters:
        thread.join()
    assert statuses == [200] * 18
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{service}/livez", timeout=5)


def test_what_is_refused_before_ray_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main([str(tmp_path), "--port", "0"])
    assert status.value.code == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_an_address_that_cannot_be_listened_on_is_refused_before_ray_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["no-model", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} cannot be listened on" in (said := capsys.readouterr().err)
    assert "give another --port" in said
    assert main(["no-model", "--port", "99999"]) == 2
    assert "give another address" in capsys.readouterr().err
