"""The studies of a cluster."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune_api.manifest import ManifestError, Problem, load_yaml, parse_study, read_study
from finetune_api.study import API_VERSION, KIND, FineTuneStudy, StudySpec
from finetune_client.access import connect
from finetune_client.cluster import Cluster
from finetune_client.handle import StudyHandle
from finetune_client.view import StudyView

PREFIX = "study-"
"""How the name begins that the API server makes for a study without one."""


class Studies:
    """The studies of a namespace, reached as kubectl would.

    Args:
        namespace: default: that of the context, or of the pod that this runs in.
        context: of the kubeconfig; default: the current one.
        kubeconfig: default: $KUBECONFIG, else ~/.kube/config, else the account of the pod that this runs in.

    Raises:
        BadConfiguration: if none of these leads to a cluster.
    """

    def __init__(
        self,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
    ) -> None:
        self._cluster = Cluster(connect(context, kubeconfig))
        self._given = namespace
        self.namespace = namespace or self._cluster.namespace

    def __enter__(self) -> "Studies":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._cluster.close()

    def create(
        self,
        study: StudySpec | FineTuneStudy | Mapping[str, Any] | str | Path,
        name: str | None = None,
    ) -> StudyHandle:
        """Create a study.

        Args:
            study: its spec, a whole study, either as JSON values, or the path of a manifest.
            name: default: that of the manifest, else one that the API server makes.

        Raises:
            ManifestError: if it is not a valid study; nothing was sent.
            ClientError: if the API server does not take it.
        """
        manifest = _manifest(study, name)
        metadata = manifest["metadata"]
        if self._given not in (None, metadata.get("namespace", self._given)):
            told = f"must be {self._given} or unset (got {metadata['namespace']!r})"
            raise ManifestError([Problem("metadata.namespace", told)])
        metadata.setdefault("namespace", self.namespace)
        return self._handle(self._cluster.create(manifest))

    def get(self, name: str, namespace: str | None = None) -> StudyHandle:
        """The study of that name, in another namespace if one is given. Raises NotFound or another ClientError."""
        return self._handle(self._cluster.read(namespace or self.namespace, name))

    def list(self, all_namespaces: bool = False) -> list[StudyHandle]:
        """The studies of the namespace, or of all. Raises ClientError."""
        found = self._cluster.studies(None if all_namespaces else self.namespace)
        return [self._handle(body) for body in found]

    def delete(self, name: str) -> None:
        """Delete the study and its pods; what it stored stays. Raises NotFound or another ClientError."""
        self._cluster.delete(self.namespace, name)

    def _handle(self, body: Mapping[str, Any]) -> StudyHandle:
        return StudyHandle(self._cluster, StudyView(body))


def _manifest(
    study: StudySpec | FineTuneStudy | Mapping[str, Any] | str | Path, name: str | None
) -> dict[str, Any]:
    """The manifest to send, validated: as it was written, without a status. Raises ManifestError, OSError."""
    document = _document(study)
    document.pop("status", None)
    metadata = document["metadata"] = {**(document.get("metadata") or {})}
    if name is not None:
        metadata["name"] = name
    if metadata.get("name") is None:
        metadata.pop("name", None)
        prefix = metadata.setdefault("generateName", PREFIX)
        parse_study({**document, "metadata": {**metadata, "name": f"{prefix}00000"}})
    elif name is None and isinstance(study, str | Path):
        read_study(Path(study))  # its problems have lines
    else:
        parse_study(document)
    return document


def _document(study: StudySpec | FineTuneStudy | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    match study:
        case StudySpec():
            return _whole(study.to_short_json())
        case FineTuneStudy():
            metadata = study.metadata
            kept = {"name": metadata.name, "labels": metadata.labels}
            kept["annotations"] = metadata.annotations
            if metadata.namespace is not None:
                kept["namespace"] = metadata.namespace
            return {**_whole(study.spec.to_short_json()), "metadata": kept}
        case Mapping():
            given = deepcopy(dict(study))
            return given if {"spec", "kind", "apiVersion"} & given.keys() else _whole(given)
        case _:
            read = load_yaml(Path(study).read_text(encoding="utf-8-sig"))
            if not isinstance(read, dict):
                parse_study(read)
            return dict(read)


def _whole(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "spec": spec}
