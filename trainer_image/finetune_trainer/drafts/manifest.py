"""The manifest of a first study, with comments that say why each value was chosen."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from finetune_api.editor_schema import editor_line
from finetune_api.manifest import flow_yaml
from finetune_api.study import API_VERSION, KIND, MAX_NAME
from finetune_trainer.data.formats import UTF8, Layout, quoted
from finetune_trainer.drafts.choices import Choices, Model, source_of
from finetune_trainer.drafts.facts import Facts
from finetune_trainer.drafts.roles import Roles

_WIDE = 100


@dataclass(frozen=True)
class Source:
    """The files of the rows, as the manifest names them, and how they are written."""

    train: str
    layout: Layout
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class Draft:
    """A study that is about to be written."""

    name: str
    schema: str
    source: Source
    roles: Roles
    facts: Facts
    model: Model
    choices: Choices


def study_name(text: str) -> str:
    """The nearest name that a study can have."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"study-{plain}"
    return plain[:MAX_NAME].strip("-")


def manifest_of(draft: Draft) -> str:
    """The manifest as YAML."""
    sections = (
        _head(draft),
        _task(draft),
        _model(draft),
        _dataset(draft),
        _objective(draft),
        _hyperparameters(draft),
        _spaces(draft),
        _search(draft),
    )
    return "".join(f"{line}\n" for section in sections for line in section)


def _comment(text: str, indent: int = 2) -> Iterator[str]:
    """A comment in lines. (Names in it are printable: `quoted`.)"""
    edge = " " * indent
    for line in wrap(text, _WIDE - indent - 2, break_long_words=False, break_on_hyphens=False):
        yield f"{edge}# {line}"


def _field(name: str, value: Any, indent: int = 2) -> str:
    return f"{' ' * indent}{name}: {flow_yaml(value)}"


def _head(draft: Draft) -> Iterator[str]:
    yield editor_line(draft.schema)
    yield from _comment(
        f"Written by `finetune init` from {draft.facts.rows:,} rows of {quoted(draft.source.train)}. Each value is a "
        "guess that you may change. `finetune explain FIELD` says what a field is, such as "
        "`finetune explain dataset.split`.",
        0,
    )
    yield f"apiVersion: {API_VERSION}"
    yield f"kind: {KIND}"
    yield "metadata:"
    yield _field("name", draft.name)
    yield "spec:"


def _task(draft: Draft) -> Iterator[str]:
    roles, facts = draft.roles, draft.facts
    label = quoted(roles.label.name)
    shown = ", ".join(f"{quoted(name)} ({count:,})" for name, count in facts.classes[:6])
    shown += ", …" if len(facts.classes) > 6 else ""
    why = {
        "SingleLabel": f"Each row has one of {len(facts.classes)} classes in {label}: {shown}.",
        "MultiLabel": f"Each row has any number of {len(facts.classes)} labels: {shown}.",
        "Regression": f"{label} has {roles.label.distinct:,} different numbers.",
        "TokenClassification": f"Texts have entities or tags of {len(facts.classes)} types: {shown}.",
    }
    yield from _comment(why[roles.task].replace(", ….", ", …"))
    yield _field("task", roles.task)


def _model(draft: Draft) -> Iterator[str]:
    model = draft.model
    where = (
        "It is here."
        if model.family
        else "Its configuration was not looked at: it is not on this machine."
    )
    yield from _comment(
        f"A folder, which starts at this file's folder, or a hub id. {where} Larger ones know more and take longer: "
        "bert-base-uncased, answerdotai/ModernBERT-base, FacebookAI/xlm-roberta-base (many languages)."
    )
    yield "  model:"
    yield _field("name", model.name, 4)


def _dataset(draft: Draft) -> Iterator[str]:
    source, roles, facts = draft.source, draft.roles, draft.facts
    yield "  dataset:"
    yield "    files:"
    for part in ("train", "validation", "test"):
        location = getattr(source, part)
        if location is not None:
            yield _field(part, location, 6)
    if source.layout.encoding != UTF8:
        yield from _comment("The file is not UTF-8; look at some letters with accents.", 6)
        yield _field("encoding", source.layout.encoding, 6)
    if source.layout.delimiter is not None:
        yield _field("delimiter", source.layout.delimiter, 6)
    yield from _columns(roles)
    if facts.duplicates:
        yield from _comment(
            f"Rows with the same texts as an earlier one: {facts.duplicates:,}. They are left out, or validation would "
            "measure what was learned by heart.",
            4,
        )
        yield "    cleaning: {duplicates: Drop}"
    yield from _split(draft)


def _columns(roles: Roles) -> Iterator[str]:
    if roles.tokens is not None:
        yield _field("tokensColumn", roles.tokens.name, 4)
        yield _field("tagsColumn", roles.label.name, 4)
        return
    yield _field("textColumns", [column.name for column in roles.texts], 4)
    if len(roles.texts) > 2:
        yield "    joinTextColumns: true"
    if len(roles.labels) > 1:
        yield _field("labelColumns", [column.name for column in roles.labels], 4)
    else:
        kind = "spansColumn" if roles.task == "TokenClassification" else "labelColumn"
        yield _field(kind, roles.label.name, 4)
    if roles.separator is not None:
        yield _field("labelSeparator", roles.separator, 4)
    for group in roles.groups[:2]:
        yield from _comment(
            f"{quoted(group.name)} has {group.distinct:,} values, each in {group.filled / group.distinct:.1f} rows. If "
            "rows with the same value are alike (one author, one document), keep them in one split by:",
            4,
        )
        yield f"    # {_field('groupColumn', group.name, 0)}"


def _split(draft: Draft) -> Iterator[str]:
    source, choices, facts = draft.source, draft.choices, draft.facts
    shares = {
        part: getattr(choices, part)
        for part in ("validation", "test")
        if getattr(source, part) is None
    }
    if not shares:
        return
    many = (
        "few rows need large shares to measure anything"
        if facts.usable < 1000
        else "enough rows to measure by"
    )
    yield from _comment(f"Shares of {facts.usable:,} rows that are set aside: {many}.", 4)
    yield "    split:"
    for part, share in shares.items():
        yield _field(part, share, 6)
    if draft.roles.task != "Regression":
        yield "      stratify: true   # each split has its share of each class"
    yield "      seed: 7"


def _objective(draft: Draft) -> Iterator[str]:
    choices = draft.choices
    why = {
        "f1_macro": "Some classes are rare: f1_macro counts each as much as the frequent ones.",
        "accuracy": "The classes are about as frequent as each other: accuracy is the share of rows that are right.",
        "f1_micro": "f1_micro is F1 over all predictions together.",
        "rmse": "Root of the mean squared error, in the unit of the labels.",
    }
    yield from _comment(
        f"{why[choices.metric]} `finetune explain objective.metric` lists the others."
    )
    yield "  objective:"
    yield _field("metric", choices.metric, 4)
    yield _field("additionalMetrics", list(choices.additional), 4)


def _hyperparameters(draft: Draft) -> Iterator[str]:
    choices = draft.choices
    yield "  # The same in every trial."
    yield "  hyperparameters:"
    if choices.recommended_epochs > choices.epochs:
        yield from _comment(
            f"docs/recommended.md has {choices.recommended_epochs} for so few rows; {choices.epochs} take less time.",
            4,
        )
    yield _field("epochs", choices.epochs, 4)
    told = f"95 % of the texts have at most {choices.length} tokens"
    told = (
        f"{told}, by their characters (the model is not here to count them)"
        if choices.is_estimate
        else told
    )
    cut = "" if choices.length <= choices.max_length else "; longer ones are cut off"
    yield from _comment(f"{told}{cut}.", 4)
    yield _field("maxLength", choices.max_length, 4)
    if choices.pooling is not None:
        yield from _comment(
            "A sentence encoder is trained for the mean of its states (docs/techniques.md). The exported model then has "
            "a head of its own: load it with trust_remote_code=True.",
            4,
        )
        yield _field("pooling", choices.pooling, 4)
    if choices.thresholds:
        yield from _comment("Some labels are rare, and want a lower threshold than 0.5.", 4)
        yield "    thresholdTuning: PerLabel"


def _spaces(draft: Draft) -> Iterator[str]:
    choices = draft.choices
    low, high = choices.rates
    yield from _comment(
        "What is searched. The first trial has what is recommended for the model and so many rows "
        "(docs/recommended.md)."
    )
    yield "  searchSpaces:"
    yield from _comment(f"Around {_number(choices.rate)} ({source_of(draft.model)}).", 4)
    yield f"    - learningRate: {{min: {_number(low)}, max: {_number(high)}, scale: Log}}"
    yield _field("batchSize", {"values": list(choices.batch_sizes)}, 6)
    yield "      weightDecay: {min: 0, max: 0.1}"
    if choices.balances:
        (most, many), (least, few) = draft.facts.classes[0], draft.facts.classes[-1]
        yield from _comment(
            f"{quoted(least)} has {few:,} rows or entities, {quoted(most)} has {many:,}.", 6
        )
        yield _field("classBalance", {"values": list(choices.balances)}, 6)


def _search(draft: Draft) -> Iterator[str]:
    choices = draft.choices
    yield "  # Auto chooses searcher and scheduler for this space and budget: `finetune plan` says which."
    yield "  search: {algorithm: Auto, seed: 7}"
    yield "  # The search ends at whichever comes first; then the winner is trained once more."
    yield "  budget:"
    yield _field("maxTrials", choices.trials, 4)
    yield f"    maxDurationSeconds: {choices.seconds}   # {choices.seconds // 60} minutes of searching"


def _number(value: float) -> str:
    """A learning rate as people write it: 1e-5."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
