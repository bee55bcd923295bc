"""The rows of a study as every trial sees them."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import Task
from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.split import fold_rows, sample_order
from finetune_trainer.data.tokens import Frame, Tokens, cut
from finetune_trainer.errors import DataError


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows, their labels, and which of them belong to which part.

    Only flat arrays are large, so Ray's object store shares one copy among the processes of a node.
    """

    task: Task
    model: ModelSource
    columns: tuple[Tokens, ...]
    """One or two texts a row."""

    labels: NDArray[Any]
    """int64 (rows,) for SingleLabel, bool (rows, labels) for MultiLabel, float32 (rows,) for Regression."""

    label_names: tuple[str, ...]
    """Name of each output of the model: the classes, or the label column for Regression."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    frame: Frame
    max_tokens: int
    """Longest row that the model can read, special tokens included."""

    warnings: tuple[str, ...] = ()
    """What a user should know about the rows: at most 10 sentences of at most 256 characters."""

    fingerprint: str = field(default="")
    """Digest of rows and parts; a checkpoint resumes only on the data it was made with."""

    def merged(self) -> "PreparedData":
        """The same rows with the validation rows in training, for the final fit."""
        train = np.concatenate([self.train, self.validation])
        merged = replace(self, train=train, validation=self.validation[:0])
        return replace(merged, fingerprint=merged.digest())

    def folds(self, folds: int, stratify: bool, seed: int) -> list[NDArray[np.int64]]:
        """Row numbers of each part of the pooled training and validation rows, ascending; each row is in one.

        Raises DataError if there are fewer rows than folds.
        """
        rows = np.sort(np.concatenate([self.train, self.validation]))
        if len(rows) < folds:
            raise DataError(
                "spec.validation.crossValidation.folds",
                f"must be at most the {len(rows)} rows for training and validation (got {folds})",
            )
        stratify = stratify and self.task != "Regression"
        return [rows[part] for part in fold_rows(self.labels[rows], folds, seed, stratify)]

    def fold(self, index: int, folds: int, stratify: bool, seed: int) -> "PreparedData":
        """The same rows with part `index` of `folds` for validation, the others for training."""
        parts = self.folds(folds, stratify, seed)
        validation = parts.pop(index)
        changed = replace(self, train=np.sort(np.concatenate(parts)), validation=validation)
        return replace(changed, fingerprint=changed.digest())

    def sampled(self, rows: int, stratify: bool, seed: int) -> "PreparedData":
        """The same rows with only `rows` of the training rows, or all if there are no more.

        A smaller sample of the same seed is part of a larger one.
        """
        stratify = stratify and self.task == "SingleLabel"
        order = sample_order(self.labels[self.train], seed, stratify)
        changed = replace(self, train=self.train[np.sort(order[:rows])])
        return replace(changed, fingerprint=changed.digest())

    def part(self, name: str) -> NDArray[np.int64]:
        """Row numbers of `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def kept_tokens(self, rows: NDArray[np.int64], max_length: int) -> list[NDArray[np.int64]]:
        """Tokens that each text of `rows` keeps when rows are cut to `max_length`, one array a column."""
        room = self.limit(max_length) - self.frame.special
        return cut([column.lengths[rows] for column in self.columns], room)

    def lengths(self, rows: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
        """Tokens of each of `rows` when cut to `max_length`, special tokens included."""
        kept: NDArray[np.int64] = np.sum(self.kept_tokens(rows, max_length), axis=0)
        return kept + self.frame.special

    def limit(self, max_length: int) -> int:
        """`max_length`, or what the model can read if that is less."""
        return min(max_length, self.max_tokens)

    def digest(self) -> str:
        """A digest of everything that decides which batches a trial sees."""
        digest = hashlib.sha256(repr((self.task, self.label_names, self.frame)).encode())
        arrays = [self.labels, self.train, self.validation, self.test]
        for column in self.columns:
            arrays += [column.ids, column.offsets]
        for array in arrays:
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]
