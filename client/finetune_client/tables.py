"""What the plugin prints for people."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import Condition, TrialResult
from finetune_api.texts import plain
from finetune_api.wording import counted, duration, ended, format_value
from finetune_client.facts import row, search
from finetune_client.view import Best, StudyView

_BAR_WIDTH = 40


def studies_table(views: Sequence[StudyView], all_namespaces: bool) -> Table:
    """A line a study, with the columns of `kubectl get`."""
    names = ["name", "state", "reason", "trials", "best", "workers"]
    if all_namespaces:
        names.insert(0, "namespace")
    now = datetime.now(UTC)
    found = [
        [*(row(view)[name] or "" for name in names), _age(view.created, now)] for view in views
    ]
    return _table([name.upper() for name in [*names, "age"]], found)


def status_page(view: StudyView, why: Sequence[str]) -> RenderableType:
    """State, why, search, trials, spending, best, top trials, conditions and warnings."""
    return Group(*_parts(view, why))


def best_page(best: Best) -> RenderableType:
    """Value, parameters and metrics of the best trial."""
    facts = {f"{best.metric}": f"{best.interval} (trial {best.trial}{_error_note(best)})"}
    parameters = {name: format_value(value) for name, value in best.params.items()}
    metrics = {name: format_value(value) for name, value in best.metrics.items()}
    return Group(_facts(facts), *_titled("Parameters", parameters), *_titled("Metrics", metrics))


def _parts(view: StudyView, why: Sequence[str]) -> Iterator[RenderableType]:
    status, best = view.status, view.best
    state = f"{view.state} ({view.reason})" if view.reason else view.state or "not seen yet"
    facts = {"study": f"{view.namespace}/{view.name}", "state": state}
    if why:
        facts["why"] = "\n".join(map(plain, why))
    elif status.message:
        facts["message"] = plain(status.message)
    facts["search"] = search(view)
    facts["trials"] = _counts(view)
    yield _facts(facts)
    if status.trials.planned:
        bar = ProgressBar(status.trials.planned, ended(status.trials), width=_BAR_WIDTH)
        yield Padding(bar, (0, 0, 0, 10))
    yield from _titled("Spending", {spent.what: str(spent) for spent in view.spending()})
    if best is not None:
        yield Text()
        yield _facts(
            {"best": f"{best.metric} {best.interval} (trial {best.trial}{_error_note(best)})"}
        )
    if status.top_trials:
        yield Text("\nBest trials")
        yield _trials(status.top_trials, view.metric)
    if status.conditions:
        yield Text("\nConditions")
        yield _conditions(status.conditions)
    if status.warnings:
        yield Text("\nWarnings")
        yield from (Text(f"  {plain(warning)}") for warning in status.warnings)
    if status.results_uri:
        yield Text(f"\nAll trials: {plain(status.results_uri)}")


def _counts(view: StudyView) -> str:
    counts = view.status.trials
    said = f"{counts.summary or '0'}: {counted(counts)}"
    return f"{said}, {counts.running} running" if counts.running else said


def _error_note(best: Best) -> str:
    return "" if best.standard_error is None else ", with its standard error"


def _titled(title: str, facts: Mapping[str, str]) -> Iterator[RenderableType]:
    if facts:
        yield Text(f"\n{title}")
        yield Padding(_facts(facts), (0, 0, 0, 2))


def _facts(facts: Mapping[str, str]) -> Table:
    """Names and values side by side; values may have several lines and are wrapped."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        told = "\n".join(plain(line) for line in value.splitlines())
        table.add_row(Text(f"{plain(name)}:"), Text(told, overflow="fold"))
    return table


def _trials(trials: Sequence[TrialResult], metric: str) -> Table:
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [
            str(trial.trial),
            f"{trial.value:.4f}",
            f"{trial.epoch:g}",
            *(format_value(trial.params.get(name, "")) for name in names),
        ]
        for trial in trials
    ]
    return _table(["TRIAL", metric, "BEST EPOCH", *names], rows)


def _conditions(conditions: Sequence[Condition]) -> Table:
    rows = [
        [each.type, each.status, each.reason, each.message]
        for each in sorted(conditions, key=lambda each: (each.status != "True", each.type))
    ]
    return _table(["TYPE", "STATUS", "REASON", "MESSAGE"], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table without lines, as kubectl's; what others wrote is text in it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(Text(plain(heading)), overflow="fold")
    for cells in rows:
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _age(since: datetime, now: datetime) -> str:
    seconds = (now - since).total_seconds()
    days = int(seconds // 86400)
    return f"{days} d" if days else duration(seconds)
