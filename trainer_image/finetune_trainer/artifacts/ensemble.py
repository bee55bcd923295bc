"""The final model when it is an ensemble: what its folder contains, and how to load and use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from transformers import AutoTokenizer

from finetune_api.outputs import EnsembleMethod
from finetune_api.schema import Model
from finetune_api.tasks import Task
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.data.tagged import words_in
from finetune_trainer.data.tokens import Frame, tokens_of_words
from finetune_trainer.data.windows import windows_of
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.ragged import Ragged, ends
from finetune_trainer.tasks.tagging import OUTSIDE, Tags, entities_of
from finetune_trainer.training.ensemble import Answers, Combination

ABOUT = "ensemble.json"
MEMBERS = "members"
"""Folder of the members' models, each named after its trial."""

_RANKS = "ranks.safetensors"
_BATCH = 64


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


@dataclass(frozen=True)
class Entity:
    """What was found in a text."""

    start: int
    end: int
    """The first of its characters, and the one after the last."""

    label: str
    """Its type."""

    text: str


class LoadedEnsemble:
    """An ensemble, ready to predict."""

    def __init__(
        self, about: EnsembleAbout, combination: Combination, models: Sequence[tuple[Any, Any]]
    ) -> None:
        """`models` has the model and the tokenizer of each member."""
        self.about = about
        self.labels = about.labels
        self.thresholds = None if about.thresholds is None else np.array(about.thresholds)
        """MultiLabel: probability from which each label is predicted, (labels,)."""

        self._combination = combination
        self._models = models

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
        asked = (self._logits(*each, texts, second_texts) for each in self._models)
        answers = [Answers(logits, None) for logits in asked]
        return task_of(self.about.task).shares(self._combination(answers).logits)

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """TokenClassification: the entities in each text, in order.

        Where every word is one, those are all words. Long texts are read in windows, as in training.
        """
        found = [[*words_in(text)] for text in texts]
        places = np.array([*chain.from_iterable(found)], dtype=np.int64).reshape(-1, 2)
        words = Ragged(places, ends([*map(len, found)]))
        answers = [Answers(_of_words(*each, texts, words), None) for each in self._models]
        task = task_of(self.about.task)
        said = task.predictions(self._combination(answers).logits)
        tags = Tags(said.values, said.offsets, singles=self.labels[0] != OUTSIDE)
        named, kinds = entities_of(tags), task.kinds(self.labels)
        lists: list[list[Entity]] = [[] for _ in texts]
        for row, first, last, kind in zip(*named.arrays, strict=True):
            if kind >= 0:  # a word without a token has none
                start, end = int(places[first, 0]), int(places[last - 1, 1])
                lists[row].append(Entity(start, end, kinds[kind], texts[row][start:end]))
        return lists

    def _logits(
        self, model: Any, tokenizer: Any, texts: Sequence[str], second_texts: Sequence[str] | None
    ) -> NDArray[np.float32]:
        logits = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            rows = slice(start, start + _BATCH)
            given = [list(texts[rows])]
            if second_texts is not None:
                given.append(list(second_texts[rows]))
            inputs = tokenizer(*given, truncation=True, padding=True, return_tensors="pt")
            with torch.inference_mode():
                logits[rows] = model(**inputs).logits.numpy()
        return logits


def _of_words(model: Any, tokenizer: Any, texts: Sequence[str], words: Ragged) -> Ragged:
    """The outputs of a model for each word, (words, outputs); NaN for one without a token."""
    values = np.full((len(words.values), len(model.config.id2label)), np.nan, dtype=np.float32)
    readable = [text for text in texts if text.strip()]
    if not readable:
        return words.with_values(values)
    frame = Frame.of(tokenizer, [readable])
    tokens, first = tokens_of_words(tokenizer, texts, words)
    limit = int(tokenizer.model_max_length)
    windows = windows_of(tokens, first, limit - frame.special)
    outputs = []
    for start in range(0, len(windows.row), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(windows.row)))
        arrays, _ = frame.padded([windows.tokens], rows, [windows.tokens.lengths[rows]], limit)
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            logits = model(**inputs).logits.numpy()
        labelled = windows.word_tokens[rows]
        outputs.append(logits[labelled.rows, len(frame.before) + labelled.values])
    values[windows.known] = np.concatenate(outputs)
    return words.with_values(values)


def load_ensemble(folder: str | Path) -> LoadedEnsemble:
    """The ensemble that a study has written to `folder`, on the CPU in float32.

    Raises FileNotFoundError if the final model there is not an ensemble.
    """
    folder = Path(folder)
    about = EnsembleAbout.model_validate_json((folder / ABOUT).read_bytes())
    references = None
    if about.method == "RankMean":
        found = load_file(folder / _RANKS)
        references = tuple(found[str(member.trial)] for member in about.members)
    weights = np.array([member.weight for member in about.members])
    models = []
    for member in about.members:
        path = folder / MEMBERS / str(member.trial)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
        models.append((load_exported(path), tokenizer))
    return LoadedEnsemble(about, Combination(about.task, weights, references), models)
