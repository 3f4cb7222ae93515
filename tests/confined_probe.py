"""A decoding process that a file has taken over: it tries what such a process would, and says what came of it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyvit.data.isolation import confine, receive, run_child, send


def attempts(secret: Path, own: Path) -> dict[str, Callable[[], Any]]:
    """What is tried, by name. secret: a file of somebody else's. own: one that it has to read."""
    return {
        "environment": lambda: dict(os.environ),
        "own file": own.read_text,
        "code": lambda: Path(os.__file__).read_text()[:0],
        "secret": secret.read_text,
        "parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes().hex(),
        "write": lambda: (own.parent / "new").write_bytes(b""),
        "delete": own.unlink,
        "chmod": lambda: own.chmod(0o777),
        "socket": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "signal": lambda: os.kill(os.getppid(), signal.SIGCONT),
        "trace": lambda: ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) == 0 or denied(),
        "mount": lambda: ctypes.CDLL(None, use_errno=True).unshare(0x20000) == 0 or denied(),
        "user": lambda: os.setuid(1234),
    }


def denied() -> None:
    """Raise the error of the last call of the C library."""
    raise OSError(ctypes.get_errno(), "denied")


def tried(attempt: Callable[[], Any]) -> Any:
    try:
        return attempt() or "done"
    except OSError as error:
        return f"errno {error.errno}"


def serve(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as connection:
        hello, _ = receive(connection)
        send(connection, {"ready": True, "confined": confine(None)})
        while True:
            receive(connection)
            paths = Path(hello["secret"]), Path(hello["own"])
            send(connection, {name: tried(attempt) for name, attempt in attempts(*paths).items()})


if __name__ == "__main__":
    run_child(serve)
