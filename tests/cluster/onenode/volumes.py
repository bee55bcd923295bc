"""Volumes for a namespace: this checkout's Python libraries, and storage for studies.

Restricted Pod Security refuses hostPath volumes, but accepts a claim bound to a PersistentVolume
whose source is one.
"""

import hashlib
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.onenode.apiserver import ApiServer

STUDIES_CLAIM = "studies"


@dataclass(frozen=True)
class Volumes:
    """The claims of a namespace, and where the studies' files lie on this machine."""

    libraries_claim: str
    studies_claim: str
    studies_folder: Path


def libraries_claim() -> str:
    """The claim on this checkout's libraries: another checkout, which has its own, may use the same node."""
    return f"libraries-{hashlib.sha256(str(_libraries()).encode()).hexdigest()[:8]}"


def _libraries() -> Path:
    return Path(sysconfig.get_path("purelib"))


def provide(server: ApiServer, namespace: str) -> Volumes:
    """Make the namespace (restricted), its volumes and claims; what is there already stays.

    The libraries are those of the Python that runs this, read-only. The studies' folder can be
    written by any user id, since hostPath volumes ignore `fsGroup`.
    """
    studies = server.folder / "volumes" / namespace
    studies.mkdir(parents=True, exist_ok=True)
    studies.chmod(0o777)
    claims = (libraries_claim(), STUDIES_CLAIM)
    manifests = [
        _namespace(namespace),
        *volume(namespace, claims[0], _libraries(), "ReadOnlyMany"),
        *volume(namespace, STUDIES_CLAIM, studies, "ReadWriteMany"),
    ]
    server.kubectl(
        "apply",
        "--server-side",
        "--filename=-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}),
    )
    server.kubectl(
        "wait",
        f"--namespace={namespace}",
        "--for=jsonpath={.status.phase}=Bound",
        *(f"persistentvolumeclaim/{claim}" for claim in claims),
        "--timeout=30s",
    )
    return Volumes(*claims, studies)


def names(namespace: str) -> list[str]:
    """The names of a namespace's PersistentVolumes, which outlive the namespace."""
    return [f"{namespace}-{claim}" for claim in (libraries_claim(), STUDIES_CLAIM)]


def _namespace(name: str) -> dict[str, object]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def volume(namespace: str, claim: str, folder: Path, access: str) -> list[dict[str, object]]:
    """A PersistentVolume on a folder of this machine and the claim that it is kept for."""
    name = f"{namespace}-{claim}"
    common = {"accessModes": [access], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **common,
                "capacity": {"storage": "10Gi"},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": claim},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": namespace},
            "spec": {
                **common,
                "volumeName": name,
                "resources": {"requests": {"storage": "10Gi"}},
            },
        },
    ]
