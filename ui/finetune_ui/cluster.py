"""The studies of a cluster, with the rights of whoever started the page."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl

from finetune_api.search import Budget
from finetune_client import ClientError, NotFound, Studies, StudyHandle
from finetune_client.reasons import why
from finetune_client.status_report import status_report
from finetune_client.view import StudyView
from finetune_reports.document import Report
from finetune_ui.source import (
    Action,
    Asked,
    Happening,
    Line,
    NoStudy,
    SourceError,
    Surroundings,
)

MOST_LOG = 500
"""Lines of a log on its page."""

MOST_EVENTS = 50

EDITED = ("maxTrials", "maxDurationSeconds", "maxGpuHours", "maxPrice")
"""Limits that the page lets people edit."""


class ClusterStudies:
    """The studies of one namespace, or of all. Each look asks the API server."""

    def __init__(
        self, studies: Studies, all_namespaces: bool = False, endpoints: Sequence[str] = ()
    ) -> None:
        """`endpoints` are hosts of object stores that may get the credentials of this environment."""
        self._studies, self._all, self._endpoints = studies, all_namespaces, endpoints
        self.title = "All namespaces" if all_namespaces else f"Namespace {studies.namespace}"

    def _views(self) -> list[StudyView]:
        with _told():
            return [each.last for each in self._studies.list(self._all)]

    def lines(self) -> Sequence[Line]:
        """All studies, the newest first."""
        views = sorted(self._views(), key=lambda view: view.created, reverse=True)
        return [_line_or_trouble(view) for view in views]

    def version(self) -> str:
        """Resource versions: each change of a study or its status makes a new one."""
        return "\n".join(sorted(map(_version, self._views())))

    def study(self, id: str) -> "ClusterStudy":
        """The study of that id, `<namespace>.<name>`, as it is now. Raises SourceError."""
        namespace, _, name = id.partition(".")
        if not self._all and namespace != self._studies.namespace:
            raise NoStudy(f"There is no study {id} in {self.title}.")
        with _told():
            return ClusterStudy(self._studies.get(name, namespace), self._endpoints)


class ClusterStudy:
    """A study of a cluster as it was read."""

    def __init__(self, handle: StudyHandle, endpoints: Sequence[str]) -> None:
        self._handle, self._view, self._endpoints = handle, handle.last, endpoints

    def version(self) -> str:
        """Its resource version."""
        return _version(self._view)

    def line(self) -> Line:
        """As its status says it."""
        return _line_or_trouble(self._view)

    def around(self) -> Surroundings:
        """Why it waits, its Events, and what may be done."""
        view = self._view
        with _told():
            actions = _actions(view)  # or it is of a newer operator
        try:
            events = self._handle.events()
        except ClientError as error:  # who may read studies may not always list Events
            happenings = [Happening("", "Warning", "Forbidden", f"Events are not shown: {error}")]
            events = []
        else:
            happenings = [
                Happening(
                    f"{event.time:%Y-%m-%d %H:%M:%S}",
                    event.type,
                    event.reason,
                    event.message + (f" ({event.count} times)" if event.count > 1 else ""),
                )
                for event in reversed(events[-MOST_EVENTS:])
            ]
        return Surroundings(
            why=why(view, events),
            happenings=happenings,
            actions=actions,
            has_log=True,
            full=_without_options(view.records_uri),
        )

    def report(self, full: bool = False) -> Report:
        """What the status says or, with `full`, what the records in the object store say."""
        if full:
            return _full(self._view, self._endpoints)
        with _told():
            return status_report(self._view)

    def log(self) -> str:
        """The last lines of its driver's log."""
        try:
            with _told():
                lines = self._handle.logs().splitlines()
        except NoStudy:  # the study is there: it is its pod that is not
            return "The study has no driver pod now: nothing runs, or its pods are gone."
        return "\n".join(lines[-MOST_LOG:])

    def act(self, action: str, values: Mapping[str, str], sure: bool) -> Asked:
        """Suspend, resume, retry or edit the budget; the API server's own rules decide whether that is allowed."""
        handle = self._handle
        with _told():
            known = {each.id: each for each in _actions(self._view)}
        if action not in known:
            offered = ", ".join(known) or "nothing"
            raise SourceError(f"{action} cannot be done to {handle.name} now, only: {offered}.")
        chosen, who = known[action], f"{handle.namespace}/{handle.name}"
        if action != "budget":
            with _told():
                getattr(handle, action)(dry_run=not sure)
            return Asked(f"{who}: {chosen.does}", f"{chosen.label} {handle.name}", {})
        if values.get("version", chosen.version) != chosen.version:
            raise SourceError(f"{who} has been edited meanwhile: look at it again.")
        limits = _changed_limits(values, chosen.fields)
        if not limits:
            raise SourceError("Nothing is changed: these are the limits that it has.")
        names = {str(field.alias): name for name, field in Budget.model_fields.items()}
        with _told():
            handle.edit_budget(not sure, **{names[alias]: limits[alias] for alias in limits})
        edits = ", ".join(
            f"{alias} from {chosen.fields[alias] or 'no limit'} to {_shown(value) or 'no limit'}"
            for alias, value in limits.items()
        )
        again = {alias: _shown(value) for alias, value in limits.items()}
        return Asked(
            f"{who}: {edits}.",
            f"{chosen.label} of {handle.name}",
            {**again, "version": chosen.version},
        )


@contextmanager
def _told() -> Iterator[None]:
    """What the client says is wrong, in the words of the page."""
    try:
        yield
    except NotFound as error:
        raise NoStudy(f"{error}") from error
    except ClientError as error:
        raise SourceError(f"{error}") from error


def _line_or_trouble(view: StudyView) -> Line:
    """The line of a study, also of one that this version cannot read."""
    try:
        return _line(view)
    except ClientError as error:
        id = f"{view.namespace}.{view.name}"
        return Line(
            id=id, name=view.name, place=view.namespace, state="Not readable", reason=f"{error}"
        )


def _line(view: StudyView) -> Line:
    final, best = view.status.final, view.best
    return Line(
        id=f"{view.namespace}.{view.name}",
        name=view.name,
        place=view.namespace,
        state=view.state or "Not seen yet",
        reason=view.reason,
        metric=view.metric,
        trials=view.status.trials.summary,
        best=None if best is None else best.value,
        test=None if final is None else final.test_metrics.get(view.metric),
        changed=f"created {view.created:%Y-%m-%d %H:%M} UTC",
        is_failed=view.state == "Failed",
    )


def _version(view: StudyView) -> str:
    metadata = view.body["metadata"]
    return f"{metadata['uid']} {metadata['resourceVersion']}"


def _actions(view: StudyView) -> list[Action]:
    status, spec = view.status, view.spec
    found: list[Action] = []
    if spec.get("suspend"):
        does = "Its next attempt goes on from its records."
        found.append(Action("resume", "Resume", does))
    elif not status.finished:
        does = "Its pods save what they train and end; its records stay."
        found.append(Action("suspend", "Suspend", does))
    if status.is_true("Failed") or status.is_true("Stalled"):
        does = "What failed is tried again; what was trained is kept."
        found.append(Action("retry", "Retry", does))
    budget = spec.get("budget") or {}
    limits = {name: _shown(budget.get(name)) for name in EDITED}
    does = "The search goes by the new limits; a study that one of them has ended goes on if it is loosened."
    version = str(view.body["metadata"]["generation"])
    found.append(Action("budget", "Change the budget", does, limits, version))
    return found


def _shown(limit: float | None) -> str:
    """A limit, whole; empty for none."""
    return "" if limit is None else str(limit)


def _changed_limits(
    values: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, float | None]:
    """The limits of a form that are not what they were; None takes one away. Raises SourceError for what is no number."""
    found: dict[str, float | None] = {}
    for alias, was in before.items():
        given = values.get(alias, was).strip()
        if given == was:
            continue
        if not given:
            found[alias] = None
            continue
        try:
            number = float(given)
        except ValueError:
            raise SourceError(
                f"{alias} must be a number, or empty for no limit (got {given})."
            ) from None
        if not math.isfinite(number):
            raise SourceError(f"{alias} must be a finite number (got {given}).")
        found[alias] = int(number) if number.is_integer() else number
    return found


def refuse_strange_hosts(uri: str, allowed: Sequence[str]) -> None:
    """Raise SourceError for a location whose options name a host that is not allowed, or a connection without TLS.

    Whoever creates a study names its storage: that host must not get the credentials of whoever looks at the study.
    """
    options = parse_qsl(uri.partition("?")[2], keep_blank_values=True)
    hosts = [
        value
        for name, value in options
        if name in ("endpoint_override", "scheme") or name.endswith("_authority")
    ]
    for host in hosts:
        if host not in (*allowed, "https"):
            raise SourceError(
                f"The storage of this study names an endpoint of its own ({uri}). Reading there would send your"
                f" credentials to it: finetune ui --kube --endpoint {host} allows that."
            )


def _full(view: StudyView, endpoints: Sequence[str]) -> Report:
    """From the records, with the credentials of this environment."""
    from finetune_api.manifest import ManifestError
    from finetune_api.study import StudySpec
    from finetune_trainer.errors import StudyError
    from finetune_trainer.report import Subject, report_of
    from finetune_trainer.storage.folder import Storage

    root = view.records_uri
    if root is None:
        raise SourceError(
            "The records of this study are on a volume of the cluster, not in an object store."
        )
    refuse_strange_hosts(root, endpoints)
    try:
        spec = StudySpec.model_validate(view.spec)
        storage = Storage.open(root)
        subject = Subject.named(view.name, spec, storage)
        status = view.status
        works = status.is_true("Running")
        return report_of(subject, storage, time.time(), status.warnings, works)
    except (OSError, ValueError, StudyError, ManifestError) as error:
        raise SourceError(
            f"The records at {_without_options(root)} cannot be read from here: {error}"
        ) from error


def _without_options(uri: str | None) -> str:
    """A URI's options are for programs; empty for None."""
    return (uri or "").partition("?")[0]
