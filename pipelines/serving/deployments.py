"""The HTTP service's two Ray Serve deployments: `Ingress` speaks HTTP, `ModelReplica` decodes and runs the model.

    POST /predict[?task=NAME&top_k=5&modality=video]   the file as body, or as the one file of a multipart form
    GET /, /docs    a page for a browser; /openapi.json for tools
    GET /livez      200 while the service runs
    GET /readyz     200 while the model answers; 503 where it does not, and once the service is told to end
    GET /healthz    as /readyz, with the model's tasks
    GET /metrics    Prometheus text

`Ingress` reads no more of a body than a file may have, gives up on one that trickles (`http_requests.py`), and
refuses when too many requests are under way; a request counts as such when its body is there. `ModelReplica`
decodes each file in a process of its own (`isolated_predict.py`), so that no file takes the service down, and
answers in batches. What a client did wrong is a 4xx with {"error": reason}.
"""

import asyncio
import contextlib
import logging
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve
from ray.exceptions import RayActorError

from pipelines.serving.front_page import OPENAPI, front_page
from pipelines.serving.http_requests import Refused, media_of_body, parse_query, read_body, refusal_of
from pipelines.tracking import model_folder
from polyvit import __version__
from polyvit.config import Modality
from polyvit.deploy import DecoderDied, IsolatedDecoder, Limits, Predictor, Prepared, check_tasks
from polyvit.errors import BadMedia, UserError

BATCH_WAIT_S = 0.01
"""How long the first file of a batch waits for others."""
SEEN_S = 30.0
"""A model that has answered within this time is ready, also where it is too busy to say so."""
logger = logging.getLogger(__name__)

FILE_LIMITS = Limits(pixels=2**25, seconds=600.0, decode_seconds=20.0, memory=2 * 2**30)


@dataclass(frozen=True)
class ServiceLimits:
    """What one request, and all of them together, may ask for.

    bytes: of a body. requests: answered at a time; four times as many may be sending their bodies.
    file: of a file. replaced_s: how long a request whose replica died waits for another one.
    """

    bytes: int = 64 * 2**20
    requests: int = 64
    file: Limits = FILE_LIMITS
    replaced_s: float = 60.0


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


# Its own /docs would load scripts from another host.
app = FastAPI(title="polyvit", version=__version__, docs_url=None, redoc_url=None)


# Serve copies the app at this point: what its methods call must be defined above.
@serve.deployment(name="ingress")
@serve.ingress(app)
class Ingress:
    """HTTP in, HTTP out."""

    def __init__(self, model: Any, limits: ServiceLimits) -> None:
        self.model, self.limits, self.metrics, self.deaths = model, limits, Metrics(), 0
        self.count, self.answering = 0, 0
        self.seen = -SEEN_S
        self.description: dict[str, Any] = {}
        self.ending = False

    @app.get("/", include_in_schema=False)
    async def index(self, request: Request) -> Response:
        """A page for whoever comes with a browser; 200 also where the model does not reply."""
        if not self.description:
            with contextlib.suppress(Exception):  # whatever keeps it from answering, /healthz says
                self.description = await asyncio.wait_for(self._ask_description(), timeout=10)
        address = str(request.base_url)
        return HTMLResponse(front_page(self.description.get("tasks", {}), address, self.limits.bytes))

    @app.get("/docs", include_in_schema=False)
    async def docs(self, request: Request) -> Response:
        """As `/`."""
        return await self.index(request)

    @app.get("/livez")
    async def livez(self) -> Response:
        """200: this process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz(self) -> Response:
        """As `/healthz`, for load balancers."""
        return await self.healthz()

    @app.get("/healthz")
    async def healthz(self) -> Response:
        """200 where the model replies or has just replied, so that a file would be answered; else 503."""
        if self.ending:
            return JSONResponse({"status": "ending"}, 503)
        if not self.description or time.monotonic() - self.seen > SEEN_S:
            try:
                self.description = await asyncio.wait_for(self._ask_description(), timeout=10)
            except Exception as error:  # whatever keeps it from answering
                return JSONResponse({"status": "unavailable", "error": repr(error)[:200]}, 503)
            self.seen = time.monotonic()
        return JSONResponse({"status": "ok", **self.description, "decoder_deaths": self.deaths})

    async def _ask_description(self) -> dict[str, Any]:
        return await self.model.description.remote()

    async def drain(self, seconds: float) -> int:
        """Take no new requests; wait until those under way are answered. Returns how many are not in `seconds`."""
        self.ending = True
        until = time.monotonic() + seconds
        while self.count and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the last answers are still on their way out
        return self.count

    @app.get("/metrics")
    async def show_metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/predict", openapi_extra=OPENAPI)
    async def predict(self, request: Request) -> Response:
        """One file's best classes."""
        began = time.perf_counter()
        if self.ending:
            return JSONResponse({"error": "the service is ending; ask another"}, 503)
        self.count += 1
        self.metrics.under_way.set(self.count)
        try:
            status, document = await self._predict(request)
        except Refused as refused:
            status, document = refused.status, {"error": refused.reason}
        except Exception as error:
            logger.exception("a request failed")
            status, document = 500, {"error": f"{type(error).__name__}; see the service's log"}
        finally:
            self.count -= 1
            self.metrics.under_way.set(self.count)
        self.metrics.requests.labels(status).inc()
        self.metrics.seconds.observe(time.perf_counter() - began)
        return JSONResponse(document, status, {"Retry-After": "1"} if status == 503 else None)

    async def _predict(self, request: Request) -> tuple[int, dict[str, Any]]:
        tasks, modality, top_k = parse_query(request.query_params)
        if self.count > 4 * self.limits.requests:
            raise Refused(503, "too many requests are sending their bodies; try again")
        body = await read_body(request, self.limits.bytes)
        if self.answering >= self.limits.requests:
            raise Refused(503, "too many requests are under way; try again")
        self.answering += 1
        try:
            data = await asyncio.to_thread(media_of_body, body, request.headers.get("content-type", ""))
            self.metrics.bytes.inc(len(data))
            if not data:
                raise Refused(400, "there is no file: send it as the body, or as the file of a multipart form")
            status, document, died = await self._answer(data, tasks, modality, top_k)
        finally:
            self.answering -= 1
        self.deaths += died
        self.metrics.deaths.set(self.deaths)
        return status, document

    async def _answer(self, *asked: Any) -> tuple[int, dict[str, Any], bool]:
        """The model's answer; where its replica died, that of another one. Raises Refused (503)."""
        try:
            answer = await self.model.answer.remote(*asked)
        except RayActorError:
            logger.warning("a replica of the model died; its request goes to another one")
            self.seen = -SEEN_S
            try:
                answer = await asyncio.wait_for(self._ask_again(*asked), self.limits.replaced_s)
            except (RayActorError, TimeoutError):
                raise Refused(
                    503, "the process with the model died, and no other has answered; try again"
                ) from None
        self.seen = time.monotonic()
        return answer

    async def _ask_again(self, *asked: Any) -> tuple[int, dict[str, Any], bool]:
        return await self.model.answer.remote(*asked)
