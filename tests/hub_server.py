"""Hub on loopback: the requests that huggingface_hub makes to read and to write models."""

import base64
import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITTED = ".json", ".md"


class Hub:
    """Repositories in memory.

    Attributes:
        commits: repository -> commits in order, each (identifier, content by path).
        stored: objects of LFS by their SHA-256.
        requests: (method, path) of every request.
        status: if not None, every request is answered with it.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.status: int | None = None
        self.endpoint = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files and no others; return its identifier."""
        commits = self.commits.setdefault(repository, [])
        name = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits.append((name, files))
        return name

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[repository]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict, bytes]:
        """Return status, headers and content."""
        self.requests.append((method, path))
        if self.status is not None:
            return self.status, {}, b""
        parts = urllib.parse.unquote(path.partition("?")[0]).strip("/").split("/")
        match parts:
            case ["api", "repos", "create"]:
                values = json.loads(body)
                repository = f"{values['organization']}/{values['name']}"
                self.commits.setdefault(repository, [])
                return _json({"url": f"{self.endpoint}/{repository}"})
            case ["api", "validate-yaml"]:
                return _json({"errors": [], "warnings": []})
            case ["lfs", digest] if method == "PUT":
                assert hashlib.sha256(body).hexdigest() == digest
                self.stored[digest] = body
                return 200, {}, b""
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return _json(
                    {"objects": [self._upload(each) for each in json.loads(body)["objects"]]}
                )
            case ["api", "models", owner, name, *rest]:
                return self._of_repository(f"{owner}/{name}", rest, body)
            case [owner, name, "resolve", revision, *file]:
                found = self.find(f"{owner}/{name}", revision)
                return _file(*found, "/".join(file))
        return 404, {}, b""

    def _of_repository(self, repository: str, rest: list[str], body: bytes):
        if repository not in self.commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        action, revision = rest if rest else ("revision", "main")
        found = self.find(repository, revision)
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        name, files = found
        if action == "revision":
            return _json({"id": repository, "sha": name, "siblings": []})
        if action == "tree":
            return _json([_entry(path, content) for path, content in sorted(files.items())])
        if action == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            return _json({"files": [
                {"path": path, "shouldIgnore": False,
                 "uploadMode": "regular" if path.endswith(COMMITTED) else "lfs"}
                for path in paths
            ]})  # fmt: skip
        assert action == "commit"
        changed = dict(files)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changed[value["path"]] = self.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del changed[value["path"]]
        name = self.commit(repository, changed)
        return _json(
            {"commitUrl": f"{self.endpoint}/{repository}/commit/{name}", "commitOid": name}
        )

    def _upload(self, wanted: dict) -> dict:
        action = {"upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}"}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": action}


def _json(content) -> tuple[int, dict, bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if not path.endswith(COMMITTED):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"size": len(content), "oid": digest, "pointerSize": 130}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _file(name: str, files: dict[str, bytes], path: str) -> tuple[int, dict, bytes]:
    if path not in files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    content = files[path]
    digest = _blob(content) if path.endswith(COMMITTED) else hashlib.sha256(content).hexdigest()
    return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": name}, content


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, *_) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
