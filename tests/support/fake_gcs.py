"""Google Cloud Storage on localhost: as much of its JSON API as gcsfs, TensorStore and
google-cloud-storage ask of it.

Objects live in memory; each is written whole or not at all, under a generation that conditions can
ask for, and there are no folders and no renames: what a checkpoint has to be safe on. `history` is
every change in order, so a test can look at the bucket as a kill between any two of them would have
left it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeGCS:
    """A server with one bucket, `gs://bucket`; `with` it, and give its `environment` to whoever is
    to use it.
    """

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}  # name -> content, generation
        self.history: list[tuple[str, bytes | None]] = []  # name, new content; None: deleted
        # Resumable ones that were begun: name, conditions.
        self.uploads: list[tuple[str, dict]] = []
        self.lock = threading.RLock()
        # Called before a change; a PermissionError is answered with 403
        self.before = lambda name: None
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # gcsfs hangs up on the slower of two questions
        url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs, google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": url,
            # Gcsfs and TensorStore would look for a machine of Google's
            "FSSPEC_GCS_TOKEN": "anon",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            # It would ask for the bucket's layout over gRPC
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def __enter__(self) -> FakeGCS:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def change(self, name: str, content: bytes | None) -> None:
        """Write an object, or delete it."""
        with self.lock:
            self.history.append((name, content))
            self.objects.pop(name, None)
            if content is not None:
                self.objects[name] = content, len(self.history)

    def replay(self, changes: list[tuple[str, bytes | None]]) -> None:
        """The bucket as these changes leave it."""
        with self.lock:
            self.objects.clear()
            for name, content in changes:
                self.change(name, content)

    def resource(self, name: str) -> dict:
        content, generation = self.objects[name]
        fixed = {
            "kind": "storage#object",
            "bucket": "bucket",
            "metageneration": "1",
            "id": f"bucket/{name}",
        }
        fixed |= dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00.000Z")
        fixed |= {"md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode()}
        return fixed | {"name": name, "size": str(len(content)), "generation": str(generation)}


class _Handler(BaseHTTPRequestHandler):
    store: FakeGCS
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet: in two, each costs 40 ms

    def log_message(self, *_) -> None:
        pass

    def reply(self, status: int, body: dict | bytes = b"", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def error(self, status: int, message: str) -> None:
        self.reply(
            status,
            {"error": {"code": status, "message": message, "errors": [{"message": message}]}},
        )

    def answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        to = r"(?:/moveTo/o/(.+))?/?"
        path = re.fullmatch(
            r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/(o)(?:/([^/]+))?)?" + to, url.path
        )
        with self.store.lock:
            if path is None or path[1] != "bucket":
                self.error(404, f"Not Found: {url.path}")
            elif path[2] is None:
                self.error(
                    403, "no storage.buckets.get access: the role Storage Object User has none"
                )
            else:
                name, target = (
                    urllib.parse.unquote(part) if part else None for part in path.group(3, 4)
                )
                try:
                    self.on_objects(name, target, query, body)
                except PermissionError as refusal:
                    self.error(403, str(refusal))

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def upload(self, kind: str, query: dict, body: bytes) -> None:
        if kind == "resumable" and "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            self.store.uploads.append((name, query))
            number = len(self.store.uploads) - 1
            path = "upload/storage/v1/b/bucket/o?uploadType=resumable"
            self.reply(200, Location=f"http://{self.headers['Host']}/{path}&upload_id={number}")
            return
        name = query.get("name")
        if kind == "resumable":
            name, query = self.store.uploads[int(query["upload_id"])]
            pieces = re.fullmatch(r"bytes (0-\d+|\*)/\d+", self.headers["Content-Range"])
            assert pieces, "the fake takes resumable uploads in one piece only"
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
            mark = f"--{boundary}".encode()
            line = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"
            about, body = (
                part.split(2 * line, 1)[1].removesuffix(line) for part in body.split(mark)[1:3]
            )
            name = json.loads(about)["name"]
        self.write(name, body, query)

    def on_objects(self, name: str | None, target: str | None, query: dict, body: bytes) -> None:
        if kind := query.get("uploadType"):
            self.upload(kind, query, body)
        elif name is None:
            self.list(query.get("prefix", ""), query.get("delimiter"), query)
        elif name not in self.store.objects:
            self.error(404, f"No such object: bucket/{name}")
        elif target:
            self.write(target, self.store.objects[name][0], {})
            self.store.change(name, None)
        elif not self.fits(name, query):
            self.error(304 if "ifGenerationNotMatch" in query else 412, "conditionNotMet")
        elif self.command == "DELETE":
            self.store.before(name)
            self.store.change(name, None)
            self.reply(204)
        elif query.get("alt") == "media":
            self.media(*self.store.objects[name])
        else:
            self.reply(200, self.store.resource(name))

    def fits(self, name: str, query: dict) -> bool:
        now = str(self.store.objects[name][1] if name in self.store.objects else 0)
        return (
            query.get("ifGenerationMatch", now) == now and query.get("ifGenerationNotMatch") != now
        )

    def write(self, name: str, content: bytes, query: dict) -> None:
        if not self.fits(name, query):
            return self.error(412, "conditionNotMet")
        self.store.before(name)
        self.store.change(name, content)
        return self.reply(200, self.store.resource(name))

    def media(self, content: bytes, generation: int) -> None:
        marks = {"x_goog_generation": str(generation), "x_goog_metageneration": "1"}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return self.reply(200, content, Content_Type="application/octet-stream", **marks)
        first = int(found[1]) if found[1] else len(content) - int(found[2])
        end = min(int(found[2]) + 1 if found[1] and found[2] else len(content), len(content))
        if first >= len(content):
            return self.error(416, "Request range not satisfiable")
        return self.reply(
            206,
            content[first:end],
            Content_Range=f"bytes {first}-{end - 1}/{len(content)}",
            **marks,
        )

    def list(self, prefix: str, delimiter: str | None, query: dict) -> None:
        items = []
        prefixes = set()
        for name in self.store.names(prefix):
            if query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                inner, cut, _ = (
                    name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                )
                prefixes |= {prefix + inner + cut} if cut else set()
                items += [] if cut else [self.store.resource(name)]
        self.reply(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})
