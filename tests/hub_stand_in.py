"""A small server that answers as the Hugging Face hub does to what `captioner` asks: create, commit, list, fetch."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory: name -> {file: bytes}. `token` is the only one it takes for writing."""

    def __init__(self, token: str = "hf_secret") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.token, self.calls = token, []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str) -> str:
        digest = hashlib.sha1()
        for file, data in sorted(self.repositories[name].items()):
            digest.update(f"{file} {hashlib.sha1(data).hexdigest()}".encode())
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = wanted.get("private") or wanted.get("visibility") == "private"
            return self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        pattern = r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main"
        name, action = re.fullmatch(pattern, self.path.split("?")[0]).groups()
        if action == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files, "commitOid": None})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.repositories[name][entry["value"]["path"]] = content
        oid = self.server.commit(name)
        self.answer(200, {"commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}", "success": True})

    def do_GET(self) -> None:
        self.server.calls.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            name = listed[1]
            if name not in self.server.repositories:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            files = [{"rfilename": file} for file in sorted(self.server.repositories[name])]
            return self.answer(200, {"id": name, "sha": self.server.commit(name), "siblings": files, "private": True})
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.server.repositories[tree[1]]
            entries = [{"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                       for f, d in sorted(files.items())]  # fmt: skip
            return self.answer(200, entries)
        name, commit, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
        data = self.server.repositories[name][file]
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.answer(200, data, ETag=tag, X_Repo_Commit=self.server.commit(name), Accept_Ranges="bytes")

    do_HEAD = do_GET
