"""What the author of a manifest may have meant: names from other tools, misspelt names, YAML's surprises."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from finetune_api.schema import Model
from finetune_api.tasks import TASKS

_FIELDS_ELSEWHERE: Mapping[str, str] = {
    # transformers' TrainingArguments
    "num_train_epochs": "spec.hyperparameters.epochs",
    "per_device_train_batch_size": "spec.hyperparameters.batchSize",
    "per_device_eval_batch_size": "nothing: rows are evaluated as memory allows",
    "train_batch_size": "spec.hyperparameters.batchSize",
    "gradient_accumulation_steps": "spec.hyperparameters.gradientAccumulation",
    "lr_scheduler_type": "spec.hyperparameters.lrSchedule",
    "lr": "spec.hyperparameters.learningRate",
    "warmup_steps": "spec.hyperparameters.warmupRatio, a share of all steps",
    "optim": "spec.hyperparameters.optimizer",
    "max_seq_length": "spec.hyperparameters.maxLength",
    "label_smoothing_factor": "spec.hyperparameters.labelSmoothing",
    "fp16": "spec.compute.precision: FP16",
    "bf16": "spec.compute.precision: BF16",
    "tf32": "spec.compute.precision: TF32",
    "torch_compile": "spec.compute.compile",
    "metric_for_best_model": "spec.objective.metric",
    "greater_is_better": "spec.objective.goal",
    "model_name_or_path": "spec.model.name",
    "train_file": "spec.dataset.files.train",
    "validation_file": "spec.dataset.files.validation",
    "test_file": "spec.dataset.files.test",
    "early_stopping_patience": "spec.hyperparameters.earlyStoppingPatience",
    # Optuna, Ray Tune, Weights & Biases, Katib
    "n_trials": "spec.budget.maxTrials",
    "num_samples": "spec.budget.maxTrials",
    "maxTrialCount": "spec.budget.maxTrials",
    "parallelTrialCount": "spec.budget.maxParallelTrials",
    "maxFailedTrialCount": "spec.budget.maxFailedTrials",
    "max_concurrent_trials": "spec.budget.maxParallelTrials",
    "n_jobs": "spec.budget.maxParallelTrials",
    "timeout": "spec.budget.maxDurationSeconds",
    "time_budget_s": "spec.budget.maxDurationSeconds",
    "direction": "spec.objective.goal",
    "objectiveMetricName": "spec.objective.metric",
    "sampler": "spec.search.algorithm",
    "search_alg": "spec.search.algorithm",
    "pruner": "spec.search.scheduler",
    "early_terminate": "spec.search.scheduler",
    "feasibleSpace": "min, max, step and values of the hyperparameter itself",
    "parameters": "spec.searchSpaces",
    "param_space": "spec.searchSpaces",
    "searchSpace": "spec.searchSpaces, a list",
    "distribution": "scale",
    "log": "scale: Log",
    "low": "min",
    "high": "max",
    "choices": "values",
    "gpus": "spec.cluster.resourcesPerWorker: {nvidia.com/gpu: 1}",
}

EXAMPLE_TASK = next(iter(TASKS))
EXAMPLE_METRIC = TASKS[EXAMPLE_TASK].usual_metric

_EXAMPLES: Sequence[tuple[str, str]] = (
    (r"spec\.model", "{name: bert-base-uncased}"),
    (r"spec\.dataset", "{files: {train: rows.csv}, textColumns: [text], labelColumn: label}"),
    (r"spec\.dataset\.files", "{train: rows.csv}"),
    (r"spec\.dataset\.hub", "{path: ag_news}"),
    (r"spec\.objective", f"{{metric: {EXAMPLE_METRIC}}}"),
    (r"spec\.budget", "{maxTrials: 20}"),
    (r"spec\.search", "{algorithm: TPE, scheduler: {type: ASHA}}"),
    (r"spec\.search\.scheduler", "{type: ASHA}"),
    (r"spec\.hyperparameters", "{epochs: 3}"),
    (r"spec\.cluster", "{workers: 2}"),
    (r"spec\.searchSpaces\[\d+\]", "{learningRate: {min: 1e-5, max: 1e-3, scale: Log}}"),
    (r"spec\.searchSpaces\[\d+\]\.\w+", "{values: [8, 16]} or {min: 1e-5, max: 1e-3}"),
    (r"spec\.storage", "{uri: s3://bucket/studies}"),
)
"""What an object of the manifest, by its path, looks like."""

_GIVEN: Sequence[tuple[str, str]] = (
    *_EXAMPLES,
    (r"apiVersion", "finetune.dev/v1alpha1"),
    (r"kind", "FineTuneStudy"),
    (r"metadata", "{name: my-study}"),
    (r"metadata\.name", "my-study"),
    (r"spec\.task", EXAMPLE_TASK),
    (r"spec\.model\.name", "bert-base-uncased"),
    (r"spec\.dataset\.textColumns", "[text]"),
    (r"spec\.dataset\.files\.train", "rows.csv"),
    (r"spec\.dataset\.hub\.path", "ag_news"),
    (r"spec\.objective\.metric", EXAMPLE_METRIC),
    (r"spec\.searchSpaces", "[{learningRate: {min: 1e-5, max: 1e-3, scale: Log}}]"),
    (r"spec\.search\.algorithm", "TPE"),
)
"""What a field that must be given may be."""

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*(?:[-:,\u2013\u2014\u2026]|\.\.+|to)\s*({_NUMBER})\s*")
_BYTES = re.compile(r"\s*([0-9.]+)\s*([kKMGTPE]|[mgtpe](?=i?[bB]))(i?)[bB]?\s*")


def hint(root: type[Model], location: Sequence[int | str], kind: str, value: Any) -> str:
    """What to do about an error of pydantic's `kind` at `location` below `root`, as `; …`; empty if unknown."""
    path = dotted(location)
    if kind == "extra_forbidden":
        return _of_unknown(root, location)
    if kind == "missing":
        example = _example(_GIVEN, path)
        return f", such as {location[-1]}: {example}" if example else ""
    if kind == "quantity":
        return _of_quantity(value)
    if re.fullmatch(r"spec\.(hyperparameters|search\.points\[\d+\])\.\w+", path):
        several = _of_several(value)
        if several:
            return several
    if kind == "string_type" and isinstance(value, bool):
        return "; YAML reads y, n, yes, no, on and off as true or false: write it in quotes"
    if kind == "string_type" and isinstance(value, int | float):
        return "; write it in quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "; write it as a number, without quotes" if _is_number(value) else ""
    if kind == "list_type" and isinstance(value, str | dict):
        return (
            f"; write it as a list: [{value}]"
            if isinstance(value, str)
            else "; write it as a list: - …"
        )
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        example = _example(_EXAMPLES, path)
        return f", such as {example}" if example else ""
    return ""


def _example(examples: Sequence[tuple[str, str]], path: str) -> str:
    return next((text for pattern, text in examples if re.fullmatch(pattern, path)), "")


def _of_quantity(value: Any) -> str:
    """How to write an amount that is no quantity, because YAML reads it as a float or its unit is another."""
    if isinstance(value, float) and value > 0:
        thousandths = round(value * 1000, 6)
        or_else = f", or {thousandths:.0f}m" if thousandths.is_integer() else ""
        return f'; write it in quotes: "{value!r}"{or_else}'
    unit = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if unit is None:
        return ""
    number, letter, binary = unit.groups()
    letter = letter.upper()
    letter = "k" if letter == "K" and not binary else letter
    return f"; did you mean {number}{letter}{binary}?"


def _of_several(value: Any) -> str:
    """Where several values belong that are given as one."""
    if isinstance(value, list | dict):
        return "; values to search belong in spec.searchSpaces"
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return ""
    low, high = found.groups()
    return f"; a range belongs in spec.searchSpaces, as {{min: {low}, max: {high}}}"


def usual_metric(task: str) -> str:
    """A metric of the task; that of the examples for what is none."""
    return TASKS[task].usual_metric if task in TASKS else EXAMPLE_METRIC


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task; none if there is no such task."""
    return TASKS[task].metrics if task in TASKS else ()


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Which of `known` was probably meant; None if none is close."""
    plain = {_plain(each): each for each in known}
    found = get_close_matches(_plain(name), list(plain), n=1, cutoff=0.7)
    return plain[found[0]] if found else None


def _of_unknown(root: type[Model], location: Sequence[int | str]) -> str:
    name, known = str(location[-1]), _known(root, location[:-1])
    meant = nearest(name, known)
    if meant is not None and _plain(meant) == _plain(name):
        return f"; did you mean {meant}?"
    there = _FIELDS_ELSEWHERE.get(name) or next(iter(_places(root, name)), None)
    if there is not None:
        return f"; here that is {there}"
    if meant is not None:
        return f"; did you mean {meant}?"
    return f"; the fields are {', '.join(known)}" if 0 < len(known) <= 12 else ""


def _known(root: type[Model], location: Sequence[int | str]) -> list[str]:
    """The names of the fields of the object at `location`; none if any name is allowed."""
    model: type[Model] | None = root
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        model = _model_in(fields[part].annotation) if part in fields else None
    return [] if model is None else [f.alias or n for n, f in model.model_fields.items()]


def _places(root: type[Model], name: str, path: str = "", depth: int = 4) -> Iterator[str]:
    """The paths below `root` of fields with that name."""
    for own, field in root.model_fields.items():
        known = field.alias or own
        here = f"{path}.{known}" if path else known
        if here == "status":
            continue
        if path and _plain(known) == _plain(name):
            yield here
        inner = _model_in(field.annotation)
        if inner is not None and depth:
            listed = "[]" if "list[" in str(field.annotation) else ""
            yield from _places(inner, name, here + listed, depth - 1)


def _model_in(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    found = (_model_in(inner) for inner in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def dotted(location: Sequence[int | str]) -> str:
    """A location as an error names it: `spec.searchSpaces[0].epochs`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
