"""The driver of a study as a stranger: what speaks to the API server with the token of the study's pods alone."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import Studies, until

Patch: TypeAlias = dict[str, Any]

NESTED = "nested"
"""Stands in a manifest for an object that is nested as deep as the API server takes it."""

DEPTH = 9900
"""Which is deeper than Python reads and writes by itself."""


def as_json(manifest: Any) -> str:
    """The manifest as JSON."""
    nested = '{"f:x":' * DEPTH + "{}" + "}" * DEPTH
    return json.dumps(manifest).replace(json.dumps(NESTED), nested)


@dataclass(frozen=True)
class Driver:
    """Speaks to the API server with the token of a study's pods, and with nothing else."""

    server: ApiServer
    namespace: str
    kubeconfig: Path

    @classmethod
    def of(cls, server: ApiServer, studies: Studies, name: str, folder: Path) -> "Driver":
        """The driver of that study, as soon as its rights are there."""
        token = studies.kubectl("create", "token", f"{name}-trainer").strip()
        config = yaml.safe_load(server.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = folder / "driver.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        driver = cls(server, studies.namespace, path)
        until("its rights", lambda: not driver.refusal("get", "configmap", f"{name}-progress"))
        return driver

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl as the driver. Raises CalledProcessError."""
        access = (f"--kubeconfig={self.kubeconfig}", "-n", self.namespace)
        return self.server.kubectl(*access, *arguments, stdin=stdin)

    def patch(self, name: str, patch: Patch, folder: Path) -> None:
        """Patch a ConfigMap; by a file, for a patch may be larger than a command line."""
        file = folder / "patch.json"
        file.write_text(as_json(patch))
        self.kubectl("patch", "configmap", name, "--type=merge", f"--patch-file={file}")

    def refusal(self, *arguments: str, stdin: str | None = None) -> str:
        """What the API server says to what it refuses; empty if it lets it pass."""
        try:
            self.kubectl(*arguments, stdin=stdin)
        except subprocess.CalledProcessError as error:
            return str(error.stderr)
        return ""
