"""Turns a study's spec into the rows that all trials share."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.dataset import Dataset, PretrainedModel
from finetune_api.metrics import best_value, natural_goal, plain, score
from finetune_api.study import StudySpec
from finetune_api.tasks import Task
from finetune_trainer.data.augmentation import NEED_SYNONYMS, VariableTexts, words_of
from finetune_trainer.data.duplicates import warn_of_shared_texts
from finetune_trainer.data.groups import row_groups
from finetune_trainer.data.labels import (
    LabelledRows,
    known_rows,
    label_field,
    label_names,
    listed,
)
from finetune_trainer.data.leak import refuse_labels_in_texts
from finetune_trainer.data.load import PARTS
from finetune_trainer.data.model_source import FIELD, ModelSource, max_tokens
from finetune_trainer.data.near_duplicates import NearDuplicates
from finetune_trainer.data.parts import labelled_parts
from finetune_trainer.data.prepared import PreparedData, Reading, label_counts
from finetune_trainer.data.reads import check_reads
from finetune_trainer.data.slices import few_rows, slices_of
from finetune_trainer.data.steps import Account
from finetune_trainer.data.synonyms import Synonyms, read_synonyms
from finetune_trainer.data.tagged import tag_names
from finetune_trainer.data.tokens import Frame, Tokens, tokenise, tokens_of_words
from finetune_trainer.data.trial_values import trial_values
from finetune_trainer.errors import DataError, ModelError
from finetune_trainer.storage.locations import shown
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.ragged import Ragged, ends
from finetune_trainer.tasks.thresholds import FEW_ROWS

log = logging.getLogger("finetune.data")

_MAX_WARNINGS = 10
_MAX_WARNING = 256


def prepare(spec: StudySpec, base: Path) -> PreparedData:
    """Load, clean, split and tokenise the rows of `spec`; relative paths start from `base`.

    Raises DataError or ModelError naming the field that is wrong. The same spec and files give the
    same rows, bit for bit. An unreachable hub raises its own error: trying again may help.
    """
    account = Account()
    dataset = spec.dataset
    parts = labelled_parts(spec, base, account)
    task = task_of(spec.task)
    if task.tags_words:
        names = tag_names(parts["train"], dataset)
    else:
        names = label_names(parts["train"].labels, spec.task, dataset, account)
    if task.leaks_labels and not dataset.allow_label_in_text:
        refuse_labels_in_texts(parts["train"], task)
    if task.has_classes:
        for name in PARTS[1:]:
            parts[name] = known_rows(parts[name], spec.task, names, account)
    drops = dataset.cleaning.duplicates == "Drop"
    if not drops:
        warn_of_shared_texts(parts, spec.validation.folds, account)
    groups = row_groups([parts[name] for name in PARTS], drops)
    source = ModelSource.find(spec.model, base).pinned()
    data = replace(
        _tokenised(parts, spec.task, names, source, _longest(spec)),
        groups=groups,
        slices=slices_of(spec, parts),
        readings=_other_readings(spec, base, parts),
        variable_texts=_variable_texts(spec, base, parts),
    )
    data = _with_near_duplicates(data, spec, base, parts, account)
    warnings = [*account.warnings, *_cut_off(data, spec)]
    validated = _validation_parts(data, spec)
    warnings += few_rows(data.slices, np.concatenate(validated))
    warnings += [*_single_rows(data, spec.dataset), *_odd_objective(spec)]
    warnings += [*_undefined_metrics(data, spec, validated), *_rare_labels(data, spec, validated)]
    return replace(
        data,
        warnings=_limited(warnings),
        steps=tuple(account.steps),
        fingerprint=data.digest(),
    )


def _tokenised(
    parts: Mapping[str, LabelledRows],
    task: Task,
    names: tuple[str, ...],
    source: ModelSource,
    longest: int,
) -> PreparedData:
    ordered = [parts[name] for name in PARTS]
    reading = _reading(ordered, task, source, longest)
    sizes = np.cumsum([len(rows) for rows in ordered])
    train, validation, test = np.split(np.arange(sizes[-1], dtype=np.int64), sizes[:-1])
    return PreparedData(
        task=task,
        model=source,
        columns=reading.columns,
        labels=task_of(task).encode([label for rows in ordered for label in rows.labels], names),
        label_names=names,
        train=train,
        validation=validation,
        test=test,
        frame=reading.frame,
        max_tokens=reading.max_tokens,
        padding_matters=reading.padding_matters,
        word_tokens=reading.word_tokens,
    )


def _reading(
    parts: Sequence[LabelledRows], task: Task, source: ModelSource, longest: int
) -> Reading:
    """The rows as the model reads them; trials keep at most `longest` tokens of each."""
    columns = _columns(parts)
    tokenizer, config = source.tokenizer(), source.config()
    frame = _frame(tokenizer, columns, source)
    words = None
    if task_of(task).tags_words:
        one, words = _words_read(tokenizer, columns[0], parts, source)
        tokens: tuple[Tokens, ...] = (one,)
    else:
        tokens = tuple(tokenise(tokenizer, texts) for texts in columns)
    most = max_tokens(tokenizer, config)
    # It is better to learn of wrong weights before any worker starts.
    model, _ = source.weights(config, task_of(task).auto_class)
    padding_matters = check_reads(model, source, tokens, frame, min(longest, most))
    return Reading(source, tokens, frame, most, padding_matters, words)


def _words_read(
    tokenizer: Any, texts: Sequence[str], parts: Sequence[LabelledRows], source: ModelSource
) -> tuple[Tokens, Ragged]:
    """The tokens of texts, and the first one of each of their words. Raises ModelError if it cannot be told."""
    labels: list[Any] = [label for rows in parts for label in rows.labels]
    places = ([*zip(one.starts, one.ends, strict=True)] for one in labels)
    words = Ragged(
        np.array([*chain.from_iterable(places)], dtype=np.int64).reshape(-1, 2),
        ends([len(one.tags) for one in labels]),
    )
    try:
        return tokens_of_words(tokenizer, texts, words)
    except ValueError as error:
        raise ModelError(
            FIELD,
            f"must be a model whose tokenizer tags words (got {shown(source.name)}: {error})",
        ) from error


def _longest(spec: StudySpec) -> int:
    """The most tokens that any trial keeps of a row."""
    return max(int(value) for value in trial_values(spec, "maxLength"))


def _frame(tokenizer: Any, columns: list[list[str]], source: ModelSource) -> Frame:
    """What the tokenizer puts around texts. Raises ModelError if it can read none of them."""
    try:
        return Frame.of(tokenizer, columns)
    except ValueError as error:
        raise ModelError(
            FIELD,
            f"must be a model whose tokenizer reads the texts (got {shown(source.name)}: {error})",
        ) from error


def _other_readings(
    spec: StudySpec, base: Path, parts: Mapping[str, LabelledRows]
) -> dict[str, Reading]:
    """The rows as read by the other pretrained models that trials can have."""
    ordered = [parts[name] for name in PARTS]
    fixed = getattr(spec.hyperparameters, "pretrained_model", None)
    readings = {}
    for name in sorted({str(name) for name in trial_values(spec, "pretrainedModel")} - {""}):
        try:
            source = ModelSource.find(PretrainedModel(name=name), base).pinned()
            readings[name] = _reading(ordered, spec.task, source, _longest(spec))
        except ModelError as error:
            if name == fixed:
                field = "spec.hyperparameters.pretrainedModel"
                raise ModelError(field, error.message) from error
            raise ModelError("spec.searchSpaces", f"pretrainedModel {error.message}") from error
    return readings


def _columns(parts: Iterable[LabelledRows]) -> list[list[str]]:
    """The texts of all parts in turn, one list per column."""
    texts = [rows.texts for rows in parts]
    return [list(chain.from_iterable(columns)) for columns in zip(*texts, strict=True)]


def _variable_texts(
    spec: StudySpec, base: Path, parts: Mapping[str, LabelledRows]
) -> VariableTexts | None:
    """The texts that trials vary, if any trial does, with the synonyms that they need."""
    dataset = spec.dataset
    operations = set(trial_values(spec, "augmentation")) - {"None"}
    columns = _columns(parts[name] for name in PARTS[:2])  # the refit trains on both
    synonyms: Synonyms = {}
    if operations & NEED_SYNONYMS or dataset.synonyms is not None:
        words = {word.lower() for texts in columns for text in texts for word in words_of(text)}
        synonyms = read_synonyms(dataset.synonyms, base, words)
    if not operations:
        return None
    return VariableTexts.of(columns, synonyms)


def _with_near_duplicates(
    data: PreparedData,
    spec: StudySpec,
    base: Path,
    parts: Mapping[str, LabelledRows],
    account: Account,
) -> PreparedData:
    """`data` with its near-duplicates, if any trial leaves some out."""
    lowest = min(float(value) for value in trial_values(spec, "duplicateThreshold"))
    if lowest >= 1:
        return data
    searched = any("duplicateThreshold" in space.domains() for space in spec.spaces)
    field = "spec.searchSpaces" if searched else "spec.hyperparameters.duplicateThreshold"
    columns = _columns(parts[name] for name in PARTS)
    encoder = spec.dataset.cleaning.duplicate_encoder
    if encoder is None:
        found = NearDuplicates.find(columns, data.model, lowest, field)
    else:
        try:
            found = NearDuplicates.find(columns, ModelSource.find(encoder, base), lowest, field)
        except ModelError as error:
            name = "spec.dataset.cleaning.duplicateEncoder.name"
            raise ModelError(name, error.message) from error
    data = replace(data, near_duplicates=found)
    train, spared = data.distinct(lowest)
    why = f"with a similarity of {lowest:g} or more, the lowest threshold of any trial"
    left_out = len(data.train) - len(train)
    account.add("train", "duplicateThreshold", len(data.train), why, dropped=left_out)
    if spared:
        listed = ", ".join(spared[:3]) + (", …" if len(spared) > 3 else "")
        text = f"a row {why}, is kept if no other training row has its label ({listed})"
        account.warn(field, text)
    return data


def _cut_off(data: PreparedData, spec: StudySpec) -> list[str]:
    longest = _longest(spec)
    limit = data.limit(longest)
    if task_of(data.task).tags_words:
        return _windowed(data, limit)
    lengths = np.sum([column.lengths for column in data.columns], axis=0) + data.frame.special
    count = int((lengths > limit).sum())
    if not count:
        return []
    rows, most = f"{count} of {len(lengths)} rows", f"the longest has {int(lengths.max())}"
    if limit == longest:
        field = "spec.dataset.textColumns"
        return [f"{field}: {rows} are longer than {limit} tokens and are cut off there ({most})"]
    searched = any("maxLength" in space.domains() for space in spec.spaces)
    field = "spec.searchSpaces" if searched else "spec.hyperparameters.maxLength"
    return [
        f"{field}: the model reads {limit} tokens at most, so maxLength {longest} is lowered to {limit}; "
        f"{rows} are cut off there ({most})"
    ]


def _windowed(data: PreparedData, limit: int) -> list[str]:
    """What to know of words that a model reads in windows, or not at all."""
    assert data.word_tokens is not None  # they are tagged
    found = []
    lost = int((data.word_tokens.values < 0).sum())
    if lost:
        found.append(
            f"{FIELD}: its tokenizer makes no token of {lost} of {len(data.word_tokens.values)} words, whose tags are "
            "never found"
        )
    lengths = data.columns[0].lengths + data.frame.special
    if (lengths > limit).any():
        found.append(
            f"spec.dataset: {int((lengths > limit).sum())} of {len(lengths)} rows are longer than {limit} tokens and are "
            f"read in windows that overlap (the longest has {int(lengths.max())})"
        )
    return found


def _single_rows(data: PreparedData, dataset: Dataset) -> Iterator[str]:
    """A warning about classes that have a single row."""
    task = task_of(data.task)
    if not task.has_classes:
        return
    counts = task.kind_counts(data.labels, len(data.label_names))
    single = [task.kinds(data.label_names)[at] for at in np.flatnonzero(counts == 1)]
    if single:
        field = label_field(dataset)
        have = "has" if len(single) == 1 else "have"
        odd = "; is it the right column?" if 2 * len(single) > len(counts) > 4 else ""
        yield (
            f"{field}: {len(single)} of {len(counts)} classes {have} a single row ({listed(single)}), which cannot "
            f"be both trained on and measured{odd}"
        )


def _validation_parts(data: PreparedData, spec: StudySpec) -> list[NDArray[np.int64]]:
    """The rows that the study validates on: one part, or one per fold."""
    folds = spec.validation.cross_validation
    if folds is None:
        return [data.validation]
    return data.folds(folds.folds, folds.stratify, folds.seed)


def _undefined_metrics(
    data: PreparedData, spec: StudySpec, parts: Sequence[NDArray[np.int64]]
) -> list[str]:
    """Warnings about metrics that one of the validation `parts` leaves undefined."""
    metric, task = spec.objective.metric, task_of(data.task)
    means = task.means_over_labels
    each = " of each fold" if len(parts) > 1 else ""
    if plain(metric) in task.of_kinds and not all(_has_kinds(data, rows) for rows in parts):
        raise DataError(
            "spec.objective.metric", f"{metric} must have an entity in the validation rows{each}"
        )
    if not task.has_classes:
        _check_variety(data, metric, parts, each)
        return []
    defined = min(_labels_with_area(data, rows) for rows in parts)
    if not defined and metric in (*means, "matthews"):
        raise DataError(
            "spec.objective.metric",
            f"{metric} must have a label that some validation rows{each} have and others lack",
        )
    if defined == len(data.label_names):
        return []
    some = " of some fold" if each else ""
    named = dict.fromkeys((metric, *spec.objective.additional_metrics))
    return [
        f"{name} is the mean over {defined} of {len(data.label_names)} labels: all the others are in all "
        f"validation rows{some} or in none"
        for name in named
        if name in means
    ]


def _odd_objective(spec: StudySpec) -> Iterator[str]:
    """Warnings about an objective that is probably a mistake."""
    objective = spec.objective
    natural = natural_goal(objective.metric)
    if objective.direction != natural:
        yield f"spec.objective.goal: {objective.direction} searches for the worst {objective.metric}"
    best, target = best_value(objective.metric), objective.target
    if target is None or objective.direction != natural:
        return
    if score(target, natural) > score(best, natural):
        share = (
            f"; is {target / 100:g} meant?" if natural == "Maximize" and 1 < target <= 100 else ""
        )
        yield f"spec.objective.target: {target:g} can never be reached: the best {objective.metric} is {best:g}{share}"


def _has_kinds(data: PreparedData, rows: NDArray[np.int64]) -> bool:
    """Whether some of `rows` have any of the task's kinds."""
    counts = task_of(data.task).kind_counts(data.labels[rows], len(data.label_names))
    return bool(counts.any())


def _rare_labels(
    data: PreparedData, spec: StudySpec, parts: Sequence[NDArray[np.int64]]
) -> Iterator[str]:
    """Warnings about labels whose thresholds are tuned on few rows."""
    if "PerLabel" not in trial_values(spec, "thresholdTuning"):
        return
    counts = data.labels[np.concatenate(parts)].sum(axis=0)
    rare = np.flatnonzero(counts < FEW_ROWS)
    if len(rare):
        fewest = rare[counts[rare].argmin()]
        yield (
            f"thresholdTuning: {len(rare)} of {len(counts)} labels are in fewer than {FEW_ROWS} validation rows, "
            f"{data.label_names[fewest]} in {counts[fewest]}; for these, the common threshold weighs more than their own"
        )


def _check_variety(
    data: PreparedData, metric: str, parts: Sequence[NDArray[np.int64]], each: str
) -> None:
    if metric == "r2":
        fewest, what = min(len(rows) for rows in parts), "validation rows"
    elif metric in ("pearson", "spearman"):
        fewest = min(len(np.unique(data.labels[rows])) for rows in parts)
        what = "different labels in the validation rows"
    else:
        return
    if fewest < 2:
        raise DataError(
            "spec.objective.metric", f"{metric} must have at least two {what}{each} (got {fewest})"
        )


def _labels_with_area(data: PreparedData, rows: NDArray[np.int64]) -> int:
    """How many labels some of `rows` have and others lack."""
    counts = label_counts(data, rows)
    return int(((counts > 0) & (counts < len(rows))).sum())


def _limited(warnings: list[str]) -> tuple[str, ...]:
    shown = [
        text if len(text) <= _MAX_WARNING else text[: _MAX_WARNING - 1] + "…" for text in warnings
    ]
    if len(shown) <= _MAX_WARNINGS:
        return tuple(shown)
    for text in warnings:
        log.warning(text)
    rest = len(shown) - _MAX_WARNINGS + 1
    return (*shown[: _MAX_WARNINGS - 1], f"and {rest} more in the log of the driver")
