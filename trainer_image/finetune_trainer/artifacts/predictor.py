"""A final model ready to use: texts in, predictions out, whatever the task and whether it is one model or several.

from finetune_trainer.artifacts.predictor import load_predictor

load_predictor("runs/x").predict(["a text", "another"])
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.dataset import Dataset
from finetune_trainer.artifacts.about import ModelAbout, about_of, model_folder
from finetune_trainer.artifacts.ensemble import ABOUT as OF_ENSEMBLE
from finetune_trainer.artifacts.ensemble import load_ensemble
from finetune_trainer.artifacts.entities import entities_in, places_of
from finetune_trainer.artifacts.exported import BATCH, LoadedModel
from finetune_trainer.cells.places import IN_ORDER, Places
from finetune_trainer.data.cleaning import cleaned, joined
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account
from finetune_trainer.data.tagged import words_to_tag
from finetune_trainer.tasks import Logits, TrainingTask, task_of
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.ragged import Ragged
from finetune_trainer.training.export import THRESHOLDS

NO_TEXT = "has no text"


class Asked(Protocol):
    """One model, or several that answer as one."""

    def logits(self, columns: Sequence[Sequence[str]], batch_size: int = BATCH) -> Logits:
        """What it says of rows of one or two texts."""

    def word_logits(self, texts: Sequence[str], words: Ragged, batch_size: int = BATCH) -> Logits:
        """What it says of each word of texts."""


@dataclass
class Predictor:
    """The final model of a study. It cleans, joins and cuts texts as the study did."""

    about: ModelAbout
    labels: Sequence[str]
    """The names of its outputs."""

    thresholds: NDArray[np.float64] | None
    """MultiLabel: the probability from which each label is predicted."""

    asked: Asked
    members: Sequence[LoadedModel]
    """The model, or all models of an ensemble."""

    batch_size: int = BATCH
    says_ranks: bool = False
    """Whether what it says of outputs are ranks among the study's rows, not probabilities (ensembles by RankMean)."""

    longer: int = 0
    """How many texts so far were longer than it reads at a time."""

    @property
    def task(self) -> TrainingTask:
        """What it was trained for."""
        return task_of(self.about.task)

    def predict(self, texts: Sequence[Any], second_texts: Sequence[Any] = ()) -> list[Prediction]:
        """A prediction for each text, in order; one without any text has an `error` instead.

        `second_texts` are those of sentence pairs. For TokenClassification a text may also be given as a list of words.
        """
        columns = (texts, second_texts) if len(second_texts) else (texts,)
        given = bool(len(texts)) and not isinstance(texts[0], str)
        return self.predict_rows(columns, self.about.rows_of(), given)

    def predict_rows(
        self,
        columns: Sequence[Sequence[Any]],
        dataset: Dataset,
        given_words: bool = False,
        places: Places = IN_ORDER,
    ) -> list[Prediction]:
        """A prediction for each row of cells by column, read as `dataset` says; `places` are for errors.

        `given_words`: cells of a model that tags words hold words, not texts. Raises DataError for cells that are no
        text.
        """
        raw = _raw(columns, places)
        if self.task.tags_words:
            return self._tag(raw, dataset, given_words)
        raw = cleaned(raw, dataset.cleaning, Account())
        if dataset.join_text_columns:
            raw = joined(raw, Account())
        rows = [*zip(*raw.texts, strict=True)]
        there = [row for row, texts in enumerate(rows) if None not in texts]
        found = [Prediction(error=NO_TEXT)] * len(rows)
        if there:
            kept: list[list[str]] = [[column[row] for row in there] for column in raw.texts]
            said = self.task.in_words(self.labels, self.logits(kept), self.thresholds)
            for row, prediction in zip(there, said, strict=True):
                found[row] = prediction
        return found

    def _tag(self, raw: RawRows, dataset: Dataset, given_words: bool) -> list[Prediction]:
        found, places = words_to_tag(raw, dataset.cleaning, given_words, Account())
        texts, words = [text or "" for text in found], places_of(places)
        logits = self.word_logits(texts, words)
        entities = entities_in(texts, words, self.task, self.labels, logits)
        return [
            Prediction(error=NO_TEXT) if text is None else Prediction(entities=each)
            for text, each in zip(found, entities, strict=True)
        ]

    def logits(self, columns: Sequence[Sequence[str]]) -> Logits:
        """What it says of rows of one or two cleaned texts, (rows, outputs)."""
        self._count(columns)
        return self.asked.logits(columns, self.batch_size)

    def word_logits(self, texts: Sequence[str], words: Ragged) -> Logits:
        """What it says of each word of cleaned texts, (words, outputs); `words` says where they are."""
        self._count([texts])
        return self.asked.word_logits(texts, words, self.batch_size)

    @property
    def told_of_length(self) -> str:
        """What to know of the texts that were longer than the model reads at a time; empty if none was."""
        if not self.longer:
            return ""
        limit = min(member.limit for member in self.members)
        how = "read in windows that overlap" if self.task.tags_words else "cut off there"
        texts = f"{self.longer:,} texts are" if self.longer > 1 else "1 text is"
        return f"{texts} longer than {limit} tokens and {how}, as in training"

    def _count(self, columns: Sequence[Sequence[str]]) -> None:
        self.longer += max(member.cut_off(columns) for member in self.members)


def _raw(columns: Sequence[Sequence[Any]], places: Places) -> RawRows:
    texts = tuple(map(list, columns))
    return RawRows("texts", "given", texts, (), [None] * len(texts[0]), places)


def load_predictor(path: str | Path, batch_size: int = BATCH) -> Predictor:
    """The model in a folder, or the final model of the study in a folder; on the GPU if there is one.

    Raises ModelError if there is none.
    """
    folder = model_folder(path)
    about = about_of(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (folder / OF_ENSEMBLE).is_file():
        ensemble = load_ensemble(folder, device)
        return Predictor(
            about,
            ensemble.labels,
            ensemble.thresholds,
            ensemble,
            ensemble.members,
            batch_size,
            ensemble.about.method == "RankMean",
        )
    model = LoadedModel.of(folder, device)
    known = model.model.config.id2label
    labels = [known[number] for number in range(len(known))]
    return Predictor(about, labels, _thresholds(folder), model, [model], batch_size)


def _thresholds(folder: Path) -> NDArray[np.float64] | None:
    """Those of MultiLabel; None for a model without."""
    try:
        found = json.loads((folder / THRESHOLDS).read_bytes())
    except FileNotFoundError:
        return None
    return np.array([*found.values()], dtype=np.float64)
