"""What programs show on this machine."""

import socket
import urllib.request


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def page(port: int, path: str) -> str:
    """What is shown at a port. Raises HTTPError for an answer that is no page, OSError if there is none."""
    # A proxy from the environment must not stand between us and this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return str(answer.read().decode())
