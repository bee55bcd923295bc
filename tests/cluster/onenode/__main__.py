"""The one-node Kubernetes from the command line, run from the repository's root."""

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.cluster.onenode import images, volumes
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import NODE_PROGRAMS, PROGRAMS, build_all, program
from tests.cluster.onenode.cluster import Cluster
from tests.needs import ToolMissing


def main() -> None:
    """Run one command; what it made (a path, a table) goes to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.onenode", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    built = commands.add_parser("build", help="build Kubernetes and its companions into the cache")
    built.add_argument("--node", action="store_true", help="only what a node and the chart need")
    named = commands.add_parser(
        "program", help="print where programs are, building them if need be"
    )
    named.add_argument("names", nargs="+", help="kubectl, helm, celcost, kube-apiserver, ...")
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
    try:
        run(args)
    except ToolMissing as missing:
        sys.exit(f"onenode: {missing}")


def run(args: argparse.Namespace) -> None:
    """Do what the command line says. Raises ToolMissing where this machine cannot."""
    cluster = Cluster()
    match args.command:
        case "build":
            if args.node and os.geteuid() != 0:  # before minutes of building for nothing
                raise ToolMissing("root", "a node runs as root")
            build_all(NODE_PROGRAMS if args.node else PROGRAMS)
        case "program":
            for name in args.names:
                print(program(name))
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
        case unknown:
            raise ValueError(f"{unknown} has a parser, and nothing that does it")


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
