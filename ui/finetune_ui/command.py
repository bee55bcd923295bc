"""`finetune ui`: serves the live page on loopback until it is interrupted."""

import argparse
import errno
import os
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.storage.layout import RUNS

if TYPE_CHECKING:
    from rich.console import Console

    from finetune_ui.source import Source

PORT = 8470


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune ui`."""
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help=f"folder of a study, or with studies in it (default: {RUNS})",
    )
    parser.add_argument(
        "--kube", action="store_true", help="show the studies of a cluster, with your rights"
    )
    parser.add_argument("-n", "--namespace", help="with --kube (default: that of the context)")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="with --kube: of all namespaces"
    )
    parser.add_argument("--context", help="with --kube: context of the kubeconfig")
    parser.add_argument("--kubeconfig", type=Path, help="with --kube: another kubeconfig")
    parser.add_argument(
        "--endpoint",
        metavar="HOST",
        action="append",
        default=[],
        help="with --kube: an object store's host, as in endpoint_override, that may get your credentials",
    )
    parser.add_argument(
        "--port",
        type=int,
        help=f"port on 127.0.0.1 (default: {PORT}, or a free one; 0: a free one)",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, but open no browser"
    )


def run(parsed: argparse.Namespace, console: "Console") -> int:
    """Serve until interrupted; 130 then."""
    source = _source(parsed)
    from finetune_ui.serving import serve  # Starlette, Plotly

    listener = bound(parsed.port)
    serve(source, listener, lambda address: _tell(address, not parsed.no_browser))
    return 0


def _source(parsed: argparse.Namespace) -> "Source":
    from finetune_trainer.errors import SpecError

    if parsed.kube:
        if parsed.folders:
            raise SpecError("FOLDER", "must not be given with --kube")
        from finetune_client import ClientError, Studies
        from finetune_ui.cluster import ClusterStudies

        try:
            studies = Studies(parsed.namespace, parsed.context, parsed.kubeconfig)
        except ClientError as error:
            raise SpecError("--kube", f"must lead to a cluster ({error})") from error
        return ClusterStudies(studies, parsed.all_namespaces, parsed.endpoint)
    for name in ("namespace", "all_namespaces", "context", "kubeconfig", "endpoint"):
        if getattr(parsed, name):
            raise SpecError(f"--{name.replace('_', '-')}", "must be given with --kube")
    from finetune_ui.folders import Folders

    for folder in parsed.folders:
        if not folder.is_dir():
            raise SpecError("FOLDER", f"must be a folder that exists (got {folder})")
    return Folders(parsed.folders or [Path(RUNS)])


def bound(port: int | None) -> socket.socket:
    """A socket that listens on 127.0.0.1. Without a port, PORT or, where that is taken, a free one. Raises SpecError."""
    from finetune_trainer.errors import SpecError

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", PORT if port is None else port))
    except OverflowError:
        raise SpecError("--port", f"must be between 0 and 65535 (got {port})") from None
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES) or port is not None:
            raise SpecError("--port", f"must be free on 127.0.0.1 (got {port}: {error})") from error
        listener.bind(("127.0.0.1", 0))
    return listener


def _tell(address: str, browser: bool) -> None:
    print(f"live page: {address}", flush=True)
    print("Ctrl-C ends it; studies go on.", file=sys.stderr, flush=True)
    if browser and sys.stdout.isatty() and _has_screen():
        threading.Thread(target=_open, args=(address,), daemon=True).start()


def _has_screen() -> bool:
    """Whether a browser would have a window: one in the terminal would take it away."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _open(address: str) -> None:
    """Open the address by a file that only this user can read: arguments of programs are everybody's to see."""
    with tempfile.TemporaryDirectory(prefix="finetune-ui-") as folder:
        page = Path(folder) / "open.html"
        page.touch(0o600)
        page.write_text(f'<meta http-equiv="refresh" content="0; url={address}">')
        webbrowser.open(page.as_uri())
        time.sleep(30)  # until the browser has read it
