"""The entities that a model finds in texts, from what it says of their words."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from finetune_trainer.data.tagged import Place
from finetune_trainer.tasks import Logits, TrainingTask
from finetune_trainer.tasks.prediction import Entity
from finetune_trainer.tasks.ragged import Ragged, ends
from finetune_trainer.tasks.tagging import OUTSIDE, Tags, entities_of


def places_of(rows: Sequence[Sequence[Place]]) -> Ragged:
    """Where the words of each row are, (words, 2)."""
    places = np.array([*chain.from_iterable(rows)], dtype=np.int64).reshape(-1, 2)
    return Ragged(places, ends([*map(len, rows)]))


def entities_in(
    texts: Sequence[str], words: Ragged, task: TrainingTask, names: Sequence[str], logits: Logits
) -> list[list[Entity]]:
    """The entities in each text, in order; `words` are as `places_of` says, `logits` (words, outputs).

    `names` are those of the outputs. Where every word is an entity, those are all words that have a token.
    """
    said = task.predictions(logits)
    tags = Tags(said.values, said.offsets, singles=names[0] != OUTSIDE)
    shares = task.shares(logits)
    likeliest = shares[np.arange(len(shares)), said.values]
    found, kinds = entities_of(tags), task.kinds(names)
    lists: list[list[Entity]] = [[] for _ in texts]
    for row, first, last, kind in zip(*found.arrays, strict=True):
        if kind >= 0:  # a word without a token has none
            start, end = int(words.values[first, 0]), int(words.values[last - 1, 1])
            score = float(likeliest[first:last].mean())
            lists[row].append(Entity(start, end, kinds[kind], texts[row][start:end], score))
    return lists
