"""An object store on this machine: the part of S3's protocol that pyarrow speaks, in memory.

The client is pyarrow's own S3 client, so what it asks of a store, and how often, is what it would ask of
a real one.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
"""Keys in one answer to a listing, as S3 has it."""


@dataclass
class ObjectStore:
    """What the store holds, by key, and what it was asked."""

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    uri: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in one packet
    disable_nagle_algorithm = True
    store: ObjectStore

    def log_message(self, format: str, *args: object) -> None:
        del format, args  # a test has nothing to read there

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def _answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _split(self) -> tuple[str, dict[str, str]]:
        """Key ("bucket/name") and query of the request; counts it."""
        url = urlsplit(self.path)
        query = {
            name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        key = unquote(url.path).strip("/") if not url.path.endswith("/") else unquote(url.path)[1:]
        kind = "LIST" if "list-type" in query else self.command
        self.store.requests[kind] += 1
        return key, query

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return self._chunks()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            return _unchunked(body)
        return body

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return (
            _unchunked(data) if "aws-chunked" in self.headers.get("Content-Encoding", "") else data
        )

    def do_HEAD(self) -> None:
        key, _ = self._split()
        if "/" not in key:
            self._answer(200)
        elif key in self.store.objects:
            self._answer(200, **_headers(self.store.objects[key]))
        else:
            self._answer(404)

    def do_GET(self) -> None:
        key, query = self._split()
        if "list-type" in query:
            self._list(key, query)
        elif key not in self.store.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            data = self.store.objects[key]
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = data[int(span[1]) : int(span[2]) + 1] if span else data
            self._answer(206 if span else 200, part, **_headers(data, len(part)))

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        start = query.get("continuation-token", "")
        prefix = f"{bucket}/{query.get('prefix', '')}"
        limit = min(PAGE, int(query.get("max-keys", PAGE)))
        keys = sorted(
            key for key in list(self.store.objects) if key.startswith(prefix) and key > start
        )
        page, more = keys[:limit], len(keys) > limit
        entries = "".join(
            f"<Contents><Key>{escape(key[len(bucket) + 1 :])}</Key><Size>{len(self.store.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}"
            f"</KeyCount>{token}{entries}</ListBucketResult>".encode(),
        )

    def do_PUT(self) -> None:
        key, query = self._split()
        body = self._body()
        if "uploadId" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif "/" in key:
            self.store.objects[key] = body
        self._answer(200, ETag=_etag(body))

    def do_POST(self) -> None:
        key, query = self._split()
        body = self._body()
        if "uploads" in query:
            upload = str(len(self.store.uploads))
            self.store.uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self.store.uploads[query["uploadId"]]
            self.store.objects[key] = b"".join(parts[number] for number in sorted(parts))
            text = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        else:
            for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.store.objects.pop(f"{key}/{name}", None)
            text = "<DeleteResult></DeleteResult>"
        self._answer(200, text.encode())

    def do_DELETE(self) -> None:
        key, _ = self._split()
        self.store.objects.pop(key, None)
        self._answer(204)


def _headers(data: bytes, length: int | None = None) -> dict[str, str]:
    return {
        "Content_Length": str(len(data) if length is None else length),
        "ETag": _etag(data),
        "Last_Modified": formatdate(usegmt=True),
        "Content_Type": "application/octet-stream",
    }


def _etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'


def _unchunked(body: bytes) -> bytes:
    """The data of an `aws-chunked` body."""
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if not count:
            break
        data += body[:count]
        body = body[count + 2 :]
    return data


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running store; `store.uri` opens its bucket with pyarrow."""
    store = ObjectStore()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    store.uri = f"s3://key:secret@bucket/studies/one?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
