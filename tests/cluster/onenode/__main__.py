"""The one-node Kubernetes from the command line, run from the repository's root."""

import argparse
import json
import os
import signal
import tempfile
from pathlib import Path

from tests.cluster.onenode import images, volumes
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import ToolMissing, build_all, program
from tests.cluster.onenode.cluster import Cluster


def main() -> None:
    """Run one command; what it made (a path, a table) goes to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.onenode", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build Kubernetes and its companions into the cache")
    named = commands.add_parser("program", help="print where a program is, building it if need be")
    named.add_argument("name", help="kubectl, helm, celcost, kube-apiserver, ...")
    commands.add_parser("up", help="start the cluster, print its kubeconfig")
    commands.add_parser("down", help="stop the cluster and delete everything it made")
    wanted = commands.add_parser("images", help="build images, import them into the cluster")
    wanted.add_argument("names", nargs="*", choices=[*images.BUILDERS, []], help="default: all")
    claims = commands.add_parser("volumes", help="make a namespace with its volumes")
    claims.add_argument("namespace")
    only = commands.add_parser("apiserver-only", help="run etcd and kube-apiserver until Ctrl-C")
    only.add_argument(
        "--controllers", nargs="*", default=[], help="e.g. garbage-collector-controller"
    )
    args = parser.parse_args()
    cluster = Cluster()
    match args.command:
        case "build":
            try:
                build_all()
            except ToolMissing as missing:
                if os.environ.get("CI"):
                    raise
                print(f"not built, tests that need it are skipped: {missing}")
        case "program":
            print(program(args.name))
        case "up":
            print(cluster.up())
        case "down":
            cluster.down()
        case "images":
            names = args.names or list(images.BUILDERS)
            cluster.up()
            print(json.dumps(images.provide(cluster.runtime(), *names), indent=1))
        case "volumes":
            cluster.up()
            print(volumes.provide(cluster.server(), args.namespace))
        case "apiserver-only":
            run_apiserver(args.controllers)


def run_apiserver(controllers: list[str]) -> None:
    """Run a control plane on loopback ports until Ctrl-C or SIGTERM, then delete it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory(prefix="finetune-apiserver-") as folder,
        ApiServer(Path(folder), controllers) as server,
    ):
        print(server.kubeconfig, flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
