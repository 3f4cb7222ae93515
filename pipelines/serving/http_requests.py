"""What comes in over HTTP: a request's parameters, its body in bounded time, and the one file of a form.

In: a request. Out: tasks, modality, top_k and the file's bytes, or `Refused` with an HTTP status and a reason.
"""

import asyncio
import io
import time
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from polyvit.config import MODALITIES, Modality
from polyvit.data.decode import UNKNOWN
from polyvit.deploy import OverLimit
from polyvit.errors import BadMedia

MOST_CLASSES = 1000
MOST_PARTS = 64
"""Parts of a multipart form; one of them is the file."""
READ_S, READ_RATE = 10.0, 2**16
"""A body may be late by READ_S seconds, and has to come with READ_RATE bytes a second from then on."""


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
    """The body, of which no more than `most` bytes are read.

    Raises Refused: 413 for a larger one, 408 for one that comes too slowly.
    """
    length = request.headers.get("content-length", "")
    refused = Refused(413, f"the body is larger than {most} bytes")
    if length.isdecimal() and int(length) > most:
        raise refused
    body, began = bytearray(), time.monotonic()
    chunks = request.stream().__aiter__()
    while True:
        deadline = began + READ_S + len(body) / READ_RATE
        try:
            body += await asyncio.wait_for(anext(chunks), max(0.0, deadline - time.monotonic()))
        except StopAsyncIteration:
            return bytes(body)
        except TimeoutError:
            raise Refused(
                408, f"{len(body)} bytes in {time.monotonic() - began:.0f} s: the body comes too slowly; send "
                f"{READ_RATE // 1024} KiB a second"
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise Refused(400, "the connection was closed before the body had come") from None
        if len(body) > most:
            raise refused


def media_of_body(body: bytes, content_type: str) -> bytes:
    """The file in a body: all of it, or the one file of a multipart form. Raises Refused (400)."""
    if not content_type.lower().startswith("multipart/form-data"):
        return body
    from python_multipart import parse_form
    from python_multipart.exceptions import FormParserError

    files: list[bytes] = []
    parts = 0

    def count(field: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_PARTS:
            raise Refused(400, f"the form has more than {MOST_PARTS} parts; send the file alone")

    def keep(file: Any) -> None:
        count(file)
        file.file_object.seek(0)
        files.append(file.file_object.read())

    headers = {"Content-Type": content_type.encode(), "Content-Length": str(len(body)).encode()}
    try:
        parse_form(headers, io.BytesIO(body), count, keep)
    except (FormParserError, ValueError) as error:
        raise Refused(400, f"the form cannot be read: {error}"[:200]) from None
    if len(files) != 1:
        raise Refused(400, f"the form has {len(files)} files; send one")
    return files[0]
