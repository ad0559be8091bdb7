"""A server on this machine that speaks as the Hugging Face Hub does, as far as pushing and pulling a model needs it.

One class, one repository of each name, commits as {path: bytes}. Files that end in .pt or .h5ad go through the large
file storage (LFS, "basic" transfer), all others through the commit itself, as the real hub decides.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".pt", ".h5ad")


class LocalHub:
    """The repositories, and what was asked.

    token      the only one that may write
    requests   (method, path) of each request
    uploaded   bytes of each large file that was sent, by its SHA-256
    cut_after  bytes after which the next download breaks off; None: never
    """

    def __init__(self, token: str = "secret") -> None:
        self.token, self.requests = token, list[tuple[str, str]]()
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.uploaded: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.endpoint = ""

    def make(self, name: str, files: dict[str, bytes] | None = None) -> None:
        """Make a repository."""
        self.commits[name] = [files or {".gitattributes": b"*.pt filter=lfs\n"}]

    def files(self, name: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[name][-1]

    def count(self, method: str, part: str) -> int:
        """How many requests of a method had a path with this part."""
        return sum(asked == method and part in path for asked, path in self.requests)


@contextmanager
def serving(hub: LocalHub) -> Iterator[str]:
    """Serve a hub on a free port; yields its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_id(name: str, number: int) -> str:
    """40 hexadecimal digits, as git names a commit."""
    return hashlib.sha1(f"{name}/{number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        content = self._read()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        routes = [
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "GET", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", "GET", self._tree),
            (r"/api/repos/create", "POST", self._create),
            (r"/api/validate-yaml", "POST", lambda body: self._json({"errors": [], "warnings": []})),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "POST", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "POST", self._batch),
            (r"/lfs/([0-9a-f]{64})", "PUT", self._store),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", "POST", self._commit),
            (r"/api/collections/(.+)/items", "POST", self._collect),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "GET", self._file),
        ]
        for pattern, method, answer in routes:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                answer(content, *match.groups())
                return
        self._json({"error": f"no such address: {path}"}, 404)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.cut_after if len(content) > 1000 and headers.get("ETag") else None
            self.wfile.write(content[:cut])
            if cut is not None and cut < len(content):
                self.hub.cut_after = None
                self.close_connection = True

    def _is_writer(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {self.hub.token}":
            return True
        self._json({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials in Authorization header")
        return False

    def _find(self, name: str, revision: str | None) -> tuple[int, dict[str, bytes]] | None:
        """The number and the files of a commit; None, after the answer, if there is none."""
        known = name in self.hub.commits
        if known and name in self.hub.private:
            known = self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if not known:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        commits = self.hub.commits[name]
        for number, files in enumerate(commits):
            is_head = number == len(commits) - 1 and revision in (None, "main")
            if is_head or revision == commit_id(name, number):
                return number, files
        self._json({"error": f"Invalid rev id: {revision}"}, 404, X_Error_Code="RevisionNotFound")
        return None

    def _info(self, body: bytes, name: str, revision: str | None) -> None:
        if (found := self._find(name, revision)) is None:
            return
        siblings = []
        for path, content in found[1].items():
            siblings.append({"rfilename": path, "size": len(content), "blobId": _git_id(content)})
            if path.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                siblings[-1]["lfs"] = {"size": len(content), "sha256": oid, "pointerSize": 130}
        self._json({"id": name, "modelId": name, "sha": commit_id(name, found[0]), "siblings": siblings})

    def _tree(self, body: bytes, name: str, revision: str) -> None:
        if (found := self._find(name, revision)) is not None:
            entries = found[1].items()
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _git_id(c)} for p, c in entries])

    def _create(self, body: bytes) -> None:
        if not self._is_writer():
            return
        wanted = json.loads(body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        self.hub.make(name)
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(name)
        self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _collect(self, body: bytes, slug: str) -> None:
        empty = {"title": slug, "owner": {"name": "me"}, "items": [], "position": 0, "private": False, "theme": "blue"}
        self._json({"slug": slug, "lastUpdated": "2026-01-31T12:00:00.000Z", "upvotes": 0, **empty})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        if not self._is_writer() or (found := self._find(name, revision)) is None:
            return
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            there = found[1].get(path)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if mode == "lfs" else _git_id(there)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _batch(self, body: bytes, name: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self.hub.uploaded:
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        self.hub.uploaded[oid] = body
        self._json({}, 200 if hashlib.sha256(body).hexdigest() == oid else 400)

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        if not self._is_writer() or (found := self._find(name, revision)) is None:
            return
        files = dict(found[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", commit_id(name, found[0])) != commit_id(
                name, found[0]
            ):
                self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits[name].append(files)
        oid = commit_id(name, len(self.hub.commits[name]) - 1)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})

    def _file(self, body: bytes, name: str, revision: str, path: str) -> None:
        if (found := self._find(name, revision)) is None:
            return
        if path not in found[1]:
            self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return
        content = found[1][path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_id(content)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit_id(name, found[0]), "Accept_Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(content, 200, headers)
            return
        start, stop = int(match[1]), int(match[2]) + 1 if match[2] else len(content)
        self._send(content[start:stop], 206, {**headers, "Content_Range": f"bytes {start}-{stop - 1}/{len(content)}"})


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
