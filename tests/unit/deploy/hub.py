"""A server that speaks as much of the hub's API as an upload and a download need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit


@contextmanager
def running_hub() -> Iterator[SimpleNamespace]:
    """Run a hub; ``address``, and ``repos``: files by commit, branches, and whether private."""
    repos: dict[str, dict[str, Any]] = {}
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: Any, *, code: int = 200, **headers: str) -> None:  # noqa: ANN401
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, kind: str) -> None:
            self.answer({"error": kind}, code=404, **{"X-Error-Code": kind})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            tokens.append(self.headers.get("Authorization"))
            if tokens[-1] is None:
                return self.answer({"error": "Invalid username or password."}, code=401)
            if path == "/api/repos/create":
                said = json.loads(body)
                name = f"{said['organization']}/{said['name']}"
                hidden = said.get("private") or said.get("visibility") == "private"
                repos.setdefault(name, {"branches": {"main": ""}, "commits": {}, "private": hidden})
                return self.answer({"url": f"/{name}", "id": "1"})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            found = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(\w+)/(.+)", path)
            assert found is not None, path
            repo, (what, branch) = repos[found[1]], (found[2], found[3])
            if what == "branch":
                repo["branches"].setdefault(branch, repo["branches"]["main"])
                return self.answer({})
            if what == "preupload":
                files = [each["path"] for each in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": path, **modes} for path in files]})
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(repo["commits"].get(repo["branches"][branch], {}))
            for line in lines[1:]:
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = hashlib.sha1(body).hexdigest()
            repo["commits"][commit], repo["branches"][branch] = files, commit
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{commit}"
            return self.answer({"commitUrl": url, "commitOid": commit})

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(revision|tree)/(.+)", path)
            file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path)
            name, asked = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
            if name not in repos:
                return self.missing("RepoNotFound")
            commit = repos[name]["branches"].get(asked, asked)
            if commit not in repos[name]["commits"]:
                return self.missing("RevisionNotFound")
            files = repos[name]["commits"][commit]
            if file is not None:
                tag = hashlib.sha1(files[file[3]]).hexdigest()
                return self.answer(files[file[3]], ETag=f'"{tag}"', **{"X-Repo-Commit": commit})
            assert api is not None
            if api[2] == "revision":
                listed = [{"rfilename": each} for each in files]
                return self.answer({"id": name, "sha": commit, "siblings": listed, "tags": []})
            return self.answer(
                [
                    {
                        "type": "file",
                        "path": each,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for each, content in files.items()
                ]
            )

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        yield SimpleNamespace(address=address, repos=repos, tokens=tokens)
    finally:
        server.shutdown()
        server.server_close()
