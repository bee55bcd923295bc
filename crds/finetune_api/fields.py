"""The reference of every field of a study, as Markdown: `docs/fields.md`, derived from the pydantic models."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from finetune_api.classes import CLASS_KIND, ClassSpec
from finetune_api.docstrings import attribute_docs
from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.metrics import METRIC_WORDS, natural_goal
from finetune_api.schema import Model, Rule
from finetune_api.spaces import DOMAINS
from finetune_api.study import API_VERSION, KIND, ObjectMeta, StudySpec
from finetune_api.tasks import ALL_METRICS, TASKS

_HYPERPARAMETERS = "hyperparameters.md"
_SPACE = "spec.searchSpaces"
_LONGEST_CELL = 240
"""Characters of a meaning that a table can hold; a longer one stands below its table."""

_ANY_NUMBER = 2**53
"""A bound beyond this is none to a reader."""

NOT_DOCUMENTED = {
    "metadata.name": "Name of the study.",
    "metadata.namespace": "Namespace of the study.",
    "metadata.labels": "Labels, as on any Kubernetes object.",
    "metadata.annotations": "Annotations, as on any Kubernetes object.",
    "spec.objective.secondary.metric": "The metric of this objective.",
    "spec.tracking.wandb.project": "Name of the project.",
    "spec.tracking.wandb.entity": "User or team that the project belongs to. Default: that of the API key.",
    "spec.cluster.nodeSelector": "Labels that a node must have to run the study's pods.",
}
"""Meanings of fields that have no docstring; a docstring takes precedence."""

_IGNORED = "*Ignored on a laptop.*"

WRITTEN_METADATA = ("name", "namespace", "labels", "annotations")
"""The fields of ObjectMeta that people write; the API server writes the others."""

IGNORED_ON_A_LAPTOP: Mapping[str, str] = {
    "metadata.namespace": "only trackers show it",
    "spec.className": "`finetune run study.yaml --class gpu.yaml` applies a class that is a file",
    "metadata.labels": "",
    "metadata.annotations": "",
    "spec.tracking.secretName": "trackers read the environment of your shell",
    "spec.cluster.minWorkers": "",
    "spec.cluster.resourcesPerWorker": "trials share this machine's processors and GPUs; only "
    "`finetune plan` reads it, for the GPU hours and the price of the study on a cluster",
    "spec.cluster.queueName": "",
    "spec.cluster.priorityClassName": "",
    "spec.cluster.nodeSelector": "",
    "spec.cluster.tolerations": "",
    "spec.cluster.podTemplate": "",
    "spec.storage": "records, results and model go to `runs/<name>`, or to the folder that `--into` names",
    "spec.onExisting": "the same command resumes what is in the folder",
    "spec.suspend": "Ctrl-C stops, the same command resumes",
    "spec.ttlSecondsAfterFinished": "",
}
"""Fields that `finetune run` accepts and ignores → what takes their place."""

METRIC_DOCS: Mapping[str, str] = {
    "accuracy": "Share of rows predicted right; in MultiLabel, of rows with all labels right (subset accuracy); in "
    "TokenClassification, of words with the right tag.",
    "precision_micro": "Precision over all predictions together. In TokenClassification precision, recall and F1 are of "
    "entities: one is found if its first word, its last word and its type are right; their types are the classes.",
    "precision_macro": "Precision of each class or label, their mean.",
    "precision_weighted": "Precision of each class or label, their mean weighted by the number of its rows.",
    "recall_micro": "Recall over all rows together.",
    "recall_macro": "Recall of each class or label, their mean.",
    "recall_weighted": "Recall of each class or label, their mean weighted by the number of its rows.",
    "f1_micro": "F1 over all predictions together; in SingleLabel this is the accuracy.",
    "f1_macro": "F1 of each class or label, their mean: rare ones count as much as frequent ones.",
    "f1_weighted": "F1 of each class or label, their mean weighted by the number of its rows.",
    "jaccard": "Predicted and true labels in common, as a share of those that are either. SingleLabel: of each class, "
    "their mean. MultiLabel: of each row, their mean.",
    "matthews": "Matthews correlation coefficient; 0 is no better than chance. MultiLabel: of each label, their mean.",
    "balanced_accuracy": "Mean recall of the classes that occur. MultiLabel: of each label's yes and no, their mean.",
    "hamming_loss": "Share of wrong predictions; in MultiLabel, of all labels of all rows.",
    "roc_auc": "Area under the ROC curve of each class or label against the rest, their mean.",
    "average_precision": "Average precision of each class or label against the rest, their mean.",
    "loss": "Mean log loss; in Regression, mean squared error.",
    "mse": "Mean squared error.",
    "rmse": "Root of the mean squared error, in the unit of the labels.",
    "mae": "Mean absolute error, in the unit of the labels.",
    "r2": "Share of the variance that is explained; 0 is no better than the mean of the rows.",
    "pearson": "Linear correlation of predictions and labels.",
    "spearman": "Correlation of the ranks of predictions and labels.",
}
"""What each metric is."""


@dataclass(frozen=True)
class FieldRow:
    """One field: its path (`spec.dataset.split.seed`), and the cells of its row."""

    path: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """An object of a study: its path, what it is, its fields, and what must hold across them."""

    path: str
    what: str
    rows: tuple[FieldRow, ...]
    rules: tuple[str, ...]


def sections() -> list[Section]:
    """Every object of a study, in the order of its fields, each model once."""
    return _sections(StudySpec)


def _sections(spec: type[Model]) -> list[Section]:
    found: list[Section] = []
    paths: dict[type[Model], str] = {}
    if spec is StudySpec:
        _add("metadata", ObjectMeta, found, paths)
    _add("spec", spec, found, paths)
    return found


def _add(
    path: str, model: type[Model], found: list[Section], paths: dict[type[Model], str]
) -> None:
    paths[model] = path
    children = [
        (f"{path}.{field.alias}", inner)
        for name, field in model.model_fields.items()
        if (inner := model_in(field.annotation)) is not None and _is_shown(model, name)
    ]
    place = len(found)
    for child, inner in children:
        if inner not in paths and inner not in (FixedHyperparameters, SearchSpace):
            _add(child, inner, found, paths)
    rules = tuple(rule_text(f"`{path}`", rule) for rule in model.RULES)
    rows = tuple(_rows(path, model, paths))
    what = "" if model is ObjectMeta else one_line(model.__doc__)
    found.insert(place, Section(path, what, rows, rules))


@cache
def rows_of(path: str, model: type[Model]) -> tuple[FieldRow, ...]:
    """The fields of a model that is at `path`, with the paths of the objects below."""
    paths: dict[type[Model], str] = {}
    for field in model.model_fields.values():
        inner = model_in(field.annotation)
        if inner is not None:
            paths[inner] = f"{path}.{field.alias}"
    return tuple(_rows(path, model, paths))


def _rows(path: str, model: type[Model], paths: Mapping[type[Model], str]) -> Iterator[FieldRow]:
    schema = model.model_json_schema()
    docs = attribute_docs(model)
    for name, field in model.model_fields.items():
        if not _is_shown(model, name):
            continue
        here = f"{path}.{field.alias}"
        inner = model_in(field.annotation)
        described = _description(schema["properties"][field.alias])
        own = one_line(docs.get(name) or NOT_DOCUMENTED.get(here) or described)
        if inner is not None and (not own or own.startswith("Default")):
            own = f"{first_sentence(inner.__doc__)} {own}".rstrip()
        kind = _kind(schema["properties"][field.alias], inner, paths)
        yield FieldRow(here, kind, _default(field), own)


def _description(node: Mapping[str, Any]) -> str | None:
    """What a schema says of a field; in domains of search spaces, nothing else does."""
    options = [option.get("description") for option in node.get("anyOf", [])]
    return next(filter(None, [node.get("description"), *options]), None)


def _is_shown(model: type[Model], name: str) -> bool:
    return model is not ObjectMeta or name in WRITTEN_METADATA


def model_in(annotation: Any) -> type[Model] | None:
    """The model that a field holds, alone, optionally or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def _kind(
    node: dict[str, Any],
    inner: type[Model] | None,
    paths: Mapping[type[Model], str],
) -> str:
    """The type of a field or its allowed values, in words."""
    if node.get("x-kubernetes-int-or-string"):
        return "quantity such as `2`, `500m` or `16Gi`"
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        node = {**options[0], **{key: value for key, value in node.items() if key != "anyOf"}}
    if "$ref" in node or "properties" in node:
        return _object(inner, paths)
    if "enum" in node:
        whole = tuple(node["enum"]) == METRIC_WORDS
        return "[metric](#metrics)" if whole else ", ".join(f"`{word}`" for word in node["enum"])
    match node["type"]:
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number":
            return f"{node['type']}{_bounds(node)}"
        case "string":
            return f"text{_length(node)}"
        case "array":
            few, most = node.get("minItems", 0), node["maxItems"]
            counted = f"{few} to {_number(most)}" if few else f"at most {_number(most)}"
            return f"list of {counted}: {_kind(node['items'], inner, paths)}"
        case _:
            values = node.get("additionalProperties")
            of = _kind(values, inner, paths) if isinstance(values, dict) else ""
            return f"map of text to {of}" if of else "object"


def _object(inner: type[Model] | None, paths: Mapping[type[Model], str]) -> str:
    if inner is FixedHyperparameters:
        return f"[hyperparameters]({_HYPERPARAMETERS})"
    if inner is SearchSpace:
        return f"[search space](#{_anchor(_SPACE)})"
    assert inner is not None
    return f"[object](#{_anchor(paths[inner])})"


def _bounds(node: Mapping[str, Any]) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    high = None if high is not None and high > _ANY_NUMBER else high
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    words = {"above": above, "at least": low, "below": below, "at most": high}
    return "".join(
        f", {word} {_number(value)}" for word, value in words.items() if value is not None
    )


def _length(node: Mapping[str, Any]) -> str:
    pattern = node.get("pattern")
    most = node.get("maxLength")
    size = "" if most is None else f", at most {_number(most)} characters"
    size = ", one character" if most == 1 else size
    return f"{size}, matching `{pattern}`" if pattern else size


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is PydanticUndefined or value is None or isinstance(value, Model):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value or value == 0 else ""


def one_line(text: str | None) -> str:
    """The text without its line breaks."""
    return " ".join((text or "").split())


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=\.) ", one_line(text))[0]


def rule_text(path: str, rule: Rule) -> str:
    """What must hold, with the field that an error would name, unless the text names it itself."""
    if rule.message.startswith("must"):
        return f"{path} {_sentence(rule.message)}"
    name = rule.field.lstrip(".") or path
    known = name == path or name.rpartition(".")[2] in rule.message
    return _sentence(rule.message) if known else f"`{name}`: {_sentence(rule.message)}"


def _anchor(path: str) -> str:
    """The anchor that GitHub gives the heading of a path."""
    return re.sub(r"[^\w -]", "", path.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(rows: tuple[FieldRow, ...]) -> Iterator[str]:
    yield "| field | type or allowed values | default | meaning |"
    yield "|---|---|---|---|"
    long = [row for row in rows if len(row.meaning) > _LONGEST_CELL]
    for row in rows:
        name = row.path.rpartition(".")[2]
        meaning = "See below the table." if row in long else row.meaning
        if row.path in IGNORED_ON_A_LAPTOP:
            meaning += f" {_IGNORED}"
        yield f"| `{name}` | {_cell(row.kind)} | {_cell(row.default)} | {_cell(meaning)} |"
    for row in long:
        first, *others = _by_word(row)
        yield from ("", f"`{row.path.rpartition('.')[2]}`: {first}".rstrip())
        if others:
            yield from ("", *(f"- {other}" for other in others))


def _by_word(row: FieldRow) -> list[str]:
    """A meaning, cut before each of the field's allowed words that begins a sentence or follows a semicolon."""
    words = "|".join(re.findall(r"`(\w+)`", row.kind))
    if not words:
        return [row.meaning]
    parts = re.split(rf"(?:^|(?<=[.;] ))(?=(?:{words})\b)", row.meaning)
    return [re.sub(r";$", ".", part.strip()) for part in parts]


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {section.path}", "")
    ignored = any(section.path.startswith(f"{path}.") for path in IGNORED_ON_A_LAPTOP)
    ignored = ignored or section.path in IGNORED_ON_A_LAPTOP
    if section.what:
        yield from (f"{section.what} {_IGNORED}" if ignored else section.what, "")
    yield from _table(section.rows)
    if section.rules and section.path != "spec":
        yield from ("", "What must hold:", "", *(f"- {rule}" for rule in section.rules))


def _search_spaces() -> Iterator[str]:
    """What a search space is; each hyperparameter has a domain of its own type, of which two stand for all."""
    number, words = DOMAINS["learning_rate"], DOMAINS["optimizer"]
    yield from ("", f"## {_SPACE}", "")
    yield f"{one_line(SearchSpace.__doc__)} [{_HYPERPARAMETERS}]({_HYPERPARAMETERS}) lists the hyperparameters with"
    yield "their types and bounds. A domain of numbers has either `values`, or `min` and `max`; one of words has `values`."
    yield from ("", "| field | type or allowed values | default | meaning |", "|---|---|---|---|")
    properties = number.model_json_schema()["properties"]
    values = properties["values"]["anyOf"][0]
    descriptions = {name: node.get("description") for name, node in properties.items()}
    descriptions["values"] = descriptions["values"] or values["description"]
    kinds = {
        "values": f"list of values of the hyperparameter, at most {values['maxItems']}",
        "min": "number, as the hyperparameter's",
        "max": "number, as the hyperparameter's",
        "step": "number, above 0",
        "scale": "`Linear`, `Log`",
        "when": "map of hyperparameters to lists of their words",
    }
    for name, kind in kinds.items():
        yield f"| `{name}` | {kind} | | {_cell(one_line(descriptions[name]))} |"
    rules = dict.fromkeys(
        rule_text("a domain", rule) for model in (number, words) for rule in model.RULES
    )
    yield from ("", "What must hold:", "", *(f"- {rule}" for rule in rules))


def _metrics() -> Iterator[str]:
    yield from ("", "## Metrics", "")
    yield "For `spec.objective`. A metric that is undefined for the rows (a single class, say) is left out. With"
    yield "`spec.validation.slices` each also has `@worst`, that of the slice for which it is worst, and `@gap`, the largest"
    yield "difference between two slices of one division, of which less is better: `f1_macro@worst`, `f1_macro@gap`."
    yield from ("", f"| metric | {' | '.join(TASKS)} | better is | meaning |")
    yield f"|---|{'---|' * len(TASKS)}---|---|"
    for metric in ALL_METRICS:
        suits = " | ".join("yes" if metric in task.metrics else "" for task in TASKS.values())
        better = "higher" if natural_goal(metric) == "Maximize" else "lower"
        yield f"| `{metric}` | {suits} | {better} | {METRIC_DOCS[metric]} |"


def _laptop() -> Iterator[str]:
    yield from ("", "## On a laptop", "")
    yield "`finetune run` accepts the same manifest. Of `spec.cluster` it uses `workers` times `trialsPerWorker`,"
    yield "the number of trials that train at the same time, at most one per processor core; `--slots` overrides it. It"
    yield "ignores:"
    yield ""
    for path, instead in IGNORED_ON_A_LAPTOP.items():
        yield f"- `{path}`{f': {instead}' if instead else ''}"


def _named(path: str) -> tuple[str, ...]:
    return (path, _SPACE) if path == "spec" else (path,)


def fields_markdown() -> str:
    """The page."""
    every = sections()
    spec = next(section for section in every if section.path == "spec")
    lines = [
        "<!-- Generated by `python -m finetune_api.generate`. -->",
        "# Fields of a study",
        "",
        f"A study is a YAML or JSON document with `apiVersion: {API_VERSION}`, `kind: {KIND}`, `metadata` and `spec`.",
        "Each section below is one object of it. An empty default means that the field is unset, or that the fields of",
        "the object have their own defaults. Unknown fields are refused, with the nearest known name.",
        "",
        f"Elsewhere: the [hyperparameters]({_HYPERPARAMETERS}), [which searches can be combined](search.md), a",
        "[first study](first-study.md). `kubectl explain fts.spec.dataset` shows the same on a cluster, and",
        "`kubectl explain fts.status` the status.",
    ]
    names = [name for section in every for name in _named(section.path)]
    headings = [*names, "What must hold across objects", "Metrics", "On a laptop"]
    lines += ["", "Sections: " + " · ".join(f"[{name}](#{_anchor(name)})" for name in headings)]
    for section in every:
        lines += _section(section)
        if section.path == "spec":
            lines += _search_spaces()
    lines += ["", "## What must hold across objects", "", *(f"- {rule}" for rule in spec.rules)]
    lines += [*_metrics(), *_laptop()]
    return "\n".join(lines) + "\n"


def class_markdown() -> str:
    """The reference of a class."""
    every = _sections(ClassSpec)
    lines = [
        "<!-- Generated by `python -m finetune_api.generate`. -->",
        "# Fields of a class",
        "",
        f"A class is a YAML or JSON document with `apiVersion: {API_VERSION}`, `kind: {CLASS_KIND}`, `metadata.name` and",
        "`spec`. It is cluster-scoped. [Classes](classes.md) says how they are used.",
    ]
    for section in every:
        lines += [line.replace(f" {_IGNORED}", "") for line in _section(section)]
    return "\n".join(lines) + "\n"
