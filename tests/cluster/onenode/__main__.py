"""`python -m tests.cluster.onenode up|down|...`: the one-node Kubernetes from the command line."""

import argparse

from tests.cluster.onenode.cluster import Cluster


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.onenode", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    args = parser.parse_args()
    cluster = Cluster()
    if args.command == "up":
        print(cluster.up())
    else:
        cluster.down()


if __name__ == "__main__":
    main()
