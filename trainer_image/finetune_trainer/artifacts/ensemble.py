"""The final model when it is an ensemble: what its folder contains, and how to load and use it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from finetune_api.outputs import EnsembleMethod
from finetune_api.schema import Model
from finetune_api.tasks import Task
from finetune_trainer.artifacts.entities import entities_in, places_of
from finetune_trainer.artifacts.exported import BATCH, LoadedModel
from finetune_trainer.data.tagged import words_in
from finetune_trainer.tasks import Logits, task_of
from finetune_trainer.tasks.prediction import Entity
from finetune_trainer.tasks.ragged import Ragged
from finetune_trainer.training.ensemble import Answers, Combination

ABOUT = "ensemble.json"
MEMBERS = "members"
"""Folder of the members' models, each named after its trial."""

_RANKS = "ranks.safetensors"


class EnsembleMember(Model):
    """A trial that is part of the ensemble."""

    trial: int
    weight: float
    value: float
    """The objective of this member alone, trained on the training rows, on the validation rows."""

    pooling: str
    """As in the hyperparameter."""


class EnsembleAbout(Model):
    """`ensemble.json`: how the members' outputs are combined, and how good that was on the validation rows."""

    task: Task
    method: EnsembleMethod
    labels: list[str]
    """Name of each output."""

    members: list[EnsembleMember]
    metric: str
    value: float
    """The objective of the ensemble, its members trained on the training rows, on the validation rows."""

    thresholds: list[float] | None = None
    """MultiLabel: probability from which each label is predicted."""


def ensemble_files(about: EnsembleAbout, combination: Combination) -> dict[str, bytes]:
    """The files (name → content) that turn a folder with the members' models into an ensemble."""
    files = {}
    if combination.references is not None:
        trials = (str(member.trial) for member in about.members)
        files[_RANKS] = bytes(save(dict(zip(trials, combination.references, strict=True))))
    text = json.dumps(about.to_json(), indent=1, ensure_ascii=False) + "\n"
    return {**files, ABOUT: text.encode()}  # written last: with it the folder is complete


class LoadedEnsemble:
    """An ensemble, ready to predict."""

    def __init__(
        self, about: EnsembleAbout, combination: Combination, members: Sequence[LoadedModel]
    ) -> None:
        """`members` are in the order of `about`."""
        self.about = about
        self.labels = about.labels
        self.thresholds = None if about.thresholds is None else np.array(about.thresholds)
        """MultiLabel: probability from which each label is predicted, (labels,)."""

        self._combination = combination
        self.members = members

    def predict(
        self, texts: Sequence[str], second_texts: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """The probability of each label for each row, (rows, labels); for Regression the number, (rows, 1).

        `second_texts` are those of sentence pairs. With RankMean the result is not a probability but the
        mean rank, which for SingleLabel is scaled so that those of a row add up to 1. Raises TypeError for an ensemble
        that tags words: `entities` asks it.
        """
        if task_of(self.about.task).tags_words:
            raise TypeError("this ensemble tags words: ask it by entities(texts)")
        columns = [texts] if second_texts is None else [texts, second_texts]
        return task_of(self.about.task).shares(self.logits(columns))

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """TokenClassification: the entities in each text, in order.

        Where every word is one, those are all words. Long texts are read in windows, as in training.
        """
        words = places_of([[*words_in(text)] for text in texts])
        said = self.word_logits(texts, words)
        return entities_in(texts, words, task_of(self.about.task), self.labels, said)

    def logits(self, columns: Sequence[Sequence[str]], batch_size: int = BATCH) -> Logits:
        """What one model would say of rows of one or two texts, (rows, outputs)."""
        asked = (member.logits(columns, batch_size) for member in self.members)
        return self._combination([Answers(logits, None) for logits in asked]).logits

    def word_logits(self, texts: Sequence[str], words: Ragged, batch_size: int = BATCH) -> Logits:
        """What one model would say of each word of texts; see `LoadedModel.word_logits`."""
        asked = (member.word_logits(texts, words, batch_size) for member in self.members)
        return self._combination([Answers(logits, None) for logits in asked]).logits


def load_ensemble(folder: str | Path, device: str = "cpu") -> LoadedEnsemble:
    """The ensemble that a study has written to `folder`, in float32.

    Raises FileNotFoundError if the final model there is not an ensemble.
    """
    folder = Path(folder)
    about = EnsembleAbout.model_validate_json((folder / ABOUT).read_bytes())
    references = None
    if about.method == "RankMean":
        found = load_file(folder / _RANKS)
        references = tuple(found[str(member.trial)] for member in about.members)
    weights = np.array([member.weight for member in about.members])
    paths = (folder / MEMBERS / str(member.trial) for member in about.members)
    members = [LoadedModel.of(path, device) for path in paths]
    return LoadedEnsemble(about, Combination(about.task, weights, references), members)
