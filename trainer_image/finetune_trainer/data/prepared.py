"""The rows of a study as all trials see them."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.tasks import Task
from finetune_trainer.data.augmentation import VariableTexts
from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.near_duplicates import NearDuplicates
from finetune_trainer.data.slices import Slices
from finetune_trainer.data.split import fold_rows, sample_order
from finetune_trainer.data.steps import Step
from finetune_trainer.data.tokens import Frame, Tokens, cut, tokenise
from finetune_trainer.errors import DataError, TrialFailure
from finetune_trainer.tasks import Labels, task_of
from finetune_trainer.tasks.ragged import Ragged, arrays_of

log = logging.getLogger("finetune.data")


@dataclass(frozen=True)
class Reading:
    """The rows of a study as one pretrained model reads them; fields as in `PreparedData`."""

    model: ModelSource
    columns: tuple[Tokens, ...]
    frame: Frame
    max_tokens: int
    padding_matters: bool = False
    word_tokens: Ragged | None = None


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows, their labels, and which of them belong to which part.

    Only flat arrays are large, so Ray's object store shares one copy among the processes of a node.
    """

    task: Task
    model: ModelSource
    columns: tuple[Tokens, ...]
    """One or two texts per row."""

    labels: Labels
    """int64 (rows,) for SingleLabel, bool (rows, labels) for MultiLabel, float32 (rows,) for Regression, `Tags` for
    TokenClassification."""

    label_names: tuple[str, ...]
    """Name of each output of the model: the classes, or the label column for Regression."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    frame: Frame
    max_tokens: int
    """Longest row that the model can read, including special tokens."""

    padding_matters: bool = False
    """Whether padding changes the model's outputs: then only rows of the same length are batched together."""

    word_tokens: Ragged | None = None
    """Of each word that has a label, the number of its first token in its row's text, -1 if it has none; None where rows
    have labels."""

    readings: Mapping[str, Reading] = field(default_factory=dict)
    """The rows as read by the other pretrained models that trials can have, by the models' names."""

    near_duplicates: NearDuplicates | None = None
    """Which rows are similar; None if no trial leaves any out."""

    variable_texts: VariableTexts | None = None
    """The texts of the training and validation rows; None if no trial varies any."""

    groups: NDArray[np.int64] | None = None
    """Rows with the same number, (rows,), stay in one fold; None if every row may be in any fold."""

    slices: tuple[Slices, ...] = ()
    """How the rows are divided to be measured by themselves."""

    steps: tuple[Step, ...] = ()
    """What was done to the rows in preparation, in order."""

    warnings: tuple[str, ...] = ()
    """What a user should know about the rows: at most 10 sentences of at most 256 characters."""

    fingerprint: str = field(default="")
    """Digest of rows and parts; a checkpoint resumes only on the data it was made with."""

    def read_by(self, name: str) -> "PreparedData":
        """The same rows as read by the pretrained model `name` of a trial; an empty name is the study's own."""
        if not name:
            return self
        reading = self.readings[name]
        changed = replace(
            self,
            model=reading.model,
            columns=reading.columns,
            frame=reading.frame,
            max_tokens=reading.max_tokens,
            padding_matters=reading.padding_matters,
            word_tokens=reading.word_tokens,
        )
        return replace(changed, fingerprint=changed.digest())

    def merged(self) -> "PreparedData":
        """The same rows, with the validation rows added to training, for the refit."""
        train = np.concatenate([self.train, self.validation])
        merged = replace(self, train=train, validation=self.validation[:0])
        return replace(merged, fingerprint=merged.digest())

    def folds(self, folds: int, stratify: bool, seed: int) -> list[NDArray[np.int64]]:
        """Row numbers of each fold of the pooled training and validation rows, ascending; each row is in one fold.

        Raises DataError if there are fewer rows, or groups of rows, than folds.
        """
        rows = np.sort(np.concatenate([self.train, self.validation]))
        groups = None if self.groups is None else self.groups[rows]
        most = len(rows) if groups is None else len(np.unique(groups))
        if most < folds:
            what = "rows" if groups is None else "groups of rows"
            raise DataError(
                "spec.validation.crossValidation.folds",
                f"must be at most the {most} {what} for training and validation (got {folds})",
            )
        stratify = stratify and task_of(self.task).has_classes
        strata = task_of(self.task).strata(self.labels[rows], len(self.label_names))
        parts = fold_rows(strata, folds, seed, stratify, groups)
        return [rows[part] for part in parts]

    def fold(self, index: int, folds: int, stratify: bool, seed: int) -> "PreparedData":
        """The same rows, with fold `index` of `folds` for validation and the others for training."""
        parts = self.folds(folds, stratify, seed)
        validation = parts.pop(index)
        changed = replace(self, train=np.sort(np.concatenate(parts)), validation=validation)
        return replace(changed, fingerprint=changed.digest())

    def sampled(self, rows: int, stratify: bool, seed: int) -> "PreparedData":
        """The same rows with only `rows` of the training rows, or all if there are no more.

        A smaller sample with the same seed is part of a larger one.
        """
        stratify = stratify and task_of(self.task).samples_by_class
        known = self.labels[self.train]
        order = sample_order(known if stratify else self.train, seed, stratify)
        changed = replace(self, train=self.train[np.sort(order[:rows])])
        return replace(changed, fingerprint=changed.digest())

    def deduplicated(self, threshold: float) -> "PreparedData":
        """The same rows without the training rows whose similarity (cosine) is `threshold` or more to a
        validation or test row, or to an earlier training row that stays. 1 keeps all.

        The last row of a class stays if it is similar to training rows only, so that a refit, for which
        validation rows are training rows, has the classes that its trial had. The fingerprint stays: together with
        the threshold of a trial it decides which rows the trial has. Raises TrialFailure("UserError") if
        every training row of a class is similar to a validation or test row.
        """
        if threshold >= 1:
            return self
        train, spared = self.distinct(threshold)
        before, after = self._present(self.train), self._present(train)
        lost = [
            name for name, is_lost in zip(self.label_names, before & ~after, strict=True) if is_lost
        ]
        if lost or not len(train):
            raise TrialFailure(
                "UserError",
                f"duplicateThreshold must leave training rows of every class (got {threshold:g}, which "
                f"leaves {len(train)} of {len(self.train)} rows, none of {', '.join(lost[:3])})",
            )
        left_out = len(self.train) - len(train)
        log.info("%d of %d training rows are near-duplicates", left_out, len(self.train))
        if spared:
            named = ", ".join(spared[:3]) + (", …" if len(spared) > 3 else "")
            log.warning("a near-duplicate is kept as the last training row of %s", named)
        return replace(self, train=train)

    def distinct(self, threshold: float) -> tuple[NDArray[np.int64], list[str]]:
        """The training rows that `deduplicated` leaves, ascending, and the labels whose last row it keeps."""
        assert (
            self.near_duplicates is not None
        )  # `prepare` found them for the lowest threshold of all trials
        others = np.concatenate([self.validation, self.test])
        train = self.train[self.near_duplicates.stay(self.train, others, threshold)]
        spared = []
        for output in np.flatnonzero(self._present(self.train) & ~self._present(train)):
            rows = self._rows_of(int(output))
            last = rows[self.near_duplicates.stay(rows, others, threshold)][:1]
            train = np.union1d(train, last)
            spared += [self.label_names[output]] * len(last)
        return train, spared

    def _rows_of(self, output: int) -> NDArray[np.int64]:
        """The training rows that have an output of the model."""
        return self.train[task_of(self.task).having(self.labels[self.train], output)]

    def _present(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which outputs of the model some of `rows` have."""
        return task_of(self.task).counts(self.labels[rows], len(self.label_names)) > 0

    def augmented(self, config: Hyperparameters, seed: int, epoch: int) -> "PreparedData":
        """For one epoch: the same rows followed by varied copies of the training rows, which are
        training rows too. The fingerprint stays.
        """
        if config.augmentation == "None":
            return self
        assert (
            self.variable_texts is not None
        )  # `prepare` kept them for the augmentations of all trials
        varied = self.variable_texts.varied(self.train, config, seed, epoch)
        tokenizer = _tokenizer(self.model)
        columns = tuple(
            column.followed_by(tokenise(tokenizer, texts))
            for column, texts in zip(self.columns, varied, strict=True)
        )
        copied = np.repeat(self.train, config.augmentation_copies)
        numbers = len(self.labels) + np.arange(len(copied))
        return replace(
            self,
            columns=columns,
            labels=np.concatenate([self.labels, self.labels[copied]]),
            train=np.concatenate([self.train, numbers]),
        )

    def part(self, name: str) -> NDArray[np.int64]:
        """Row numbers of `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def slices_at(self, rows: NDArray[np.int64]) -> tuple[Slices, ...]:
        """How `rows` are divided."""
        return tuple(one.at(rows) for one in self.slices)

    def kept_tokens(self, rows: NDArray[np.int64], max_length: int) -> list[NDArray[np.int64]]:
        """Tokens that each text of `rows` keeps when rows are cut to `max_length`, one array per column."""
        room = self.limit(max_length) - self.frame.special
        return cut([column.lengths[rows] for column in self.columns], room)

    def lengths(self, rows: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
        """Tokens of each of `rows` when cut to `max_length`, including special tokens."""
        kept: NDArray[np.int64] = np.sum(self.kept_tokens(rows, max_length), axis=0)
        return kept + self.frame.special

    def limit(self, max_length: int) -> int:
        """`max_length`, or what the model can read if that is less."""
        return min(max_length, self.max_tokens)

    def digest(self) -> str:
        """A digest of everything that decides which batches a trial sees."""
        digest = hashlib.sha256(repr((self.task, self.label_names, self.frame)).encode())
        if self.frame.left:
            digest.update(b"left")
        arrays = [*arrays_of(self.labels), self.train, self.validation, self.test]
        for column in self.columns:
            arrays += [column.ids, column.offsets]
        arrays += [] if self.word_tokens is None else [self.word_tokens.values]
        for more in (self.near_duplicates, self.variable_texts):
            arrays += [] if more is None else more.arrays
        for array in arrays:
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]


def label_counts(data: PreparedData, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of `rows` have each output of the model, (outputs,)."""
    return task_of(data.task).counts(data.labels[rows], len(data.label_names))


@cache
def _tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a model, read once per process."""
    return source.tokenizer()
