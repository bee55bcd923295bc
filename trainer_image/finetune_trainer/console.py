"""What a person sees while a study runs on a laptop: a live table or, without a terminal, plain lines."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import Findings, TrialCounts, TrialResult
from finetune_api.study import FineTuneStudy
from finetune_api.wording import counted as counted
from finetune_api.wording import duration as duration
from finetune_api.wording import ended
from finetune_api.wording import format_value as format_value
from finetune_trainer.search.items import AtWork

if TYPE_CHECKING:  # it imports torch
    from finetune_trainer.reproduce import Comparison, RunComparison


class StudyConsole:
    """Shows findings as they arrive; a context manager around the run."""

    def __init__(self, study: FineTuneStudy, console: Console | None = None) -> None:
        self._study = study
        self._console = console or Console()
        self._live = (
            Live(console=self._console, refresh_per_second=4, transient=True)
            if self._console.is_terminal
            else None
        )
        self._said: str = ""
        self._began: tuple[float, int] | None = None
        """When the first trials were counted, and how many had ended by then."""

        self.at_work: Sequence[AtWork] = ()
        """What slots are working on."""

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

    def watch(self, at_work: Sequence[AtWork]) -> None:
        """Take in what slots are working on."""
        if tuple(at_work) != tuple(self.at_work):
            self.at_work = at_work

    def interrupted(self) -> None:
        """Answer the first Ctrl-C."""
        self.say(
            "stopping: saving the progress of all trials; run the same command again to go on. "
            "Ctrl-C again stops without saving"
        )

    def show(self, phase: str, findings: Findings) -> None:
        """Show where the study stands."""
        if self._live:
            width, left = self._console.width, self._seconds_left(findings.trials)
            screen = _screen(self._study, phase, findings, self.at_work, left, width)
            self._live.update(screen)
            return
        line = _line(self._study, phase, findings)
        if line != self._said:
            self._said = line
            self._console.print(line, highlight=False)

    def _seconds_left(self, counts: TrialCounts) -> float | None:
        """Seconds that the remaining planned trials will take if they take as long as those so far; None if unknown."""
        now, done = time.monotonic(), ended(counts)
        if self._began is None:
            self._began = now, done
        since, before = self._began
        if not counts.planned or done <= before:
            return None
        return (now - since) / (done - before) * (counts.planned - done)


def _line(study: FineTuneStudy, phase: str, findings: Findings) -> str:
    counts = findings.trials
    text = f"{phase}: {counts.summary or '0'} trials"
    text += f", {counts.running} running, {counts.paused} paused"
    if findings.best:
        text += f", best {study.spec.objective.metric} {findings.best.value:.4f} (trial {findings.best.trial})"
    return text


def _screen(
    study: FineTuneStudy,
    phase: str,
    findings: Findings,
    at_work: Sequence[AtWork],
    seconds_left: float | None,
    width: int,
) -> RenderableType:
    counts = findings.trials
    planned = counts.planned or study.spec.budget.max_trials
    bar = ProgressBar(total=planned, completed=ended(counts), width=min(60, width))
    line = _line(study, phase, findings)
    if seconds_left:
        line += f", about {duration(seconds_left)} left"
    rows: list[RenderableType] = [
        Text(line),
        Padding(bar, 0),
    ]  # a bar alone ends without a new line
    if at_work:
        rows.append(Text(f"in training: {at_work_line(study, at_work)}"))
    rows.append(trials_table(study, findings.top_trials, "Best trials so far", width))
    return Group(*rows)


def at_work_line(study: FineTuneStudy, at_work: Sequence[AtWork]) -> str:
    """Each training with its epochs so far and those at which it is next compared: `trial 7 (fold 2): 1 of 3 epochs`."""
    folds = study.spec.validation.folds

    def told(one: AtWork) -> str:
        fold = f" (fold {one.run % folds})" if folds > 1 else ""
        doing = f" ({one.doing})" if one.doing else ""
        return f"trial {one.trial}{fold}: {one.epochs:g} of {one.to_epoch:g} epochs{doing}"

    return ", ".join(map(told, at_work))


def trials_table(
    study: FineTuneStudy, trials: list[TrialResult], title: str, width: int = 160
) -> Table:
    """Trials with their parameters, the best first, in `width` columns of a terminal.

    Parameters that do not fit are named below; those that are the same in all trials are left out first.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    columns = {
        "trial": [str(trial.trial) for trial in trials],
        study.spec.objective.metric: [f"{trial.value:.4f}" for trial in trials],
        "best epoch": [f"{trial.epoch:g}" for trial in trials],
    }
    parameters = {
        name: [format_value(trial.params.get(name, "")) for trial in trials] for name in names
    }
    shown = _that_fit(columns, parameters, width)
    left_out = [name for name in names if name not in shown]
    caption = f"not shown: {', '.join(left_out)}" if left_out else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    found = {**columns, **{name: parameters[name] for name in names if name in shown}}
    for heading in found:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*found.values(), strict=True):
        table.add_row(*row)
    return table


def _that_fit(
    columns: Mapping[str, list[str]], parameters: Mapping[str, list[str]], width: int
) -> set[str]:
    """The parameters that fit beside `columns`, those that vary first."""

    def taken(heading: str, cells: list[str]) -> int:
        return max(map(len, (heading, *cells))) + 3

    left = width - 1 - sum(taken(*column) for column in columns.items())
    shown = set()
    for name, cells in sorted(parameters.items(), key=lambda each: len(set(each[1])) < 2):
        if taken(name, cells) <= left:
            left -= taken(name, cells)
            shown.add(name)
    return shown


def metrics_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a metric, one column for each named set of metrics."""
    table = Table("metric", *columns, title=title, title_justify="left")
    for name in dict.fromkeys(name for metrics in columns.values() for name in metrics):
        cells = (f"{metrics[name]:.4f}" if name in metrics else "" for metrics in columns.values())
        table.add_row(name, *cells)
    return table


def comparison_lines(comparison: "Comparison") -> Iterator[RenderableType]:
    """The outcome of training a trial again: a table for each training, and whether it is the same."""
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
        yield f"{trial} did not come out the same; what it was trained with differs too"
    else:
        yield f"{trial} did not come out the same, although versions and machine are"


def _epochs_table(title: str, run: "RunComparison") -> Table:
    """Two rows per epoch: what was recorded, and what came out now."""
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
