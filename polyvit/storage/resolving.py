"""Whether the host of a bucket is known at all, asked once before a run begins.

The stores' own clients try for a minute and a half, for every task; a name that cannot be resolved is mostly a
mistake in the address. In the middle of a run nothing is asked here: there a failing name server passes.
"""

import math
import os
import socket
import threading
import time
from urllib.parse import parse_qsl, urlsplit

PATIENCE_S, TRIES, REMEMBERED_S = 4.0, 2, 30.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def host_of(address: str) -> str:
    """The host that answers for a URL; '' where it is not known here, or a proxy resolves it."""
    parts = urlsplit(address)
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return ""
    query = dict(parse_qsl(parts.query))
    endpoint = query.get("endpoint_override", "")
    if parts.scheme == "s3":
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
        aws = f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com"
        endpoint = endpoint or (f"{aws}.cn" if region.startswith("cn-") else aws)
    elif parts.scheme in ("gs", "gcs"):
        endpoint = endpoint or os.environ.get("STORAGE_EMULATOR_HOST") or "storage.googleapis.com"
    elif parts.scheme in ("http", "https", "hdfs"):
        endpoint = parts.netloc
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or ""


def unresolved(host: str) -> str:
    """Why a host's name cannot be resolved; '' where it can, or where nothing is known within some seconds."""
    reason: list[str] = []

    def ask() -> None:
        for attempt in range(TRIES):
            try:
                socket.getaddrinfo(host, None)
            except OSError as error:
                reason.append(error.strerror or str(error))
                if attempt < TRIES - 1:
                    time.sleep(1)
            else:
                reason.clear()
                return

    asking = threading.Thread(target=ask, name="polyvit-resolve", daemon=True)  # a resolver may hang
    asking.start()
    asking.join(PATIENCE_S * TRIES)
    return reason[-1] if reason else ""


_asked: dict[str, tuple[str, float]] = {}


def unknown_host(location: str | os.PathLike[str]) -> tuple[str, str] | None:
    """(host, why it cannot be resolved) of a URL; None where it can be, and for a folder.

    A host that is known is asked for once, one that is not again after REMEMBERED_S.
    """
    host = host_of(location) if isinstance(location, str) else ""
    if not host:
        return None
    why, when = _asked.get(host, ("unknown", -math.inf))
    if why and time.monotonic() - when > REMEMBERED_S:
        why = unresolved(host)
        _asked[host] = why, time.monotonic()
    return (host, why) if why else None
