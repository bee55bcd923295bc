"""Rules that follow from the table of tasks (`tasks`): what a study of a task may say, in CEL and in Python."""

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from finetune_api.dataset import Dataset
from finetune_api.hyperparameters import (
    STRUCTURAL,
    Hyperparameters,
    json_name,
)
from finetune_api.metrics import plain
from finetune_api.schema import Rule
from finetune_api.spaces import (
    DOMAINS,
)
from finetune_api.tasks import TASKS, Task, TaskContract, by_metrics, metrics_in_cel


def _fixed_and_searched(spec: Any) -> list[str]:
    fixed = set(spec.hyperparameters.to_json()) if spec.hyperparameters else set()
    return sorted(fixed & {name for space in spec.search_spaces for name in space.domains()})


def _of_task(spec: Any, metrics: Iterable[str]) -> bool:
    """Whether the task has all these metrics."""
    return {plain(metric) for metric in metrics} <= set(TASKS[spec.task].metrics)


def _without_slices(spec: Any) -> list[str]:
    """The metrics over slices that the objective of a study without any names, and constraints that name some."""
    named = [*spec.objective.named, *(spec.objective.constraints or ())]
    return [] if spec.validation.slices else [one for one in named if "@" in one]


def _named(spec: Any) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Where a study fixes, searches or sets in a point which hyperparameter (JSON name), with its listed values."""
    points = {f".search.points[{n}]": point for n, point in enumerate(spec.search.points)}
    for place, fixed in {".hyperparameters": spec.hyperparameters, **points}.items():
        if fixed is not None:
            for name, value in fixed.to_json().items():
                yield f"{place}.{name}", name, (value,)
    for number, space in enumerate(spec.search_spaces):
        for name, domain in space.domains().items():
            yield f".searchSpaces[{number}].{name}", name, tuple(domain.values or ())


def _everywhere(hyperparameter: str, fixed: str, searched: str) -> str:
    """CEL: `fixed` for a value v and `searched` for a space s, wherever the hyperparameter has one."""
    own = f"self.hyperparameters.{hyperparameter}"
    return (
        f"(!has(self.hyperparameters) || !has({own}) || [{own}].all(v, {fixed}))"
        f" && self.search.points.all(p, !has(p.{hyperparameter}) || [p.{hyperparameter}].all(v, {fixed}))"
        f" && self.searchSpaces.all(s, !has(s.{hyperparameter}) || {searched})"
    )


def _unsuited(spec: Any) -> list[tuple[str, str]]:
    """Where a hyperparameter means nothing for the task."""
    names = {json_name(name) for name in TASKS[spec.task].without}
    message = f"must not be given with task {spec.task}, for which it means nothing"
    return [(place, message) for place, name, _ in _named(spec) if name in names]


def _unsuited_values(spec: Any) -> list[tuple[str, str]]:
    """Where a hyperparameter has a value that means nothing for the task."""
    refused = {json_name(name): name for name in TASKS[spec.task].without_values}
    return [
        (place, f"must be {_suited_values(spec.task, refused[name])} with task {spec.task}")
        for place, name, values in _named(spec)
        if name in refused and set(values) & set(TASKS[spec.task].without_values[refused[name]])
    ]


def _suited_values(task: Task, name: str) -> str:
    refused = TASKS[task].without_values[name]
    values = get_args(Hyperparameters.model_fields[name].annotation)
    return " or ".join(str(value) for value in values if value not in refused)


def _rules_of(task: Task) -> Iterator[Rule]:
    """What follows for the task's studies from its contract, but for metrics."""
    contract = TASKS[task]
    if contract.without:
        names = [json_name(name) for name in contract.without]
        yield Rule(
            cel=f"self.task != '{task}' || "
            + " && ".join(_everywhere(name, "false", "false") for name in names),
            message=f"with task {task} there must be no {', '.join(names)}",
            holds=lambda self: self.task != task or not _unsuited(self),
            each=_unsuited,
            field=".hyperparameters",
        )
    for name, refused in contract.without_values.items():
        words, listed = json_name(name), list(refused)
        yield Rule(
            cel=f"self.task != '{task}' || "
            + _everywhere(
                words, f"!(v in {listed!r})", f"s.{words}.values.all(v, !(v in {listed!r}))"
            ),
            message=f"with task {task} {words} must be {_suited_values(task, name)}",
            holds=lambda self: self.task != task or not _unsuited_values(self),
            each=_unsuited_values,
            field=".hyperparameters",
        )
    for name in contract.own_fields:
        word = str(Dataset.model_fields[name].alias)
        yield Rule(
            cel=f"self.task == '{task}' || !has(self.dataset.{word})",
            message=f"{word} must only be given with task {task}",
            holds=lambda self, name=name: (  # type: ignore[misc]  # the field of this rule
                self.task == task or getattr(self.dataset, name) is None
            ),
            field=f".dataset.{word}",
        )
    for name in contract.without_fields:
        word = str(Dataset.model_fields[name].alias)
        yield Rule(
            cel=f"self.task != '{task}' || !has(self.dataset.{word})",
            message=f"with task {task} there must be no {word}{_in_its_place(contract)}",
            holds=lambda self, name=name: (  # type: ignore[misc]  # the field of this rule
                self.task != task or getattr(self.dataset, name) is None
            ),
            field=f".dataset.{word}",
        )
    if contract.no_attributions:
        yield Rule(
            cel=f"self.artifacts.attributedRows == 0 || self.task != '{task}'",
            message=f"with task {task} attributedRows must be 0: {contract.no_attributions}",
            holds=lambda self: self.artifacts.attributed_rows == 0 or self.task != task,
            field=".artifacts.attributedRows",
        )
    if contract.no_ranks:
        yield Rule(
            cel=f"!has(self.ensemble) || self.ensemble.method != 'RankMean' || self.task != '{task}'",
            message=f"with task {task} method must be Mean or Weighted: {contract.no_ranks}",
            holds=lambda self: (
                self.ensemble is None or self.ensemble.method != "RankMean" or self.task != task
            ),
            field=".ensemble",
        )


def _in_its_place(contract: TaskContract) -> str:
    """What the task has in the place of a field that it does not have."""
    names = [str(Dataset.model_fields[name].alias) for name in contract.own_fields]
    return f": it has {', '.join(names)}" if names else ""


_METRICS_OF_TASKS = "; ".join(
    f"{', '.join(metrics)} for {' and '.join(tasks)}" for metrics, tasks in by_metrics().items()
)

TASK_RULES = (
    *(rule for task in TASKS for rule in _rules_of(task)),
    Rule(
        cel=f"[self.objective.metric].all(m, {metrics_in_cel('m')})",
        message=f"metric must suit the task: {_METRICS_OF_TASKS}",
        holds=lambda self: _of_task(self, [self.objective.metric]),
        field=".objective.metric",
    ),
    Rule(
        cel=f"self.objective.additionalMetrics.all(m, {metrics_in_cel('m')})",
        message="additionalMetrics must suit the task",
        holds=lambda self: _of_task(self, self.objective.additional_metrics),
        field=".objective.additionalMetrics",
    ),
    Rule(
        cel="!has(self.hyperparameters) || self.searchSpaces.all(s, "
        + " && ".join(
            f"!(has(self.hyperparameters.{json_name(n)}) && has(s.{json_name(n)}))" for n in DOMAINS
        )
        + ")",
        message="a hyperparameter must be either fixed in hyperparameters or searched",
        holds=lambda self: not _fixed_and_searched(self),
        field=".hyperparameters",
        detail=lambda self: f"got both for {', '.join(_fixed_and_searched(self))}",
    ),
    Rule(
        cel="!has(self.objective.earlyStoppingMetric)"
        f" || [self.objective.earlyStoppingMetric].all(m, {metrics_in_cel('m')})",
        message="earlyStoppingMetric must suit the task",
        holds=lambda self: _of_task(self, filter(None, [self.objective.early_stopping_metric])),
        field=".objective.earlyStoppingMetric",
    ),
    Rule(
        cel=f"self.objective.secondary.all(o, [o.metric].all(m, {metrics_in_cel('m')}))",
        message="secondary metrics must suit the task",
        holds=lambda self: _of_task(self, [one.metric for one in self.objective.secondary]),
        field=".objective.secondary",
    ),
    Rule(
        cel="has(self.validation.slices) || !([self.objective.metric] + self.objective.additionalMetrics"
        " + self.objective.secondary.map(o, o.metric)"
        " + (has(self.objective.constraints) ? self.objective.constraints : [])"
        " + (has(self.objective.earlyStoppingMetric) ? [self.objective.earlyStoppingMetric] : []))"
        ".exists(m, m.contains('@'))",
        message="metrics over slices must go with validation.slices",
        holds=lambda self: not _without_slices(self),
        field=".validation.slices",
        detail=lambda self: f"got none for {', '.join(_without_slices(self))}",
    ),
    Rule(
        cel="!has(self.ensemble) || self.refit",
        message="ensemble must go with refit",
        holds=lambda self: self.ensemble is None or self.refit,
        field=".ensemble",
    ),
    Rule(
        cel="self.refitRows != 'Train' || (self.refit && !has(self.validation.crossValidation)"
        " && self.validation.repeats == 1)",
        message="refitRows Train must go with refit and one training a trial: no crossValidation, repeats 1",
        holds=lambda self: (
            self.refit_rows != "Train" or (self.refit and self.validation.trainings == 1)
        ),
        field=".refitRows",
    ),
    Rule(
        cel="self.search.algorithm != 'PBT' || self.searchSpaces.all(s, "
        + " && ".join(f"!has(s.{json_name(name)})" for name in STRUCTURAL)
        + ")",
        message="algorithm PBT must not search hyperparameters that decide the structure of the model: "
        + ", ".join(map(json_name, STRUCTURAL)),
        holds=lambda self: (
            self.search.algorithm != "PBT"
            or not any(
                json_name(name) in space.domains()
                for space in self.search_spaces
                for name in STRUCTURAL
            )
        ),
        field=".searchSpaces",
    ),
)
