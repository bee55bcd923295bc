"""The studies of a cluster, with the rights of whoever started the page."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from finetune_api.search import Budget
from finetune_client import ClientError, NotFound, Studies, StudyHandle
from finetune_client.reasons import why
from finetune_client.view import StudyView
from finetune_reports.document import Report
from finetune_trainer.storage.glance import age
from finetune_ui.source import (
    Action,
    Happening,
    Line,
    NoStudy,
    Source,
    SourceError,
    Surroundings,
)

T = TypeVar("T")

MOST_LOG = 500
"""Lines of a log on its page."""

MOST_EVENTS = 50

EDITED = ("maxTrials", "maxDurationSeconds", "maxGpuHours", "maxPrice")
"""Limits that the page lets people edit."""


class ClusterStudies(Source):
    """The studies of one namespace, or of all. Each look asks the API server."""

    def __init__(self, studies: Studies, all_namespaces: bool = False) -> None:
        self._studies, self._all = studies, all_namespaces
        self.title = "All namespaces" if all_namespaces else f"Namespace {studies.namespace}"

    @classmethod
    def connected(
        cls,
        namespace: str | None,
        all_namespaces: bool,
        context: str | None,
        kubeconfig: Path | None,
    ) -> "ClusterStudies":
        """By kubeconfig, as kubectl finds it. Raises SourceError if that leads to no cluster."""
        try:
            return cls(Studies(namespace, context, kubeconfig), all_namespaces)
        except ClientError as error:
            raise SourceError(f"{error}") from error

    def lines(self) -> Sequence[Line]:
        """All studies, the newest first."""
        views = [each.last for each in self._asked(lambda: self._studies.list(self._all))]
        views.sort(key=lambda view: view.created, reverse=True)
        return [_line(view) for view in views]

    def line(self, study: str) -> Line:
        """The line of one study."""
        return _line(self._handle(study).last)

    def version(self, study: str | None) -> str:
        """Resource versions: each change of a study or its status makes a new one."""
        if study is not None:
            return _version(self._handle(study).last)
        found = self._asked(lambda: self._studies.list(self._all))
        return "\n".join(sorted(_version(each.last) for each in found))

    def report(self, study: str, full: bool = False) -> Report:
        """What the status says or, with `full`, what the records in the object store say."""
        handle = self._handle(study)
        if full:
            return _full(handle.last)
        return self._asked(handle.report)

    def around(self, study: str) -> Surroundings:
        """Why it waits, its Events, and what may be done."""
        handle = self._handle(study)
        view = handle.last
        try:
            events = handle.events()
        except ClientError as error:  # who may read studies may not always list Events
            happenings = [Happening("", "Warning", "Forbidden", f"Events are not shown: {error}")]
            reasons = why(view)
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
            reasons = why(view, events)
        return Surroundings(
            why=reasons,
            happenings=happenings,
            actions=_actions(view),
            has_log=True,
            full=_without_options(view.records_uri),
        )

    def log(self, study: str) -> str:
        """The last lines of its driver's log."""
        handle = self._handle(study)
        try:
            lines = str(self._asked(handle.logs)).splitlines()
        except NoStudy:  # the study is there: it is its pod that is not
            return "The study has no driver pod now: nothing runs, or its pods are gone."
        return "\n".join(deque(lines, MOST_LOG))

    def act(self, study: str, action: str, values: Mapping[str, str], sure: bool) -> str:
        """Suspend, resume, retry or edit the budget; the API server's own rules decide whether that is allowed."""
        handle = self._handle(study)
        known = {each.id: each for each in _actions(handle.last)}
        if action not in known:
            offered = ", ".join(known) or "nothing"
            raise SourceError(f"{action} cannot be done to {handle.name} now, only: {offered}.")
        change: Callable[[], object]
        said = f"{handle.namespace}/{handle.name}: {known[action].does}"
        if action == "budget":
            limits = _limits(values)
            aliases = {name: str(field.alias) for name, field in Budget.model_fields.items()}
            before = handle.last.spec.get("budget") or {}
            edits = [
                f"{aliases[name]} from {before.get(aliases[name], 'no limit')}"
                f" to {'no limit' if value is None else f'{value:g}'}"
                for name, value in limits.items()
                if before.get(aliases[name]) != value
            ]
            if not edits:
                raise SourceError("Nothing is changed: these are the limits that it has.")
            said = f"{handle.namespace}/{handle.name}: {', '.join(edits)}."
            change = lambda: handle.edit_budget(dry_run=not sure, **limits)  # noqa: E731
        else:
            change = lambda: getattr(handle, action)(dry_run=not sure)  # noqa: E731
        self._asked(change)
        return said

    def _handle(self, study: str) -> StudyHandle:
        namespace, _, name = study.partition(".")
        if not self._all and namespace != self._studies.namespace:
            raise NoStudy(f"There is no study {study} in {self.title}.")
        return self._asked(lambda: self._studies.get(name, namespace))

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except NotFound as error:
            raise NoStudy(f"{error}") from error
        except ClientError as error:
            raise SourceError(f"{error}") from error


def _line(view: StudyView) -> Line:
    final, best = view.status.final, view.best
    ago = datetime.now(UTC) - view.created
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
        changed=f"created {age(datetime.now().timestamp() - ago.total_seconds())} ago",
        is_running=view.state in ("Starting", "Running", "Refitting"),
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
    limits = {name: f"{budget[name]:g}" if name in budget else "" for name in EDITED}
    does = "The search goes by the new limits; a study that one of them has ended goes on if it is loosened."
    found.append(Action("budget", "Change the budget", does, limits))
    return found


def _limits(values: Mapping[str, str]) -> dict[str, float | None]:
    """The limits of a form, by the names of the client. Raises SourceError for what is no number."""
    names = {str(field.alias): name for name, field in Budget.model_fields.items()}
    found: dict[str, float | None] = {}
    for alias in EDITED:
        given = values.get(alias, "").strip()
        if not given:
            found[names[alias]] = None
            continue
        try:
            number = float(given)
        except ValueError:
            raise SourceError(
                f"{alias} must be a number, or empty for no limit (got {given})."
            ) from None
        found[names[alias]] = int(number) if number.is_integer() else number
    return found


def _full(view: StudyView) -> Report:
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
    try:
        spec = StudySpec.model_validate(view.spec)
        storage = Storage.open(root)
        now = datetime.now(UTC).timestamp()
        return report_of(
            Subject.named(view.name, spec, storage), storage, now, view.status.warnings
        )
    except (OSError, ValueError, StudyError, ManifestError) as error:
        raise SourceError(
            f"The records at {_without_options(root)} cannot be read from here: {error}"
        ) from error


def _without_options(uri: str | None) -> str:
    """A URI's options are for programs; empty for None."""
    return (uri or "").partition("?")[0]
