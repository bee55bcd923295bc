"""Rows of tagged words: lists of words and tags, or texts with spans of characters."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, pairwise
from typing import Any, TypeAlias

from finetune_api.dataset import Cleaning, Dataset
from finetune_trainer.cells.places import WrongCell, read_each
from finetune_trainer.cells.words import (
    JOINT,
    decoded,
    group_of,
    in_composed_form,
    is_missing,
    is_unicode,
    name_of,
    shown,
    text_of,
)
from finetune_trainer.data.cleaning import clean_text
from finetune_trainer.data.labels import LabelledRows, label_field, listed, name_at, tell_dropped
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError
from finetune_trainer.tasks.label_sets import list_in
from finetune_trainer.tasks.tagging import (
    OUTSIDE,
    Span,
    Tagged,
    in_iob2,
    is_marked,
    outputs_of,
    spans_of,
)

TOKENS_FIELD = "spec.dataset.tokensColumn"
TAGS_FIELD = "spec.dataset.tagsColumn"
SPANS_FIELD = "spec.dataset.spansColumn"

_SPAN = '{"start": 0, "end": 5, "label": "PER"}'

Place: TypeAlias = tuple[int, int]
"""The first character of a word in its text, and the one after its last."""

Words = list[str] | None
"""The words of a row, or their tags; None if the row has none."""


def tagged_rows(
    raws: Mapping[str, RawRows],
    dataset: Dataset,
    account: Account,
    names: Sequence[str] | None = None,
    singles: bool | None = None,
) -> dict[str, LabelledRows]:
    """The rows of each part that have words and tags, with cleaned texts.

    `names` are the tags' names where the rows have numbers; `singles` says whether each word is an entity by itself,
    where that is known. What the tags of the training rows are, marks of where
    entities begin or plain, decides how those of all parts are read. Raises DataError naming the column that is wrong,
    and if a part has no row left.
    """
    if dataset.spans_column is not None:
        read = {part: _of_spans(raw, dataset.cleaning, account) for part, raw in raws.items()}
        return {part: _usable(raws[part], *found, account) for part, found in read.items()}
    words = {part: _words(raw, dataset.cleaning, account) for part, raw in raws.items()}
    tags = {part: _tags(raw, names) for part, raw in raws.items()}
    for part, raw in raws.items():
        _refuse_other_lengths(raw, words[part], tags[part])
    known = Counter(chain.from_iterable(row or () for row in tags["train"]))
    has_outside = OUTSIDE in known if singles is None else not singles
    notation = _Notation(is_marked(known.elements()), has_outside)
    rows = {}
    for part, raw in raws.items():
        texts = [None if not row else " ".join(row) for row in words[part]]
        labels = [
            None if found is None or not given else _placed(given, notation.outputs(found))
            for given, found in zip(
                words[part], read_each(tags[part], notation.checked, raw.places), strict=True
            )
        ]
        rows[part] = _usable(raw, texts, labels, account)
    return rows


class _Notation:
    """How tags are read."""

    def __init__(self, marked: bool, has_outside: bool) -> None:
        self.marked = marked
        self.singles = not marked and not has_outside

    def checked(self, tags: Words) -> Words:
        """The tags. Raises WrongCell if they are not of this notation."""
        if self.marked and tags:
            odd = next((tag for tag in tags if tag != OUTSIDE and not is_marked([tag])), None)
            if odd is not None:
                must = "must hold O or tags that begin with B-, I-, E-, S-, L-, U- or M-, as most of the training rows do"
                raise WrongCell(TAGS_FIELD, must, shown(odd))
        return tags

    def outputs(self, tags: Sequence[str]) -> tuple[str, ...]:
        """The names of the outputs for a row's tags."""
        if self.singles:
            return tuple(tags)
        return tuple(in_iob2(spans_of(tags, self.marked), len(tags)))


def tag_names(rows: LabelledRows, dataset: Dataset) -> tuple[str, ...]:
    """The outputs of the model for these training rows. Raises DataError if there is nothing to learn from them."""
    labels: list[Any] = rows.labels
    found = {tag for label in labels for tag in label.tags}
    if len(found) < 2:
        what = "no entity" if found == {OUTSIDE} else f"only the tag {min(found)}"
        raise DataError(
            label_field(dataset),
            f"must mark something in the training rows (got {what} in {len(rows)} rows)",
        )
    types = sorted({kind for label in labels for kind in label.types})
    if OUTSIDE not in found and not is_marked(found):
        return tuple(types)
    return tuple(outputs_of(types))


def words_to_tag(
    raw: RawRows, cleaning: Cleaning, given: bool, account: Account
) -> tuple[list[str | None], list[list[Place]]]:
    """The cleaned text of each row, None if it has none, and where its words are: rows without tags.

    `given`: cells hold words, whose text they are with blanks between them, as in `tokensColumn`. Otherwise cells hold
    texts, which keep their characters, as with `spansColumn`.
    """
    if given:
        rows = _words(raw, cleaning, account)
        placed = [_placed(row or [], ()) for row in rows]
        texts = [" ".join(row) if row else None for row in rows]
        return texts, [[*zip(one.starts, one.ends, strict=True)] for one in placed]
    texts = read_each(raw.texts[0], _kept_text, raw.places)
    if cleaning.lowercase:
        texts = [None if text is None else _lower(text) for text in texts]
    return texts, [[*words_in(text or "")] for text in texts]


# -- words and tags


def _words(raw: RawRows, cleaning: Cleaning, account: Account) -> list[Words]:
    """The cleaned words of each row."""
    rows = read_each(raw.texts[0], lambda cell: _listed(cell, TOKENS_FIELD), raw.places)
    changed = 0
    found: list[Words] = []
    for row in rows:
        clean = None if row is None else [_one_word(word, cleaning) for word in row]
        changed += clean != row
        found.append(clean)
    steps = [name for name, value in cleaning.to_json().items() if value is True]
    if steps:
        account.add(raw.part, ", ".join(steps), len(raw), "with words that change", changed=changed)
    return found


def _one_word(word: str, cleaning: Cleaning) -> str:
    """A word after cleaning; what nothing is left of stays as it is: it has a tag."""
    return " ".join(clean_text(word, cleaning).split()) or word


def _tags(raw: RawRows, names: Sequence[str] | None) -> list[Words]:
    def read(cell: Any) -> Words:
        tags = _listed(cell, TAGS_FIELD)
        if tags is None or names is None:
            return tags
        return [name_at(tag, names, TAGS_FIELD) for tag in tags]

    return read_each(raw.labels[0], read, raw.places)


def _listed(cell: Any, field: str) -> Words:
    """The words in a cell: a list, a list as text, or words between blanks. Raises WrongCell."""
    cell = decoded(cell, field)
    must = "must hold lists of words, or words between blanks"
    if is_missing(cell):
        return None
    cell = list_in(cell, field, "words")
    if isinstance(cell, str):
        cell = cell.split()
    if not isinstance(cell, list) or any(isinstance(one, list | dict | bytes) for one in cell):
        raise WrongCell(field, must, shown(cell))
    if not cell:
        return None
    found = [_word(one, field) for one in cell]
    if None in found:
        at = found.index(None)
        raise WrongCell(
            field, "must have a word at each place of a list", f"{shown(cell[at])} at place {at}"
        )
    return [word for word in found if word is not None]


def _word(cell: Any, field: str) -> str | None:
    """A word or a tag; None if there is none. The name of a number is that number."""
    if field == TAGS_FIELD:
        return name_of(cell)
    if is_missing(cell):
        return None
    text = str(cell).replace(JOINT, "")
    return " ".join(text.split()) or None if is_unicode(text) else None


def _refuse_other_lengths(raw: RawRows, words: Sequence[Words], tags: Sequence[Words]) -> None:
    def check(pair: tuple[Words, Words]) -> None:
        given, found = pair
        if given is not None and found is not None and len(given) != len(found):
            must = "must have a tag for each word of tokensColumn"
            raise WrongCell(TAGS_FIELD, must, f"{len(found)} tags for {len(given)} words")

    read_each(zip(words, tags, strict=True), check, raw.places)


def _placed(words: Sequence[str], tags: tuple[str, ...]) -> Tagged:
    """Tagged words of the text in which they are joined by blanks."""
    starts, ends, at = [], [], 0
    for word in words:
        starts.append(at)
        ends.append(at + len(word))
        at += len(word) + 1
    return Tagged(tuple(starts), tuple(ends), tags)


# -- texts and spans


def _of_spans(
    raw: RawRows, cleaning: Cleaning, account: Account
) -> tuple[list[str | None], list[Tagged | None]]:
    """The text and the tagged words of each row."""
    texts: list[str | None] = read_each(raw.texts[0], _kept_text, raw.places)
    cells = zip(raw.labels[0], texts, strict=True)
    spans = read_each(cells, lambda pair: _spans(*pair), raw.places)
    if cleaning.lowercase:
        texts = [None if text is None else _lower(text) for text in texts]
    widened: Counter[str] = Counter()
    labels = [
        None if text is None or found is None else _tagged(text, found, widened)
        for text, found in zip(texts, spans, strict=True)
    ]
    if widened:
        examples = listed([shown(text) for text, _ in widened.most_common()])
        account.warn(
            SPANS_FIELD,
            f"{widened.total()} of {sum(len(found or ()) for found in spans)} spans of the {raw.part} rows begin or end "
            f"within a word and are widened to whole words ({examples})",
        )
    return texts, labels


def _kept_text(cell: Any) -> str | None:
    """The text in a cell as it is: spans count its characters."""
    text = decoded(cell, "spec.dataset.textColumns")
    if isinstance(text, str) and JOINT in text:
        text = text.replace(JOINT, " ")
    return text_of(text)


def _lower(text: str) -> str:
    """In lower case, with as many characters."""
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)


def _spans(cell: Any, text: str | None) -> list[Span] | None:
    """The spans in a cell, in order; None if it has none at all. Raises WrongCell."""
    cell = decoded(cell, SPANS_FIELD)
    if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    if not isinstance(cell, list):
        raise WrongCell(SPANS_FIELD, f"must hold lists of spans such as [{_SPAN}]", shown(cell))
    if text is None:
        return []
    found = sorted(_span(one, text) for one in cell)
    for one, following in pairwise(found):
        if following[0] < one[1]:
            got = f"{shown(text[one[0] : one[1]])} and {shown(text[following[0] : following[1]])}"
            raise WrongCell(SPANS_FIELD, "must hold spans that do not overlap", got)
    return found


def _span(one: Any, text: str) -> Span:
    if not isinstance(one, dict) or not {"start", "end", "label"} <= one.keys():
        raise WrongCell(SPANS_FIELD, f"must hold spans such as {_SPAN}", shown(one))
    start, end, label = one["start"], one["end"], name_of(one["label"])
    whole = all(isinstance(at, int) and not isinstance(at, bool) for at in (start, end))
    if not whole or not 0 <= start < end <= len(text):
        must = "must hold spans within their text, from start to before end, counted in characters from 0"
        raise WrongCell(SPANS_FIELD, must, f"{shown(one)} in a text of {len(text)} characters")
    if label is None:
        raise WrongCell(SPANS_FIELD, "must hold spans with a label", shown(one))
    return start, end, in_composed_form(label)


def _tagged(text: str, spans: Sequence[Span], widened: Counter[str]) -> Tagged | None:
    """The words of a text with the tags of its spans; spans that begin or end within a word are counted in `widened`."""
    words = [*words_in(text)]
    if not words:
        return None
    starts, ends = tuple(start for start, _ in words), tuple(end for _, end in words)
    found: list[Span] = []
    at = 0
    for start, end, label in spans:
        while at < len(words) and ends[at] <= start:
            at += 1
        last = at
        while last < len(words) and starts[last] < end:
            last += 1
        if last == at:
            continue  # only blanks
        if starts[at] < start or ends[last - 1] > end:
            widened[text[start:end]] += 1
        found.append((at, last, label))
        at = last
    return Tagged(starts, ends, tuple(in_iob2(found, len(words))))


def words_in(text: str) -> Iterator[tuple[int, int]]:
    """Where the words of a text are: letters, digits and marks that follow each other; each other character that is
    no blank is one, and so is each letter of a script without blanks between words.
    """
    start = 0
    within = False
    for at, letter in enumerate(text):
        kind = unicodedata.category(letter)[0]
        joins = kind in "LNM" and not _stands_alone(letter)
        if within and not joins:
            yield start, at
        if joins and not within:
            start = at
        within = joins
        if not joins and not letter.isspace() and kind not in "CZ":
            yield at, at + 1
    if within:
        yield start, len(text)


_ALONE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x31FF),  # radicals, Japanese syllables
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7AF),  # Korean syllables: particles follow a noun without a blank
    (0xF900, 0xFAFF),  # Han
    (0x20000, 0x3FFFF),  # Han
)
"""Letters that are words by themselves: of scripts that do not set words, or what is attached to them, apart."""


def _stands_alone(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in _ALONE)


# -- rows


def _usable(
    raw: RawRows,
    texts: Sequence[str | None],
    labels: Sequence[Tagged | None],
    account: Account,
) -> LabelledRows:
    """The rows that have words and tags. Raises DataError if none is left."""
    no_text = [row for row, text in enumerate(texts) if text is None]
    no_label = [row for row, label in enumerate(labels) if label is None and texts[row] is not None]
    for step, dropped in (("text", no_text), ("tags", no_label)):
        tell_dropped(raw, step, f"without {step}", dropped, account)
    kept = [row for row in range(len(raw)) if labels[row] is not None and texts[row] is not None]
    if not kept:
        raise DataError(
            raw.field,
            f"must have {raw.part} rows with words and tags (got {len(raw)} readable rows, {len(no_text)} without a "
            f"text, {len(no_label)} without tags)",
        )
    groups = read_each(raw.groups, group_of, raw.places)
    complete = LabelledRows(raw.field, raw.part, (list(texts),), list(labels), groups, raw.sides)  # type: ignore[arg-type]  # no None is left
    return complete.keep(kept)
