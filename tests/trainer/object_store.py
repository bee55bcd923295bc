"""An object store on this machine: the part of S3's protocol that pyarrow speaks.

The client is pyarrow's own S3 client, so what it asks of a store, and how often, is what it would ask of
a real one. It runs in this process, in memory, or in one of its own, with its objects in a folder:

    python -m tests.trainer.object_store FOLDER PORT
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]

PAGE = 1000
"""Keys in one answer to a listing, as S3 has it."""


@dataclass
class ObjectStore:
    """What the store holds, by key, and what it was asked."""

    objects: MutableMapping[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    uri: str = ""
    refusal: Callable[[], str] = lambda: ""
    """Status and code with which changes are refused now ("403 AccessDenied"), with a number those of at least so
    many bytes ("507 Full 1000"); empty if they are not."""

    def told(self, path: str) -> str:
        """The location of a file or folder there as a study has it: without credentials (see CREDENTIALS)."""
        return self.uri.replace("key:secret@", "").replace("?", f"/{path}?")


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

    def _refused(self, body: bytes = b"") -> bool:
        """Whether a change is refused now; the client is told."""
        refusal = self.store.refusal().split()
        if not refusal or len(body) < sum(map(int, refusal[2:])):
            return False
        status, code = refusal[:2]
        error = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(int(status), error.encode(), Content_Type="application/xml")
        return True

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
        if self._refused(body):
            return
        if "uploadId" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif "/" in key:
            self.store.objects[key] = body
        self._answer(200, ETag=_etag(body))

    def do_POST(self) -> None:
        key, query = self._split()
        body = self._body()
        if self._refused(body):
            return
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
        if self._refused():
            return
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


def _server(store: ObjectStore, port: int) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"store": store})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
"""What a study finds in its environment, for locations without credentials."""


def _uri(port: int) -> str:
    options = f"endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
    return f"s3://key:secret@bucket/studies/one?{options}"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running store; `store.uri` opens its bucket with pyarrow."""
    store = ObjectStore()
    server = _server(store, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.uri = _uri(server.server_address[1])
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


class _Files(MutableMapping[str, bytes]):
    """Objects as files of a folder, which outlive the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / quote(key, safe="")

    def __getitem__(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: bytes) -> None:
        partial = self._folder / f".{threading.get_ident()}"
        partial.write_bytes(value)
        partial.replace(self._path(key))

    def __delitem__(self, key: str) -> None:
        self._path(key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (unquote(name) for name in os.listdir(self._folder) if name[0] != ".")

    def __len__(self) -> int:
        return len(list(iter(self)))


class StoreProcess:
    """A store in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "objects").mkdir(parents=True)
        self._port = lasting_port()
        self.uri = _uri(self._port)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        """Variables with which a URI without options (`s3://bucket/…`) means this store."""

        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, with whatever objects it had."""
        command = [sys.executable, "-m", "tests.trainer.object_store", str(self._folder)]
        self._process = subprocess.Popen([*command, str(self._port)], cwd=ROOT)
        deadline = time.monotonic() + 240
        while not self._listens():
            assert time.monotonic() < deadline, "the store does not start"
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def kill(self) -> None:
        """End it, if it runs, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Let it answer nothing any more; who asks waits."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on with what it was asked."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def refuse(self, refusal: str) -> None:
        """Refuse all changes so from now on; with an empty text no more."""
        (self._folder / "refusal").write_text(refusal)


def lasting_port() -> int:
    """A port that nobody gets by asking for any: it stays free while a store does not run."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def main() -> None:
    """Serve the objects in a folder."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    refusal = folder / "refusal"
    store = ObjectStore(
        _Files(folder / "objects"), refusal=lambda: refusal.read_text() if refusal.exists() else ""
    )
    _server(store, port).serve_forever()


if __name__ == "__main__":
    main()
