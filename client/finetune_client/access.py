"""Where the cluster is, and who asks: as kubectl finds out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.kube_config import KubeConfigMerger
from yaml import YAMLError

from finetune_client.errors import BadConfiguration

_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Access:
    """A configured client of one API server."""

    api: Any
    """A `kubernetes.client.ApiClient`."""

    namespace: str
    """The namespace of the context or of the pod; `default` if neither names one."""


def connect(context: str | None, kubeconfig: str | Path | None) -> Access:
    """Access by `kubeconfig`, else by $KUBECONFIG, else by ~/.kube/config, else as the pod's own account.

    Nothing is asked of the API server yet. Raises BadConfiguration.
    """
    paths = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config"))
    there = [path for path in paths.split(os.pathsep) if path and Path(path).expanduser().exists()]
    settings = client.Configuration()
    settings.retries = (
        False  # else urllib3 repeats a lost request by itself, even one that creates something
    )
    if there:
        namespace = _by_kubeconfig(os.pathsep.join(there), context, settings)
    elif kubeconfig is not None:
        raise BadConfiguration(f"kubeconfig {kubeconfig} does not exist")
    elif context is not None:
        raise BadConfiguration(f"no kubeconfig with the context {context}: {paths} does not exist")
    else:
        namespace = _by_account(paths, settings)
    return Access(client.ApiClient(settings), namespace)


def _by_kubeconfig(paths: str, context: str | None, settings: Any) -> str:
    try:
        config.load_kube_config(paths, context, client_configuration=settings)
        merged = KubeConfigMerger(paths).config
    except (config.ConfigException, YAMLError, OSError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise BadConfiguration(f"kubeconfig {paths}: {told}") from error
    name = context or merged["current-context"]
    known = merged["contexts"].get_with_name(name)["context"]
    return str(known.safe_get("namespace") or "default")


def _by_account(paths: str, settings: Any) -> str:
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        told = f"no cluster: {paths} does not exist, and this is no pod of a cluster"
        raise BadConfiguration(told) from error
    named = os.environ.get("POD_NAMESPACE")
    return named or _ACCOUNT_NAMESPACE.read_text().strip() or "default"
