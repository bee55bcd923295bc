"""`make demo-cluster`: from nothing to the best parameters, on a real Kubernetes of one node."""

import json
import sys

from tests.e2e.platform import TEAM, Platform, condition, example, say

TIMEOUT = 1800


def main() -> int:
    """Install, apply, watch, print; 1 if the study does not complete."""
    say("starting a one-node Kubernetes (built and cached the first time)")
    platform = Platform.reach()
    say("building images, helm install")
    platform.install()
    say(f"namespace {TEAM} with storage, example data and model")
    platform.team()
    study = example("library")
    name = study["metadata"]["name"]
    platform.kubectl("delete", "fts", name, "-n", TEAM, "--ignore-not-found", "--wait")
    say("kubectl apply -f examples/library.yaml")
    platform.apply(study)
    shown = ""

    def over() -> bool:
        nonlocal shown
        line = platform.kubectl("get", "fts", name, "-n", TEAM, "--no-headers").strip()
        line = " ".join(line.split()[:-1])  # without the age
        if line != shown:
            print(line, flush=True)
            shown = line
        found = platform.study(name)
        return "True" in (condition(found, "Complete"), condition(found, "Failed"))

    platform.wait("the study to end", over, TIMEOUT)
    status = platform.study(name)["status"]
    print(platform.kubectl("get", "fts", name, "-n", TEAM, "-o", "wide"))
    print(
        "best parameters:",
        platform.kubectl("get", "fts", name, "-n", TEAM, "-o", "jsonpath={.status.best.params}"),
    )
    print("test metrics:   ", json.dumps(status.get("final", {}).get("testMetrics")))
    print("constant guess: ", json.dumps(status.get("final", {}).get("baseline")))
    print(
        f"the cluster goes on running: kubectl --kubeconfig={platform.kubeconfig} get fts -n {TEAM}"
    )
    return 0 if status["state"] == "Complete" else 1


if __name__ == "__main__":
    sys.exit(main())
