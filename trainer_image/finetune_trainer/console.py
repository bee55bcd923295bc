"""What a person sees while a study runs on a laptop: a live table, or plain lines where nobody watches."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import Findings, TrialCounts, TrialResult
from finetune_api.study import FineTuneStudy

if TYPE_CHECKING:  # it imports torch
    from finetune_trainer.reproduce import Comparison, RunComparison


class StudyConsole:
    """Shows findings as they come; `with` it around the run."""

    def __init__(self, study: FineTuneStudy, console: Console | None = None) -> None:
        self._study = study
        self._console = console or Console()
        self._live = (
            Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        )
        self._said: str = ""

    def __enter__(self) -> "StudyConsole":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.__exit__(*error)

    def say(self, message: str) -> None:
        """Print one line above the table."""
        (self._live.console if self._live else self._console).print(message, highlight=False)

    def show(self, phase: str, findings: Findings) -> None:
        """Show where the study stands."""
        if self._live:
            self._live.update(_screen(self._study, phase, findings))
            return
        line = _line(self._study, phase, findings)
        if line != self._said:
            self._said = line
            self._console.print(line, highlight=False)


def _ended(counts: TrialCounts) -> int:
    return counts.completed + counts.stopped + counts.diverged + counts.failed


def _line(study: FineTuneStudy, phase: str, findings: Findings) -> str:
    counts = findings.trials
    text = f"{phase}: {counts.summary or '0'} trials"
    text += f", {counts.running} running, {counts.paused} paused"
    if findings.best:
        text += f", best {study.spec.objective.metric} {findings.best.value:.4f} (trial {findings.best.trial})"
    return text


def _screen(study: FineTuneStudy, phase: str, findings: Findings) -> RenderableType:
    counts = findings.trials
    planned = counts.planned or study.spec.budget.max_trials
    bar = ProgressBar(total=planned, completed=_ended(counts), width=60)
    line = Text(_line(study, phase, findings))
    return Group(line, bar, trials_table(study, findings.top_trials, "Best trials so far"))


def trials_table(study: FineTuneStudy, trials: list[TrialResult], title: str) -> Table:
    """Trials with their parameters, the best first."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    table = Table(title=title, title_justify="left")
    for heading in ("trial", study.spec.objective.metric, "epochs", *names):
        table.add_column(heading, justify="right")
    for trial in trials:
        values = (format_value(trial.params.get(name, "")) for name in names)
        table.add_row(str(trial.trial), f"{trial.value:.4f}", str(trial.epoch), *values)
    return table


def metrics_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a metric, one column for each named set of metrics."""
    table = Table("metric", *columns, title=title, title_justify="left")
    for name in dict.fromkeys(name for metrics in columns.values() for name in metrics):
        cells = (f"{metrics[name]:.4f}" if name in metrics else "" for metrics in columns.values())
        table.add_row(name, *cells)
    return table


def comparison_lines(comparison: "Comparison") -> Iterator[RenderableType]:
    """What came of training a trial again: a table for each of its runs, and whether it is the same."""
    trial = f"trial {comparison.trial}"
    for run in comparison.runs:
        title = f"{trial}, {run.name}" if run.name else trial
        yield _epochs_table(title, run)
        if run.first_difference:
            yield f"{title}: {run.first_difference}"
    for name, (then, now) in comparison.setting.items():
        yield f"{name}: {then} then, {now} now"
    if comparison.same:
        yield f"{trial} came out the same, to the last bit"
    elif comparison.setting:
        yield f"{trial} did not come out the same; what it was trained with is not the same either"
    else:
        yield f"{trial} did not come out the same, though versions and machine are"


def _epochs_table(title: str, run: "RunComparison") -> Table:
    """Two rows an epoch: what was recorded, and what it is now."""
    found = {
        (epoch, heading): result.at(epoch)
        for epoch in run.epochs
        for heading, result in (("recorded", run.then), ("now", run.now))
    }
    names = dict.fromkeys(name for values in found.values() for name in values)
    table = Table("epoch", "", *names, title=title, title_justify="left")
    for (epoch, heading), values in found.items():
        cells = (f"{values[name]:.8g}" if name in values else "" for name in names)
        table.add_row(f"{epoch:g}", heading, *cells)
    return table


def format_value(value: object) -> str:
    """A parameter as a person would write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
