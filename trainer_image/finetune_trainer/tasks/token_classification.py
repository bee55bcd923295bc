"""TokenClassification: a tag for each word, by which entities are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finetune_api.tasks import TASKS
from finetune_trainer.tasks.base import Label, TrainingTask
from finetune_trainer.tasks.mistakes import Mistake
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.ragged import Ragged, flat
from finetune_trainer.tasks.report import LabelReport, Report, confusion_of, scores_of
from finetune_trainer.tasks.single_label import SingleLabel
from finetune_trainer.tasks.tagging import (
    OUTSIDE,
    Entities,
    Tagged,
    Tags,
    entities_of,
)

_ONE = SingleLabel()
"""Each word is a row with one class."""

_NONE = "(none)"
_MOST_WORDS = 10
_SLIGHT = 1e-9
"""The loss of a word of which the model was sure in vain: no mistake counts as none."""

"""In a confusion matrix, what is no entity, or none with the same words."""

NO_TAG = -1
"""The tag of a word that has no token: it is never right."""


@dataclass(frozen=True)
class Judged(Ragged):
    """What is kept of a model's answers for words to judge it, (words, 2): the tag it predicts, and its loss.

    Both are NaN for a word without a token.
    """


class TokenClassification(TrainingTask):
    """Labels are `Tags`; logits are a `Ragged` of (words, outputs), or what is `Judged` of them."""

    name = "TokenClassification"
    usual_labels: ClassVar[Mapping[str, str]] = {"spansColumn": "entities"}
    problem_type = None
    auto_class = "AutoModelForTokenClassification"
    pipeline = "token-classification"
    tags_words = True
    leaks_labels = False
    of_kinds = tuple(
        m for m in TASKS["TokenClassification"].metrics if m not in ("accuracy", "loss")
    )
    purpose = "one of {count} tags for each word"
    constant_words = "the most frequent tag of the"
    card_pipeline = (
        "from transformers import pipeline",
        "",
        'folder = "."  # where this file is',
        'tagger = pipeline("token-classification", folder, aggregation_strategy="first", stride={overlap})',
        "for entity in tagger({given}):",
        '    print(entity["entity_group"], entity["start"], entity["end"], entity["word"])',
    )
    card_call_together = "entities = ensemble.entities({given})"
    card_answer_together = "print(*entities[0], sep='\\n')"
    card_limit = "It tags words: entities within others, and parts of words, are not found."

    # -- labels

    def label_of(self, cell: Any, separator: str | None = None) -> Label | None:
        raise NotImplementedError("rows of tagged words are read by finetune_trainer.data.tagged")

    def stratum(self, label: Any) -> tuple[str, ...]:
        """The types of a row's entities."""
        types: tuple[str, ...] = label.types
        return types

    def kinds(self, names: Sequence[str]) -> tuple[str, ...]:
        """The types that outputs with these names tell apart."""
        if not _has_outside(names):
            return tuple(names)
        return tuple(name.partition("-")[2] for name in names[1::2])

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Tags:
        index = {name: position for position, name in enumerate(names)}
        rows: list[Tagged] = list(labels)
        numbers = ([index[tag] for tag in row.tags] for row in rows)
        return Tags.of(numbers, np.int64, singles=not _has_outside(names))

    def counts(self, labels: Tags, outputs: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.strata(labels, outputs).sum(axis=0)
        return found

    def kind_counts(self, labels: Tags, outputs: int) -> NDArray[np.int64]:
        counts = self.counts(labels, outputs)
        return counts if labels.singles else counts[1::2]

    def having(self, labels: Tags, output: int) -> NDArray[np.bool_]:
        found = np.zeros(len(labels), dtype=np.bool_)
        found[labels.rows[labels.values == output]] = True
        return found

    def strata(self, labels: Tags, outputs: int) -> NDArray[np.bool_]:
        """Which rows have which outputs, (rows, outputs)."""
        found = np.zeros((len(labels), outputs), dtype=np.bool_)
        found[labels.rows, labels.values] = True
        return found

    def named(self, label: Any, names: Sequence[str]) -> list[str]:
        return [OUTSIDE if tag == NO_TAG else names[int(tag)] for tag in np.ravel(label)]

    # -- learning: of single words

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
    ) -> Tensor:
        """The mean over words of the cross entropy; 0 without any."""
        if not len(labels):
            return logits.sum()
        return _ONE.loss(logits, labels, smoothing, weights, gamma)

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        return _ONE.divergence(one, other) if len(one) else one.sum()

    def balancing_weights(self, labels: Tags, outputs: int) -> NDArray[np.float32]:
        return _ONE.balancing_weights(labels.values, outputs)

    def priors(self, labels: Tags, outputs: int, extra: int = 0) -> NDArray[np.float64]:
        return _ONE.priors(labels.values, outputs, extra)

    def head_bias(self, labels: Tags, outputs: int, extra: int) -> NDArray[np.float64]:
        return _ONE.head_bias(labels.values, outputs, extra)

    # -- judging

    def kept(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The predicted tag and the loss of each word: (words, 2)."""
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return torch.stack([logits.argmax(dim=1).to(losses.dtype), losses], dim=1)

    def arranged(
        self,
        values: NDArray[np.float32],
        places: NDArray[np.int64],
        labels: Any,
        whole: bool = False,
    ) -> Ragged:
        found = np.empty_like(values)
        found[labels.items(places)] = values
        return (Ragged if whole else Judged)(found, labels.offsets)

    def alike(self, values: NDArray[np.float32], logits: Any) -> Ragged:
        return Ragged(values, logits.offsets)

    def tiled(self, row: NDArray[np.float64], labels: Any) -> Ragged:
        words = len(labels.values)
        found: Ragged = labels.with_values(
            np.broadcast_to(row.astype(np.float32), (words, len(row)))
        )
        return found

    def value_of_loss(self, logits: Any, labels: Any) -> float:
        known = _have_tokens(logits)
        if not known.any():
            return np.nan
        if isinstance(logits, Judged):
            return float(logits.values[known, 1].astype(np.float64).mean())
        exact = torch.from_numpy(logits.values[known]).double()
        return float(self.loss(exact, torch.from_numpy(labels.values[known])))

    def predictions(self, logits: Any, thresholds: NDArray[np.float64] | None = None) -> Ragged:
        """The number of the output that is predicted for each word; `NO_TAG` for one without a token."""
        known = _have_tokens(logits)
        found = np.full(len(known), NO_TAG, dtype=np.int64)
        values = logits.values[known]
        found[known] = values[:, 0] if isinstance(logits, Judged) else values.argmax(axis=1)
        tags: Ragged = logits.with_values(found)
        return tags

    def metric(
        self, name: str, logits: Any, labels: Any, thresholds: NDArray[np.float64] | None
    ) -> float:
        """Precision, recall and F1 are those of entities, micro or over their types; `accuracy` is that of words.

        They are undefined for rows in which no entity is, and none is predicted.
        """
        if name == "accuracy":
            right = self.predictions(logits).values == labels.values
            return float(right.mean()) if len(right) else np.nan
        kind, average = name.rsplit("_", 1)
        found, chosen, having = self._counted(logits, labels)
        if not len(found):
            return np.nan
        if average == "micro":
            found, chosen, having = (np.array([one.sum()]) for one in (found, chosen, having))
        values = {
            "precision": _share(found, chosen),
            "recall": _share(found, having),
            "f1": _share(2 * found, chosen + having),
        }[kind]
        if average == "weighted":
            return float(values @ having / max(1, having.sum()))
        return float(values.mean())

    def _counted(self, logits: Any, labels: Any) -> tuple[NDArray[np.int64], ...]:
        """Of each type that is there or predicted: entities rightly found, predicted, and there."""
        there, predicted = self._entities(logits, labels)
        one, other = there.same_words(predicted)
        right = there.kind[one][there.kind[one] == predicted.kind[other]]
        kinds = np.union1d(there.kind, predicted.kind)
        places = (np.searchsorted(kinds, one) for one in (right, predicted.kind, there.kind))
        return tuple(np.bincount(place, minlength=len(kinds)) for place in places)

    def _entities(self, logits: Any, labels: Any) -> tuple[Entities, Entities]:
        """The entities that are there, and those that are predicted."""
        tags = self.predictions(logits).values
        predicted = Tags(tags, labels.offsets, labels.singles)
        if not labels.singles:
            return entities_of(labels), entities_of(predicted)
        every = entities_of(predicted)
        known = every.kind != NO_TAG
        return entities_of(labels), Entities(*(one[known] for one in every.arrays))

    def report(
        self,
        names: Sequence[str],
        logits: Any,
        labels: Any,
        thresholds: NDArray[np.float64] | None,
    ) -> Report:
        """Each type, and which entity was taken for which; the last of a row and of a column is none of the same words."""
        kinds = self.kinds(names)
        there, predicted = self._entities(logits, labels)
        one, other = there.same_words(predicted)
        taken = np.full(len(there.kind), len(kinds))
        taken[one] = predicted.kind[other]
        invented = np.delete(predicted.kind, other)
        confusion = confusion_of(
            np.append(there.kind, np.full(len(invented), len(kinds))),
            np.append(taken, invented),
            len(kinds) + 1,
        )
        right = confusion.diagonal()
        chosen, having = confusion.sum(axis=0), confusion.sum(axis=1)
        each = [
            LabelReport(kind, *scores_of(int(right[n]), int(chosen[n]), int(having[n])))
            for n, kind in enumerate(kinds)
        ]
        return Report(
            self.name, len(labels), each, confusion.tolist(), confused_with=[*kinds, _NONE]
        )

    def wrongness(
        self, logits: Any, labels: Any, thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """The sum of the losses of the words that are tagged wrongly; an entity's word that the model never saw counts 1."""
        said = self.predictions(logits).values
        wrong = said != labels.values
        if not labels.singles:  # what has no token is no entity
            wrong &= ~((said == NO_TAG) & (labels.values == 0))
        if isinstance(logits, Judged):
            losses = logits.values[:, 1].astype(np.float64)
        else:
            shares = _ONE.shares(logits.values)[np.arange(len(labels.values)), labels.values]
            losses = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        counted = np.where(wrong, np.maximum(np.nan_to_num(losses, nan=1.0), _SLIGHT), 0.0)
        found: NDArray[np.float64] = np.zeros(len(labels))
        np.add.at(found, labels.rows, counted)
        return found

    def at(self, labels: Any, row: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = labels.row(row)
        return found

    def mistake(
        self, names: Sequence[str], row: int, label: Any, predicted: Any, logits: Any
    ) -> Mistake:
        there, said = np.ravel(label), np.ravel(predicted)
        wrong = there != said
        if _has_outside(names):
            wrong &= ~((said == NO_TAG) & (there == 0))
        there, said = there[wrong], said[wrong]
        most = _MOST_WORDS
        return Mistake(row, self.named(there[:most], names), self.named(said[:most], names))

    def in_words(
        self, names: Sequence[str], logits: Any, thresholds: NDArray[np.float64] | None
    ) -> list[Prediction]:
        raise NotImplementedError("where words are is known to finetune_trainer.artifacts.entities")

    def shares(self, logits: Any) -> NDArray[np.float64]:
        """Of all words: (words, outputs)."""
        return _ONE.shares(flat(logits))

    def logits_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        return _ONE.logits_of(shares)

    def explained(self, logits: Any, predicted: Any) -> list[int]:
        raise NotImplementedError("the schema refuses attributions of tagged words")


def _has_outside(names: Sequence[str]) -> bool:
    """Whether outputs mark entities, and not every word is one."""
    return names[0] == OUTSIDE


def _have_tokens(logits: Any) -> NDArray[np.bool_]:
    """Which words have an answer."""
    found: NDArray[np.bool_] = ~np.isnan(logits.values[:, 0])
    return found


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """0 where nothing is there, as scikit-learn and seqeval have it."""
    return part / np.maximum(1, whole)
