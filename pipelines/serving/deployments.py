"""The HTTP service's two Ray Serve deployments: `Ingress` speaks HTTP, `ModelReplica` decodes and runs the model.

    POST /predict[?task=NAME&top_k=5&modality=video]   the file as body, or as the one file of a multipart form
    GET /healthz    GET /metrics (Prometheus text)

`Ingress` reads no more of a body than a file may have, counts, and refuses when too many requests are under way.
`ModelReplica` decodes each file in a process of its own (`isolated_predict.py`), so that no file takes the service
down, and answers in batches. What a client did wrong is a 4xx with {"error": reason}.
"""

import asyncio
import io
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve

from pipelines.tracking import model_folder
from polyvit.config import MODALITIES, Modality
from polyvit.data.decode import UNKNOWN
from polyvit.deploy import DecoderDied, IsolatedDecoder, Limits, OverLimit, Predictor, Prepared, check_tasks
from polyvit.errors import BadMedia, UserError

BATCH_WAIT_S = 0.01
"""How long the first file of a batch waits for others."""
MOST_CLASSES = 1000


FILE_LIMITS = Limits(pixels=2**25, seconds=600.0, decode_seconds=20.0, memory=2 * 2**30)


@dataclass(frozen=True)
class ServiceLimits:
    """What one request, and all of them together, may ask for."""

    bytes: int = 64 * 2**20
    requests: int = 64
    file: Limits = FILE_LIMITS


class Refused(Exception):
    """A request that gets a 4xx or 503, with its reason."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


def refusal_of(error: BadMedia) -> tuple[int, str]:
    """The HTTP status and reason of a file that cannot be used."""
    if isinstance(error, OverLimit):
        return 413, error.reason
    return (415 if error.reason == UNKNOWN else 422), error.reason


# ------------------------------------------------------------------------------------------------- model


class Decoders:
    """Several sandboxes, each of which decodes one file at a time."""

    def __init__(self, config: Any, limits: Limits, count: int) -> None:
        self.idle: queue.SimpleQueue[IsolatedDecoder] = queue.SimpleQueue()
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="polyvit-decode")
        for _ in range(count):
            self.idle.put(IsolatedDecoder(config, limits))

    def prepare(self, data: bytes, tasks: Sequence[str], modality: Modality | None) -> Prepared:
        """As `IsolatedDecoder.prepare`, in the next sandbox that is free."""
        sandbox = self.idle.get()
        try:
            return sandbox.prepare(data, tasks, modality)
        except RuntimeError as error:  # it did not start; the next call tries again
            raise DecoderDied(str(error)) from None
        finally:
            self.idle.put(sandbox)


@serve.deployment(name="model")
class ModelReplica:
    """Decoders and the model; answers for one file at a time and runs the model on batches."""

    def __init__(self, model: str, limits: Limits, decoders: int, batch: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor.load(model_folder(model), device)
        self.decoders = Decoders(self.predictor.config, limits, decoders)
        self.model_thread = ThreadPoolExecutor(1, thread_name_prefix="polyvit-model")
        self.batched.set_max_batch_size(batch)  # type: ignore[attr-defined]

    def description(self) -> dict[str, Any]:
        """What `/healthz` says of the model: its tasks and their modalities."""
        return {"tasks": {name: task.modality for name, task in self.predictor.config.tasks.items()}}

    async def answer(
        self, data: bytes, tasks: Sequence[str], modality: Modality | None, top_k: int
    ) -> tuple[int, dict[str, Any], bool]:
        """Answer for one file. Returns the HTTP status, the document, and whether the file killed its decoder.

        data: the file's bytes. tasks: those to answer for; empty: all of the file's modality. modality: None:
        found out from the bytes. top_k: how many classes of each task.
        """
        loop = asyncio.get_running_loop()
        try:
            task_names = check_tasks(self.predictor.config, tasks)
            prepared = await loop.run_in_executor(
                self.decoders.threads, self.decoders.prepare, data, task_names, modality
            )
        except UserError as error:
            return 400, {"error": error.message}, False
        except BadMedia as error:
            status, reason = refusal_of(error)
            return status, {"error": reason}, isinstance(error, DecoderDied)
        logits = await self.batched(prepared)
        best = {name: self.predictor.best(name, logits_K, top_k) for name, logits_K in logits.items()}
        return 200, {"modality": prepared.modality, "tasks": best}, False

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=BATCH_WAIT_S)
    async def batched(self, prepared: list[Prepared]) -> list[dict[str, Any]]:
        """The logits of each file by task, [K] each; Serve calls it with files that came at about the same
        time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.model_thread, self.predictor.logits, prepared)


# ---------------------------------------------------------------------------------------------- requests


def parse_query(query: Any) -> tuple[list[str], Modality | None, int]:
    """Tasks, modality and top_k of a request's query. Raises Refused (400)."""
    known = ("task", "modality", "top_k")
    if unknown := [key for key in query if key not in known]:
        raise Refused(400, f"unknown parameter {unknown[0]!r}; there are {', '.join(known)}")
    modality = query.get("modality")
    if modality is not None and modality not in MODALITIES:
        raise Refused(400, f"modality={modality}: give one of {', '.join(MODALITIES)}")
    top_k = query.get("top_k", "5")
    if not (top_k.isdecimal() and len(top_k) < 6 and 0 < int(top_k) <= MOST_CLASSES):
        raise Refused(400, f"top_k={top_k[:20]}: give a number from 1 to {MOST_CLASSES}")
    return query.getlist("task"), modality, int(top_k)


async def read_body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are read. Raises Refused (413)."""
    length = request.headers.get("content-length", "")
    refused = Refused(413, f"the body is larger than {most} bytes")
    if length.isdecimal() and int(length) > most:
        raise refused
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise refused
    return bytes(body)


def media_of_body(body: bytes, content_type: str) -> bytes:
    """The file in a body: all of it, or the one file of a multipart form. Raises Refused (400)."""
    if not content_type.lower().startswith("multipart/form-data"):
        return body
    from python_multipart import parse_form
    from python_multipart.exceptions import FormParserError

    files: list[bytes] = []

    def keep(file: Any) -> None:
        file.file_object.seek(0)
        files.append(file.file_object.read())

    headers = {"Content-Type": content_type.encode(), "Content-Length": str(len(body)).encode()}
    try:
        parse_form(headers, io.BytesIO(body), lambda field: None, keep)
    except (FormParserError, ValueError) as error:
        raise Refused(400, f"the form cannot be read: {error}"[:200]) from None
    if len(files) != 1:
        raise Refused(400, f"the form has {len(files)} files; send one")
    return files[0]


# ---------------------------------------------------------------------------------------------- ingress


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("polyvit_requests", "Requests to /predict", ["status"], registry=self.registry)
        self.seconds = Histogram("polyvit_request_seconds", "Time to answer", registry=self.registry)
        self.bytes = Counter("polyvit_request_bytes", "Bytes of files received", registry=self.registry)
        self.under_way = Gauge("polyvit_requests_under_way", "Requests being answered", registry=self.registry)
        self.deaths = Gauge("polyvit_decoder_deaths", "Decoders that a file killed", registry=self.registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


app = FastAPI(title="polyvit", docs_url=None, redoc_url=None, openapi_url=None)


# Serve copies the app at this point: what its methods call must be defined above.
@serve.deployment(name="ingress")
@serve.ingress(app)
class Ingress:
    """HTTP in, HTTP out."""

    def __init__(self, model: Any, limits: ServiceLimits) -> None:
        self.model, self.limits, self.metrics, self.count, self.deaths = model, limits, Metrics(), 0, 0

    @app.get("/healthz")
    async def healthz(self) -> Response:
        """200 where the model replies, so that a file would be answered; else 503."""
        try:
            description = await asyncio.wait_for(self._description(), timeout=10)
        except Exception as error:  # whatever keeps it from answering
            return JSONResponse({"status": "unavailable", "error": repr(error)[:200]}, 503)
        return JSONResponse({"status": "ok", **description, "decoder_deaths": self.deaths})

    async def _description(self) -> dict[str, Any]:
        return await self.model.description.remote()

    @app.get("/metrics")
    async def show_metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/predict")
    async def predict(self, request: Request) -> Response:
        """One file's best classes."""
        began = time.perf_counter()
        self.count += 1
        self.metrics.under_way.set(self.count)
        try:
            status, document = await self._predict(request)
        except Refused as refused:
            status, document = refused.status, {"error": refused.reason}
        except Exception as error:
            status, document = 500, {"error": f"{type(error).__name__}; see the service's log"}
            raise
        finally:
            self.count -= 1
            self.metrics.under_way.set(self.count)
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - began)
        return JSONResponse(document, status)

    async def _predict(self, request: Request) -> tuple[int, dict[str, Any]]:
        if self.count > self.limits.requests:
            raise Refused(503, "too many requests are under way; try again")
        tasks, modality, top_k = parse_query(request.query_params)
        body = await read_body(request, self.limits.bytes)
        data = media_of_body(body, request.headers.get("content-type", ""))
        self.metrics.bytes.inc(len(data))
        if not data:
            raise Refused(400, "there is no file: send it as the body, or as the file of a multipart form")
        status, document, died = await self.model.answer.remote(data, tasks, modality, top_k)
        self.deaths += died
        self.metrics.deaths.set(self.deaths)
        return status, document
