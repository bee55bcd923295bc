"""One study of a cluster."""

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, overload

from finetune_api.labels import RETRY
from finetune_api.search import Budget
from finetune_api.status import StudyStatus
from finetune_api.texts import plain
from finetune_client.cluster import Cluster
from finetune_client.errors import ClientError, NotFound, StudyFailed
from finetune_client.following import follow
from finetune_client.progress import screen
from finetune_client.reasons import Event, why
from finetune_client.text import as_html, line_of
from finetune_client.view import Best, StudyView

if TYPE_CHECKING:  # it takes a second
    import pandas as pd

    from finetune_reports.document import Report


class StudyHandle:
    """A study by namespace and name. Each property asks the API server; `last` is what it answered last.

    Every method raises a ClientError: NotFound, Refused with the API server's message, or Unreachable. With `dry_run`
    a change is not made: the API server only says whether it would accept it.
    """

    def __init__(self, cluster: Cluster, view: StudyView) -> None:
        self._cluster = cluster
        self.last = view

    @property
    def name(self) -> str:
        """The study's name."""
        return self.last.name

    @property
    def namespace(self) -> str:
        """The study's namespace."""
        return self.last.namespace

    def read(self) -> StudyView:
        """The study as it is now."""
        self.last = StudyView(self._cluster.read(self.namespace, self.name))
        return self.last

    @property
    def status(self) -> StudyStatus:
        """The status as it is now."""
        return self.read().status

    @property
    def state(self) -> str:
        """The word that kubectl shows in its column STATE; empty until the operator has seen the study."""
        return self.read().state

    @property
    def best(self) -> Best | None:
        """The best trial so far: parameters, metrics, value and its standard error; None before one has a value."""
        return self.read().best

    def trials(self) -> "pd.DataFrame":
        """The best trials so far, at most ten, the best first, with the columns of `trials.csv`.

        A status has no room for more: the table of all trials is in the folder `table.attrs["resultsUri"]`.
        """
        return self.read().trials()

    def why(self) -> list[str]:
        """Why the study waits or has failed: its conditions, then its newest Warning Events. Empty if it trains.

        Without the right to list Events, the conditions alone.
        """
        view = self.read()
        try:
            events = self.events()
        except ClientError:
            events = []
        return why(view, events)

    def events(self) -> list[Event]:
        """The Events about the study, the newest last."""
        found = self._cluster.events(self.namespace, self.last.uid)
        return sorted(map(Event.of, found), key=lambda event: event.time)

    @overload
    def logs(self, follow: Literal[False] = False, pod: str | None = None) -> str: ...

    @overload
    def logs(self, follow: Literal[True], pod: str | None = None) -> Iterator[str]: ...

    def logs(self, follow: bool = False, pod: str | None = None) -> str | Iterator[str]:
        """What the driver has logged, or with `follow` its lines as they come, until it ends.

        `pod` names another pod of the study; the default is the newest in which its driver runs. Raises NotFound
        if there is none.
        """
        pod = pod or self._cluster.driver_pod(self.namespace, self.last.uid)
        lines = self._cluster.log(self.namespace, pod, follow)
        return lines if follow else "".join(f"{line}\n" for line in lines)

    def wait(self, progress: bool = True, timeout: float | None = None) -> "StudyHandle":
        """Return when the study is Complete, showing how it gets on.

        The study is watched, not asked again and again, and the wait goes on when the connection breaks. An edit
        or a retry that the operator has not seen yet is waited for.

        Args:
            progress: show a bar in a terminal, a table in a notebook, plain lines elsewhere.
            timeout: seconds to wait at most.

        Raises:
            StudyFailed: with the reason and the message of its condition Failed.
            TimeoutError: after `timeout` seconds; the study goes on.
            NotFound: if it is deleted.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with screen(progress) as shown:
            for view in follow(self._cluster, self.namespace, self.name, deadline):
                if view.uid != self.last.uid:
                    raise NotFound(f"{self.name} was deleted; another study has its name")
                self.last = view
                shown.show(view)
                if view.is_over:
                    return self._ended()
        raise TimeoutError(f"{self.name} has not ended after {timeout:g} s: {line_of(self.last)}")

    def _ended(self) -> "StudyHandle":
        failed = self.last.status.condition("Failed")
        if failed is not None and failed.status == "True":
            raise StudyFailed(self.name, failed.reason, failed.message)
        return self

    def suspend(self, dry_run: bool = False) -> "StudyHandle":
        """Set `spec.suspend`: pods save and end, records stay. Returns before they have ended."""
        return self._edit({"spec": {"suspend": True}}, dry_run)

    def resume(self, dry_run: bool = False) -> "StudyHandle":
        """Unset `spec.suspend`: the next attempt goes on from the records."""
        return self._edit({"spec": {"suspend": False}}, dry_run)

    def retry(self, dry_run: bool = False) -> "StudyHandle":
        """Give the annotation `finetune.dev/retry` a new value, the time: a study that failed tries again."""
        now = datetime.now(UTC).isoformat()
        return self._edit({"metadata": {"annotations": {RETRY: now}}}, dry_run)

    def edit_budget(self, dry_run: bool = False, **limits: float | None) -> "StudyHandle":
        """Change these limits of `spec.budget`, such as `max_trials=48`; None takes a limit away.

        A study that such a limit has ended goes on if it is loosened. Raises TypeError for a limit that there is not.
        """
        known = Budget.model_fields
        for name in limits:
            if name not in known:
                raise TypeError(f"{name} must be a limit of the budget: {', '.join(known)}")
        changes = {str(known[name].alias): value for name, value in limits.items()}
        return self._edit({"spec": {"budget": changes}}, dry_run)

    def delete(self) -> None:
        """Delete the study and its pods; what it stored stays."""
        self._cluster.delete(self.namespace, self.name)

    def _edit(self, change: dict[str, Any], dry_run: bool) -> "StudyHandle":
        view = StudyView(self._cluster.patch(self.namespace, self.name, change, dry_run))
        if not dry_run:
            self.last = view
        return self

    def report(self) -> "Report":
        """What the status says, as the document of a report. `missing` says what only the records have, and where."""
        from finetune_client.status_report import status_report

        return status_report(self.read())

    def __repr__(self) -> str:
        """What was known last; asks nothing."""
        return f"<StudyHandle {plain(self.namespace)}/{plain(self.name)} {line_of(self.last)}>"

    def _repr_html_(self) -> str:
        """The study now; if the API server cannot be asked, what was known last, and why."""
        try:
            return as_html(self.last, self.why())
        except ClientError as error:
            return as_html(self.last, [f"not read again: {error}"])
