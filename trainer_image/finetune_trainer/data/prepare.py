"""From a study's spec to the rows that every trial shares."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.metrics import Task
from finetune_api.spaces import NumericDomain
from finetune_api.study import Split, StudySpec
from finetune_trainer.data.labels import LabelledRows, encode, known_rows, label_names, usable_rows
from finetune_trainer.data.load import PARTS, load
from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.split import split_rows
from finetune_trainer.data.tokens import Frame, tokenise
from finetune_trainer.errors import DataError

log = logging.getLogger("finetune.data")

_MAX_WARNINGS = 10
_MAX_WARNING = 256
_POSITIONS_AFTER_PADDING = (
    "roberta",
    "camembert",
    "mpnet",
    "longformer",
    "xmod",
    "data2vec",
    "ibert",
)
"""Model types that number a row's positions from the padding token's number on."""


def prepare(spec: StudySpec, base: Path) -> PreparedData:
    """Load, split and tokenise the rows of `spec`; relative paths are below `base`.

    Raises DataError or ModelError naming the field that is wrong. The same spec and files give the
    same rows, bit for bit. An unreachable hub raises its own error: trying again may help.
    """
    warnings: list[str] = []
    dataset = spec.dataset
    raw = load(dataset, base, warnings)
    parts = {
        name: usable_rows(rows, spec.task, dataset.label_separator, warnings)
        for name, rows in raw.items()
    }
    parts = split_parts(parts, dataset.split)
    names = label_names(parts["train"].labels, spec.task, dataset.label_column)
    if spec.task != "Regression":
        for name in PARTS[1:]:
            parts[name] = known_rows(parts[name], names, warnings)
    source = ModelSource.find(spec.model, base).pinned()
    data = _tokenised(parts, spec.task, names, source)
    warnings += _cut_off(data, spec)
    warnings += _undefined_metrics(data, spec, _validation_parts(data, spec))
    return replace(data, warnings=_limited(warnings), fingerprint=data.digest())


def split_parts(parts: Mapping[str, LabelledRows], split: Split) -> dict[str, LabelledRows]:
    """`parts` with those that are missing split off the training rows."""
    train = parts["train"]
    missing = [name for name in PARTS[1:] if name not in parts]
    if not missing:
        return dict(parts)
    if len(train) < 2 * len(missing) + 1:
        raise DataError(
            train.field,
            f"must have at least {2 * len(missing) + 1} usable rows to be split (got {len(train)})",
        )
    shares = [getattr(split, name) for name in missing]
    *aside, left = split_rows(train.labels, shares, split.seed, split.stratify)
    found = {**parts, "train": train.keep(left)}
    for name, rows in zip(missing, aside, strict=True):
        if not len(rows):
            raise DataError(
                "spec.dataset.split.stratify",
                f"must be false where no class has rows to spare for {name} (of {len(train)} rows)",
            )
        chosen = train.keep(rows)
        found[name] = LabelledRows(train.field, name, chosen.texts, chosen.labels)
    return found


def _tokenised(
    parts: Mapping[str, LabelledRows], task: Task, names: tuple[str, ...], source: ModelSource
) -> PreparedData:
    tokenizer = source.tokenizer()
    ordered = [parts[name] for name in PARTS]
    count = len(ordered[0].texts)
    columns = tuple(
        tokenise(tokenizer, [text for rows in ordered for text in rows.texts[column]])
        for column in range(count)
    )
    ends = np.cumsum([len(rows) for rows in ordered])
    train, validation, test = np.split(np.arange(ends[-1], dtype=np.int64), ends[:-1])
    return PreparedData(
        task=task,
        model=source,
        columns=columns,
        labels=encode([label for rows in ordered for label in rows.labels], task, names),
        label_names=names,
        train=train,
        validation=validation,
        test=test,
        frame=Frame.of(tokenizer, pair=count == 2),
        max_tokens=_max_tokens(tokenizer, source.config()),
    )


def _max_tokens(tokenizer: Any, config: Any) -> int:
    """The longest row the model can read."""
    limits = [int(tokenizer.model_max_length)]  # a huge number where the tokenizer knows of none
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        shifted = any(name in config.model_type for name in _POSITIONS_AFTER_PADDING)
        limits.append(positions - (config.pad_token_id + 1 if shifted else 0))
    return min(limits)


def largest_max_length(spec: StudySpec) -> int:
    """The largest `maxLength` that a trial of the study can have."""
    default = int(Hyperparameters.model_fields["max_length"].default)
    fixed = getattr(spec.hyperparameters, "max_length", None)
    values = [fixed if fixed is not None else default]
    for space in spec.spaces:
        domain = space.domains().get("maxLength")
        if isinstance(domain, NumericDomain):
            values += domain.values or [domain.max]
    return max(int(value) for value in values)


def _cut_off(data: PreparedData, spec: StudySpec) -> list[str]:
    limit = data.limit(largest_max_length(spec))
    lengths = np.sum([column.lengths for column in data.columns], axis=0) + data.frame.special
    count = int((lengths > limit).sum())
    if not count:
        return []
    return [
        f"spec.dataset.textColumns: {count} of {len(lengths)} rows are longer than {limit} tokens and "
        f"cut off there (the longest has {int(lengths.max())})"
    ]


def _validation_parts(data: PreparedData, spec: StudySpec) -> list[NDArray[np.int64]]:
    """The rows that the study validates on: one part, or one a fold."""
    folds = spec.validation.cross_validation
    if folds is None:
        return [data.validation]
    return data.folds(folds.folds, folds.stratify, folds.seed)


def _undefined_metrics(
    data: PreparedData, spec: StudySpec, parts: Sequence[NDArray[np.int64]]
) -> list[str]:
    """What to say of metrics that one of the validation `parts` leaves undefined."""
    metric = spec.objective.metric
    each = " of each fold" if len(parts) > 1 else ""
    if metric == "r2" and min(len(rows) for rows in parts) < 2:
        raise DataError(
            "spec.objective.metric", f"r2 must have at least two validation rows{each} (got 1)"
        )
    if "roc_auc" not in (metric, *spec.objective.additional_metrics):
        return []
    defined = min(_labels_with_area(data, rows) for rows in parts)
    if not defined and metric == "roc_auc":
        raise DataError(
            "spec.objective.metric",
            f"roc_auc must have a label that some validation rows{each} have and some have not",
        )
    if defined == len(data.label_names):
        return []
    some = " of some fold" if each else ""
    return [
        f"roc_auc is the mean over {defined} of {len(data.label_names)} labels: the others are in all "
        f"validation rows{some} or in none"
    ]


def _labels_with_area(data: PreparedData, rows: NDArray[np.int64]) -> int:
    """How many labels some of `rows` have and some have not."""
    labels = data.labels[rows]
    if data.task == "SingleLabel":
        labels = labels[:, None] == np.arange(len(data.label_names))
    return int((labels.any(axis=0) & ~labels.all(axis=0)).sum())


def _limited(warnings: list[str]) -> tuple[str, ...]:
    shown = [
        text if len(text) <= _MAX_WARNING else text[: _MAX_WARNING - 1] + "…" for text in warnings
    ]
    if len(shown) <= _MAX_WARNINGS:
        return tuple(shown)
    for text in warnings:
        log.warning(text)
    rest = len(shown) - _MAX_WARNINGS + 1
    return (*shown[: _MAX_WARNINGS - 1], f"and {rest} more, in the log of the driver")
