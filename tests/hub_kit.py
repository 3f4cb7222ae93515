"""A small stand-in for Hugging Face's hub: what huggingface_hub asks of it to push a folder and to fetch it again.

Repositories are {branch: {file: content}} in memory. Large files come by the LFS protocol, as the hub takes them
from clients without Xet.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
READ_ONLY = "hf_reads"


class Hub(ThreadingHTTPServer):
    """The server and all that it holds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.large: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(
        self, status: int, document: Any = None, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        content = body if document is None else json.dumps(document).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif token not in (TOKEN, READ_ONLY):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif token == READ_ONLY:
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            _, _, _, owner, name, what, revision = path.split("/", 6)
            getattr(self, f"_{what}")(f"{owner}/{name}", unquote(revision), body)

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.server.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.server.address}/{repo}"})
        self.server.repositories[repo] = {"main": {}}
        self.server.private[repo] = asked.get("visibility") == "private"
        return self._answer(200, {"url": f"{self.server.address}/{repo}"})

    def _branch(self, repo: str, branch: str, _: bytes) -> None:
        branches = self.server.repositories[repo]
        self._answer(409 if branch in branches else 200, {})
        branches.setdefault(branch, dict(branches["main"]))

    def _preupload(self, repo: str, revision: str, body: bytes) -> None:
        files = json.loads(body)["files"]
        modes = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith("safetensors") else "regular",
             "shouldIgnore": False}
            for each in files
        ]  # fmt: skip
        self._answer(200, {"files": modes})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {"oid": each["oid"], "size": each["size"],
             "actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}"}}}
            for each in asked["objects"]
        ]  # fmt: skip
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append((repo, revision, value["summary"]))
                continue
            content = (
                self.server.large[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            )
            self.server.repositories[repo][revision][value["path"]] = content
        oid = "c" * 39 + str(len(self.server.commits))
        self._answer(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{oid}", "commitOid": oid})

    def do_PUT(self) -> None:
        body = self._body()
        self.server.large[self.path.rsplit("/", 1)[1]] = body
        assert hashlib.sha256(body).hexdigest() == self.path.rsplit("/", 1)[1]
        self._answer(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        _, *words = path.split("/")
        repo = "/".join(words[2:4] if words[0] == "api" else words[:2])
        branches = self.server.repositories.get(repo)
        allowed = self.headers.get("Authorization") or not self.server.private.get(repo)
        if branches is None or not allowed:
            return self._answer(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        revision = unquote(words[5] if words[0] == "api" else words[3])
        branch = next((name for name in branches if revision in (name, _oid(name))), None)
        if branch is None:
            return self._answer(
                404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"}
            )
        if words[0] == "api" and words[4] == "revision":
            return self._answer(200, {"id": repo, "sha": _oid(branch), "siblings": []})
        if words[0] == "api":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in branches[branch].items()
            ]
            return self._answer(200, tree)
        content = branches[branch][unquote("/".join(words[4:]))]
        headers = {"X-Repo-Commit": _oid(branch), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._answer(200, None, {**headers, "Content-Length": str(len(content))}, content)


def _oid(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
