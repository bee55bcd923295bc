"""`python -m finetune_operator`: watches studies and their children, and reconciles."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import kopf
from kubernetes.aio import client, config
from prometheus_client import start_http_server

from finetune_api.study import GROUP, PLURAL, VERSION
from finetune_operator import metrics, names
from finetune_operator.kube import Kube
from finetune_operator.observe import ConfigView, JobView, Key, PodView, RayJobView, View
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings, read
from finetune_operator.store import Store
from finetune_operator.workqueue import WorkQueue

WORKERS = 16
"""Studies reconciled at the same time."""

Resource: TypeAlias = tuple[str, str, str]
"""Group, version and plural of a kind."""

_CHILDREN: dict[Resource, type[View]] = {
    ("batch", "v1", "jobs"): JobView,
    ("", "v1", "pods"): PodView,
    ("", "v1", "configmaps"): ConfigView,
}
_RAY_JOBS: Resource = ("ray.io", "v1", "rayjobs")


def _children(settings: Settings) -> dict[Resource, type[View]]:
    """What is watched of the studies' children. Of a kind that is not served kopf says so and goes on."""
    return _CHILDREN if settings.engine == "Job" else {**_CHILDREN, _RAY_JOBS: RayJobView}


class Operator:
    """Connects kopf's events, the store, the queue and the reconciler."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store()
        self.kube: Kube | None = None
        self.reconciler: Reconciler | None = None
        self.queue: WorkQueue[Key] | None = None

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Add the handlers. Indexes are complete before events are handled: nothing is judged missing too soon."""
        kopf.on.login(id="in-pod", registry=registry)(_login_in_pod)
        kopf.on.login(id="kubeconfig", registry=registry)(_login_by_kubeconfig)
        kopf.on.startup(id="startup", registry=registry)(self.start)
        kopf.on.cleanup(id="cleanup", registry=registry)(self.stop)
        kopf.index(GROUP, VERSION, PLURAL, id="studies", registry=registry)(self.see_study)
        kopf.on.event(GROUP, VERSION, PLURAL, id="study", registry=registry)(self.on_study)
        for resource, view in _children(self.settings).items():
            self._register_child(registry, resource, view)

    def _register_child(
        self,
        registry: kopf.OperatorRegistry,
        resource: Resource,
        view: type[View],
    ) -> None:
        async def see(body: kopf.Body, namespace: str | None, **_: Any) -> None:
            self.store.put(str(namespace), view, body)

        async def on_child(
            event: kopf.RawEvent, body: kopf.Body, namespace: str | None, **_: Any
        ) -> None:
            gone = event["type"] == "DELETED"
            key = (self.store.remove if gone else self.store.put)(str(namespace), view, body)
            if key is not None and self.queue is not None:
                self.queue.add(key)

        selected = {names.STUDY_LABEL: kopf.PRESENT}
        kopf.index(*resource, id=f"{resource[2]}-index", labels=selected, registry=registry)(see)
        kopf.on.event(*resource, id=f"{resource[2]}-event", labels=selected, registry=registry)(
            on_child
        )

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        """Set kopf up, connect, serve metrics."""
        settings.posting.enabled = False
        # A namespaced operator may not list namespaces or CRDs: kopf would retry that for a minute, blind.
        settings.scanning.disabled = bool(self.settings.namespaces)
        settings.persistence.finalizer = f"{GROUP}/unused"
        for resource in _children(self.settings):
            group, _version, plural = resource
            selector = plural if not group else f"{plural}.{group}"
            settings.watching.label_selectors[selector] = names.STUDY_LABEL
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
        configuration = client.Configuration.get_default_copy()
        configuration.connection_pool_maxsize = 4 * WORKERS
        self.kube = Kube(client.ApiClient(configuration))
        self.reconciler = Reconciler(self.kube, self.store, self.settings)
        self.queue = WorkQueue(self.reconciler.reconcile, metrics.RECONCILE_ERRORS.inc)
        self.queue.start(WORKERS)
        start_http_server(self.settings.metrics_port)

    async def stop(self, **_: Any) -> None:
        """Stop the queue and close the connections."""
        if self.queue is not None:
            await self.queue.stop()
        if self.kube is not None:
            await self.kube.close()

    async def see_study(self, body: kopf.Body, namespace: str | None, name: str, **_: Any) -> None:
        """Remember a study that was there before us."""
        assert self.reconciler is not None  # startup comes first
        self.reconciler.put((str(namespace), name), _plain(body))

    async def on_study(
        self, event: kopf.RawEvent, body: kopf.Body, namespace: str | None, name: str, **_: Any
    ) -> None:
        """Queue a study that appeared or changed; forget one that is gone."""
        assert self.reconciler is not None  # startup comes first
        assert self.queue is not None
        key = (str(namespace), name)
        if event["type"] == "DELETED":
            if self.reconciler.remove(key, body):
                self.queue.forget(key)
        else:
            self.reconciler.put(key, _plain(body))
            self.queue.add(key)


def _login_in_pod(**context: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**context)


def _login_by_kubeconfig(**context: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_kubeconfig(**context)


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: body[key]
        for key in ("apiVersion", "kind", "metadata", "spec", "status")
        if key in body
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with what `extra` adds about the study."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("study", "error", "object"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _liveness(port: int) -> str | None:
    """Where kopf answers probes; in its address port 0 would be port 80."""
    return f"http://0.0.0.0:{port}/healthz" if port else None


def main() -> None:
    """Run until told to end."""
    os.environ.setdefault(
        "USER", names.MANAGER
    )  # kopf asks for it, and an arbitrary user id has no name
    _log_as_json()
    settings = read()
    registry = kopf.OperatorRegistry()
    Operator(settings).register(registry)
    asyncio.run(
        kopf.operator(
            registry=registry,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            liveness_endpoint=_liveness(settings.health_port),
        )
    )


if __name__ == "__main__":
    main()
