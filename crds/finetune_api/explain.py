"""What one field of a study is, for people who ask by its path: `finetune explain spec.dataset.split`."""

import re
from dataclasses import dataclass, replace

from finetune_api.fields import (
    IGNORED_ON_A_LAPTOP,
    FieldRow,
    first_sentence,
    model_in,
    one_line,
    rows_of,
    rule_text,
    sections,
)
from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.hints import dotted, hint, nearest
from finetune_api.hyperparameters import JSON_NAMES, Hyperparameters
from finetune_api.manifest import ManifestError, Problem
from finetune_api.metrics import METRIC_WORDS
from finetune_api.schema import Model
from finetune_api.spaces import DOMAINS
from finetune_api.study import KIND, PLURAL, FineTuneStudy, ObjectMeta

_ROOTS = {
    "metadata": FieldRow("metadata", "object", "required", "Name and labels of the study."),
    "spec": FieldRow("spec", "object", "required", ""),
}
_KINDS = (KIND.lower(), PLURAL, "fts", "study")
"""What may stand before a path, as with `kubectl explain`."""


@dataclass(frozen=True)
class Explained:
    """A field of a study, in plain text."""

    path: str
    """From the root: `spec.dataset.split`."""

    type: str
    """Its type with its bounds, or its allowed words."""

    default: str
    """`required`, a value, or empty if it is unset by default."""

    meaning: str
    on_a_laptop: str
    """That a laptop ignores it, and what takes its place; empty if a laptop uses it."""

    fields: tuple[FieldRow, ...]
    """The fields below it."""

    rules: tuple[str, ...]
    """What must hold across them."""


def explain(path: str) -> Explained:
    """What the field at `path` is; `spec.` may be left out, and a hyperparameter's name is enough.

    Raises ManifestError naming the nearest field, and the fields that there are, if there is no such field.
    """
    parts = [part for part in re.sub(r"\[[^]]*\]", "", path).split(".") if part]
    if parts and parts[0].lower() in _KINDS:
        parts = parts[1:]
    if not parts:
        parts = ["spec"]
    if parts[0] not in _ROOTS and not (len(parts) == 1 and parts[0] in JSON_NAMES):
        parts = ["spec", *parts]
    if parts[0] in JSON_NAMES:
        return _hyperparameter(parts[0])
    return _at(parts)


def _at(parts: list[str]) -> Explained:
    model: type[Model] | None = FineTuneStudy
    here, row = "", FieldRow("", "object", "", "")
    for at, name in enumerate(parts):
        if model is None:
            message = f"must be a field ({here} has none below it)"
            raise ManifestError([Problem(dotted(parts), message)])
        rows = {each.path.rpartition(".")[2]: each for each in _rows(here, model)}
        if name not in rows:
            raise _unknown(parts[: at + 1], [*rows])
        row = rows[name]
        here = f"{here}.{name}" if here else name
        model = _model_of(model, name)
    return _explained(here, row, model)


def _rows(path: str, model: type[Model]) -> list[FieldRow]:
    """The fields of a model; those of fixed hyperparameters with the defaults that they have."""
    if model is FineTuneStudy:
        return [*_ROOTS.values()]
    if model is SearchSpace:
        return [replace(row, kind="domain") for row in rows_of(path, model)]
    return [*rows_of(path, Hyperparameters if model is FixedHyperparameters else model)]


def _model_of(model: type[Model], name: str) -> type[Model] | None:
    """The model of a field, in a list or alone; None if it has no fields."""
    if model is SearchSpace:
        return DOMAINS[JSON_NAMES[name]]
    field = next(field for field in model.model_fields.values() if field.alias == name)
    return model_in(field.annotation)


def _explained(path: str, row: FieldRow, model: type[Model] | None) -> Explained:
    ignored = [name for name in IGNORED_ON_A_LAPTOP if path == name or path.startswith(f"{name}.")]
    laptop = "".join(f"; {IGNORED_ON_A_LAPTOP[name]}" for name in ignored if name == path)
    return Explained(
        path,
        plain(row.kind),
        plain(row.default),
        plain(row.meaning if model is None else _of_object(model, row.meaning)),
        plain(f"ignored on a laptop{laptop.rstrip('; ')}") if ignored else "",
        () if model is None else tuple(_plain_row(each) for each in _rows(path, model)),
        () if model is None else tuple(plain(rule_text(f"`{path}`", each)) for each in model.RULES),
    )


def _of_object(model: type[Model], meaning: str) -> str:
    """What is said of a field, and all that its model says of itself."""
    if model is ObjectMeta:
        return meaning
    whole = one_line(model.__doc__)
    return f"{whole} {meaning.removeprefix(first_sentence(whole)).strip()}".rstrip()


def _hyperparameter(name: str) -> Explained:
    """A hyperparameter, with the fields of its domain in a search space."""
    fixed = _at(["spec", "hyperparameters", name])
    domain = _at(["spec", "searchSpaces", name])
    fields = tuple(
        replace(row, path=f"spec.searchSpaces[].{name}{_end(row)}") for row in domain.fields
    )
    default = fixed.default or "the model's"
    return replace(fixed, default=default, fields=fields, rules=domain.rules)


def _end(row: FieldRow) -> str:
    return f".{row.path.rpartition('.')[2]}"


def _unknown(parts: list[str], known: list[str]) -> ManifestError:
    guess = hint(FineTuneStudy, parts, "extra_forbidden", None) or _elsewhere(parts[-1])
    there = "" if "the fields are" in guess else f"; the fields are {', '.join(known)}"
    return ManifestError([Problem(dotted(parts), f"must be a known field{guess}{there}")])


def _elsewhere(name: str) -> str:
    """The fields of other objects that may be meant."""
    paths = [row.path for section in sections() for row in section.rows]
    paths += [f"spec.hyperparameters.{each}" for each in JSON_NAMES]
    meant = nearest(name, [path.rpartition(".")[2] for path in paths])
    found = [path for path in paths if path.rpartition(".")[2] == meant]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _plain_row(row: FieldRow) -> FieldRow:
    return FieldRow(row.path, plain(row.kind), plain(row.default), plain(row.meaning))


def plain(markdown: str) -> str:
    """The text without links, code marks and emphasis."""
    if markdown == "[metric](#metrics)":
        return ", ".join(word for word in METRIC_WORDS if "@" not in word)
    pieces = markdown.split("`")  # each second one is code, in which brackets are what they are
    pieces[::2] = [_MARKS.sub(r"\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


_MARKS = re.compile(r"\[([^]]+)\]\([^)]*\)|\*\*")
"""Links, with what they show, and emphasis."""
