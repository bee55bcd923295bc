"""Object stores that others have written, as processes of this machine with their objects in a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.cluster import azurite
from tests.cluster.loopback import listens
from tests.cluster.onenode.build import program
from tests.cluster.onenode.processes import Service
from tests.trainer.object_store import lasting_port

BUCKET = "studies"
KEY, SECRET = "finetune", "not-a-secret"


@dataclass(frozen=True)
class ObjectServer:
    """A store with one bucket."""

    service: Service
    host: str
    port: int
    scheme: str
    user: str
    """Who reads and writes, as a URI names them."""

    def uri(self, path: str = "team/one") -> str:
        """The location of a path in its bucket, with all that pyarrow must know."""
        where = f"{self.host}:{self.port}"
        if self.scheme == "abfs":
            return f"abfs://{self.user}@{where}/{BUCKET}/{path}?enable_tls=false"
        options = f"scheme=http&endpoint_override={quote(where, safe='')}"
        return f"{self.scheme}://{self.user}@{BUCKET}/{path}?{options}"

    def start(self) -> None:
        """Run it, with whatever it had; returns when it listens."""
        if self.scheme == "gs":
            _drop_halves(self.service.folder / "data")
        self.service.start()
        self.service.wait_until(lambda: listens(self.port, self.host))


def _s3(folder: Path, host: str, port: int) -> list[str]:
    """Versity's S3 gateway, whose buckets are folders."""
    return [
        str(program("versitygw")),
        f"--port={host}:{port}",
        f"--access={KEY}",
        f"--secret={SECRET}",
        "posix",
        str(folder),
    ]


def _gcs(folder: Path, host: str, port: int) -> list[str]:
    """A stand-in for Google's: there is no server of theirs to have."""
    return [
        str(program("fake-gcs-server")),
        "-scheme=http",
        f"-host={host}",
        f"-port={port}",
        f"-public-host={host}:{port}",
        f"-filesystem-root={folder}",
    ]


def _drop_halves(folder: Path) -> None:
    """Delete what Google's stand-in had not finished when it was killed: it takes it for objects, and then lists nothing."""
    for half in folder.rglob(".*"):
        if half.is_file():
            half.unlink()


_SERVERS: dict[str, tuple[Callable[[Path, str, int], list[str]], str]] = {
    "s3": (_s3, f"{KEY}:{SECRET}"),
    "gs": (_gcs, "anonymous"),
    "abfs": (azurite.command, azurite.ACCOUNT),
}


@contextmanager
def object_server(scheme: str, folder: Path, host: str = "127.0.0.1") -> Iterator[ObjectServer]:
    """A running store for that scheme (`s3`, `gs` or `abfs`), which ends with the block."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    port = lasting_port()
    command, user = _SERVERS[scheme]
    service = Service(scheme, command(folder / "data", host, port), folder)
    server = ObjectServer(service, host, port, scheme, user)
    server.start()
    try:
        yield server
    finally:
        service.stop(grace=3)
