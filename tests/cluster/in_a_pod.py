"""`python -m tests.cluster.in_a_pod`: the operator with the account of a pod, from the folder named by `ACCOUNT`.

Everything but where the files lie is as in a pod: the address of the API server is in the environment, and nobody
answers for its DNS name.
"""

import builtins
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kopf
from kopf._core.intents import piggybacking
from kubernetes.aio.config import incluster_config

from finetune_operator.__main__ import main

MOUNTED = "/var/run/secrets/kubernetes.io/serviceaccount"


def _here(path: str) -> str:
    return path.replace(MOUNTED, os.environ["ACCOUNT"])


def _open(path: str, *arguments: Any, **more: Any) -> Any:
    return builtins.open(_here(path), *arguments, **more)


if __name__ == "__main__":
    module: Any = piggybacking
    module.open = _open
    module.os = SimpleNamespace(
        path=SimpleNamespace(exists=lambda path: Path(_here(path)).exists()), environ=os.environ
    )
    kopfs = piggybacking.login_with_service_account

    def _found(**context: Any) -> kopf.ConnectionInfo:
        found = kopfs(**context)
        assert found is not None
        return replace(found, ca_path=_here(str(found.ca_path)))

    kopf.login_with_service_account = _found
    incluster_config.SERVICE_TOKEN_FILENAME = _here(incluster_config.SERVICE_TOKEN_FILENAME)
    incluster_config.SERVICE_CERT_FILENAME = _here(incluster_config.SERVICE_CERT_FILENAME)
    main()
