"""What studies go through in tests: each step ends when the operator has said so."""

from typing import Any

from tests.cluster.operator_process import Studies, until

_KINDS = (
    "configmaps",
    "jobs",
    "networkpolicies",
    "rolebindings",
    "roles",
    "secrets",
    "serviceaccounts",
    "services",
)
_BEST = {"trial": 2, "value": 0.5, "epoch": 1, "params": {"epochs": 1}}
FOUND = {"trials": {"planned": 4, "completed": 4, "summary": "4/4"}, "best": _BEST}
"""Findings of a search of four trials."""

FINISHED: dict[str, Any] = {"message": "all 4 trials ended", "findings": FOUND}
"""What its driver says of its end."""


def run(studies: Studies, name: str, attempt: int = 1, **report: Any) -> None:
    """Start the pod of an attempt and let its driver search."""
    job = f"{name}-{attempt}"
    until(f"a pod of {job}", lambda: studies.get("job", job).get("status", {}).get("active"))
    studies.run_pod(job, 0)
    studies.report(name, job, "Searching", **report)
    until(f"{name} to run", lambda: studies.state(name) == "Running")


def complete(studies: Studies, name: str, attempt: int = 1, **report: Any) -> None:
    """Let the driver and the pod of an attempt end well."""
    finish(studies, name, f"{name}-{attempt}", **report)
    until(f"{name} to complete", lambda: studies.state(name) == "Complete")


def fail(studies: Studies, name: str, attempt: int = 1) -> None:
    """Let the driver say that its user must mend something, and the pod end by it."""
    job = f"{name}-{attempt}"
    studies.report(name, job, "Failed", reason="DataError", message="no such column")
    studies.end_pod(job, 0, "Failed", 42)
    until(f"{name} to fail", lambda: studies.state(name) == "Failed")


def suspend(studies: Studies, name: str) -> None:
    """Suspend it; its pods end at once."""
    edit(studies, name, suspend=True)

    def suspended() -> bool:
        studies.remove_pods()
        return studies.state(name) == "Suspended"

    until(f"{name} to be suspended", suspended)


def resume(studies: Studies, name: str) -> None:
    """Let it go on; its next attempt begins."""
    edit(studies, name, suspend=False)


def give_up(studies: Studies, name: str, attempt: int = 1) -> None:
    """Let the driver of an attempt end without a word about the end of the study; the next attempt begins."""
    job = f"{name}-{attempt}"
    studies.report(name, job, "Drained", reason="SuspendRequested")
    studies.end_pod(job, 0, "Succeeded", 0)

    def followed() -> bool:
        studies.remove_pods()
        return bool(studies.get("job", f"{name}-{attempt + 1}"))

    until(f"the attempt after {job}", followed)


def edit(studies: Studies, name: str, **spec: Any) -> None:
    """Change these fields of the spec."""
    studies.done("PATCH", "fts", name, {"spec": spec})


def whole(studies: Studies, name: str) -> None:
    """A study's life: an attempt that is suspended, one whose driver ends too early, one that completes, one after that."""
    studies.create(name)
    run(studies, name)
    edit(studies, name, budget={"maxTrials": 77})
    until("the new budget", lambda: '"maxTrials": 77' in _spec(studies, name))
    suspend(studies, name)
    resume(studies, name)
    run(studies, name, 2)
    give_up(studies, name, 2)
    run(studies, name, 3)
    complete(studies, name, 3, findings=FOUND)
    edit(studies, name, budget={"maxTrials": 78})

    def goes_on() -> bool:
        studies.remove_pods()
        return bool(studies.get("job", f"{name}-4"))

    until(f"{name} to go on", goes_on)
    run(studies, name, 4)
    complete(studies, name, 4, findings=FOUND)


def _spec(studies: Studies, name: str) -> str:
    data = studies.get("configmap", f"{name}-spec").get("data", {})
    return str(data.get("study.json", ""))


def remains(studies: Studies, name: str) -> dict[str, Any]:
    """What there is of the study and its children, without what differs from one study to another."""
    study = studies.get("fts", name)
    uid, status = study["metadata"]["uid"], study["status"]
    owned = [
        _known_name(kind, child["metadata"]["name"])
        for kind in _KINDS
        for child in studies.all(kind)
        if any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences", []))
    ]
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    return {
        "children": sorted({one.replace(name, "study") for one in owned}),
        "conditions": conditions,
        **{field: status[field] for field in ("state", "attempts", "trials", "observedGeneration")},
    }


def _known_name(kind: str, name: str) -> str:
    # Secrets have random names, and an attempt that was begun twice has two.
    return f"{kind}/{name.rsplit('-', 1)[0] if kind == 'secrets' else name}"


def finish(studies: Studies, name: str, job: str, **report: Any) -> None:
    """Let the driver say that all is done and the pod end well; what the operator makes of it is not waited for."""
    studies.report(name, job, "Finished", **{"reason": "SearchFinished", **report})
    studies.end_pod(job, 0, "Succeeded", 0)
