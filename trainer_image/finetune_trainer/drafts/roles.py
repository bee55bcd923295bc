"""Which columns of a table are texts, labels and groups, and which task follows from them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from finetune_api.tasks import Task
from finetune_trainer.cells.words import in_composed_form
from finetune_trainer.data.formats import MissingColumn, quoted
from finetune_trainer.drafts.columns import Column, parts_of
from finetune_trainer.errors import DataError

TEXT_OPTION, LABEL_OPTION, TASK_OPTION = "--text-column", "--label-column", "--task"

_FEW_CLASSES = 20
"""Most different whole numbers that are taken for classes."""

_FEW_WORDS = 3.0
"""Mean words of a cell from which a column is taken for natural language."""

_SEPARATORS = ("|", ";", ",")
_NAMES_OF_LABELS = re.compile(
    r"(.*[\W_])?(labels?|class|classes|category|categories|target|y|intent|sentiment|emotion|topics?|genres?"
    r"|ratings?|stars|scores?|tags?|sections?|toxicity|polarity|stance)([\W_](name|text|id))?",
    re.IGNORECASE,
)
_NAMES_OF_TEXTS = re.compile(
    r"(.*[\W_])?(texts?|sentences?|content|body|description|question|query|review|comment|message|tweet|utterance"
    r"|document|abstract|passage|post|prompt|title|headline|summary|premise|hypothesis)\d?",
    re.IGNORECASE,
)
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "answer"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
)
"""Names of columns that a model is to read as a pair."""

_NAMES_OF_TOKENS = re.compile(r"(tokens?|words?)", re.IGNORECASE)
_NAMES_OF_TAGS = re.compile(r"(.*[\W_])?(tags?|ner|pos|upos|labels?)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What only the author of the data may know: the option that answers it, and the best guess."""

    option: str
    text: str
    best: str
    others: tuple[str, ...]


Answer = Callable[[Question], str]
"""Who answers: returns the best guess, or one of the others."""


@dataclass(frozen=True)
class Given:
    """What the user has said already."""

    texts: tuple[str, ...] = ()
    label: str | None = None
    task: Task | None = None


@dataclass(frozen=True)
class Roles:
    """What the columns are for."""

    task: Task
    labels: tuple[Column, ...]
    """The only column of labels, or (MultiLabel) one column for each label."""

    texts: tuple[Column, ...] = ()
    tokens: Column | None = None
    separator: str | None = None
    """MultiLabel: what is between the labels of a text."""

    groups: tuple[Column, ...] = field(default=())
    """Columns whose values several rows share, and which may be what rows belong to."""

    @property
    def label(self) -> Column:
        """The first column of labels."""
        return self.labels[0]


def roles_of(columns: Sequence[Column], given: Given, answer: Answer) -> Roles:
    """What each column is for, as `given` says and otherwise as it looks; `answer` is asked where that is unclear.

    Raises DataError, naming the option to give, where nothing can be guessed or what is given cannot be.
    """
    tagged = _words_and_tags(columns, given, answer)
    if tagged is not None:
        return tagged
    if given.task == "TokenClassification":
        spans = [column for column in columns if column.form == "Spans"]
        if not spans:
            raise DataError(
                TASK_OPTION,
                "must be another than TokenClassification, or the data must have spans, or words and a tag for each "
                f"(the columns are: {_described(columns)})",
            )
    label = _named(given.label, columns, LABEL_OPTION) if given.label is not None else None
    texts = _texts(columns, given, label, answer)
    left = [column for column in columns if column not in texts]
    if label is None:
        marks = _marks(left, given.task)
        if marks:
            return _with_groups(Roles("MultiLabel", marks, texts), columns)
        label = _label(left, given.task, answer)
    _refuse_useless(label, given.task)
    task = given.task or _task(label, answer)
    separator = _checked(label, task)
    return _with_groups(Roles(task, (label,), texts, separator=separator), columns)


def _named(name: str, columns: Sequence[Column], option: str) -> Column:
    for column in columns:
        if in_composed_form(column.name) == in_composed_form(name):
            if column.form == "Nothing":
                raise DataError(
                    option, f"must name a column with values (got {quoted(name)}, empty)"
                )
            return column
    missing = MissingColumn(name, [column.name for column in columns])
    near = "" if missing.near is None else f"; is {quoted(missing.near)} meant?"
    raise DataError(option, f"{missing}{near}")


def _described(columns: Sequence[Column]) -> str:
    """The columns with what they hold, for messages."""
    forms = {"Nothing": "empty", "Text": "text", "Numbers": "numbers", "Lists": "lists"}
    shown = [
        f"{quoted(column.name)} ({forms.get(column.form, column.form.lower())})"
        for column in columns[:12]
    ]
    return ", ".join(shown) + (", …" if len(columns) > 12 else "")


# -- words and tags


def _words_and_tags(columns: Sequence[Column], given: Given, answer: Answer) -> Roles | None:
    """The columns of words and of a tag for each word; None if there are none, or others are asked for."""
    if given.texts or given.task not in (None, "TokenClassification"):
        return None
    listed = [column for column in columns if column.form == "Lists" or column.is_tags]
    tags = [column for column in listed if column.is_tags]
    if not tags:
        tags = [column for column in listed if _NAMES_OF_TAGS.fullmatch(column.name)]
    if given.label is not None:
        tags = [_named(given.label, columns, LABEL_OPTION)]
    found = {tag: words for tag in tags if (words := _words_of(tag, columns)) is not None}
    if not found:
        return None
    best = max(found, key=lambda column: "ner" in column.name.lower())
    if len(found) > 1:
        best = _asked(answer, LABEL_OPTION, "Which column has the tags?", best, [*found])
    return Roles("TokenClassification", (best,), tokens=found[best])


def _words_of(tag: Column, columns: Sequence[Column]) -> Column | None:
    """The column with a word for each tag; None if there is none."""
    words = [
        column
        for column in columns
        if column is not tag and column.form in ("Lists", "Text") and _alike(column, tag)
    ]
    best = max(
        words, key=lambda column: bool(_NAMES_OF_TOKENS.fullmatch(column.name)), default=None
    )
    return best if best is not None and (best.form == "Lists" or tag.is_tags) else None


def _alike(words: Column, tags: Column) -> bool:
    """Whether each row has as many words as tags, and more than one somewhere."""
    lengths = [
        (len(parts_of(some)), len(parts_of(others)))
        for some, others in zip(words.cells, tags.cells, strict=True)
    ]
    return all(some == others for some, others in lengths) and max(lengths)[0] > 1


# -- texts


def _texts(
    columns: Sequence[Column], given: Given, label: Column | None, answer: Answer
) -> tuple[Column, ...]:
    if given.texts:
        found = tuple(_named(name, columns, TEXT_OPTION) for name in given.texts)
        if label in found:
            raise DataError(LABEL_OPTION, f"must not be a text column (got {quoted(label.name)})")
        return found
    left = [column for column in columns if column is not label and column.form == "Text"]
    prose = [
        column
        for column in left
        if not column.is_identifier
        and column.words >= _FEW_WORDS
        and 2 * column.distinct > column.filled
    ]
    named = [
        column
        for column in left
        if _NAMES_OF_TEXTS.fullmatch(column.name) and not column.is_identifier
    ]
    candidates = prose or named
    if not candidates:
        raise DataError(
            TEXT_OPTION,
            f"must be given: no column looks like natural language (the columns are: {_described(columns)})",
        )
    by_name = {column.name.strip().lower(): column for column in candidates}
    for first, second in _PAIRS:
        if first in by_name and second in by_name:
            return by_name[first], by_name[second]
    best = max(candidates, key=lambda column: (column in named, column.words))
    if len(candidates) == 1 or [best] == [column for column in candidates if column in named]:
        return (best,)
    chosen = _asked(answer, TEXT_OPTION, "Which column has the texts?", best, candidates)
    return (chosen,)


def _asked(
    answer: Answer, option: str, text: str, best: Column, candidates: Sequence[Column]
) -> Column:
    others = tuple(column.name for column in candidates if column is not best)
    name = answer(Question(option, text, best.name, others))
    return next(column for column in candidates if column.name == name)


# -- labels


def _marks(columns: Sequence[Column], task: Task | None) -> tuple[Column, ...]:
    """Columns of yes and no, one for each label, if nothing else is called the label."""
    marks = tuple(column for column in columns if column.is_yes_or_no)
    named = any(_NAMES_OF_LABELS.fullmatch(column.name) for column in columns)
    return marks if len(marks) >= 2 and not named and task in (None, "MultiLabel") else ()


def _label(columns: Sequence[Column], task: Task | None, answer: Answer) -> Column:
    usable = [column for column in columns if column.form not in ("Nothing", "Other")]
    if task == "TokenClassification" or any(column.form == "Spans" for column in usable):
        usable = [column for column in usable if column.form == "Spans"]
    if task == "Regression":
        usable = [column for column in usable if column.form == "Numbers"]
    named = [column for column in usable if _NAMES_OF_LABELS.fullmatch(column.name)]
    if named:  # the plain name before a compound one
        best = min(named, key=lambda column: len(column.name))
        if len(named) == 1:
            return best
        return _asked(answer, LABEL_OPTION, "Which column has the labels?", best, named)
    candidates = [column for column in usable if not column.is_identifier]
    likely = [column for column in candidates if _useless(column, task) is None]
    if not likely and len(candidates) == 1:
        return candidates[0]  # which is told what is wrong with it
    if not likely:
        raise DataError(
            LABEL_OPTION,
            f"must be given: no column looks like labels (beside the texts there are: {_described(columns) or 'none'})",
        )
    best = min(reversed(likely), key=lambda column: (column.form == "Numbers", column.distinct))
    if len(likely) == 1:
        return best
    return _asked(answer, LABEL_OPTION, "Which column has the labels?", best, likely)


def _refuse_useless(label: Column, task: Task | None) -> None:
    why = _useless(label, task)
    if why is not None:
        raise DataError(
            LABEL_OPTION,
            f"must name a column that differs between rows and is shared by some (got "
            f"{quoted(label.name)}: {why})",
        )


def _useless(label: Column, task: Task | None) -> str | None:
    """Why there is nothing to learn from a column; None if there may be."""
    if label.form == "Spans":
        return None if any(label.cells) else "no row has a span"
    if label.distinct < 2:
        only = next(iter(label.counts), "")
        return f"all {label.filled} rows that have a value say {quoted(only)}"
    if label.form == "Text" and label.distinct == label.filled and not _separator(label):
        return f"each of {label.filled} rows has a value of its own"
    if (
        label.form == "Numbers"
        and task not in (None, "Regression")
        and label.distinct == label.filled
    ):
        return f"each of {label.filled} rows has a number of its own"
    return None


def _task(label: Column, answer: Answer) -> Task:
    """What the cells of the labels say is to be learned."""
    if label.form == "Spans":
        return "TokenClassification"
    if label.form == "Lists" or _separator(label) is not None:
        return "MultiLabel"
    if label.form != "Numbers" or (label.is_whole and label.distinct == 2):
        return "SingleLabel"
    few = label.is_whole and label.distinct <= _FEW_CLASSES and 3 * label.distinct <= label.filled
    if not few:
        return "Regression"
    text = f"{quoted(label.name)} has {label.distinct} different numbers: are they classes, or amounts (Regression)?"
    said = answer(Question(TASK_OPTION, text, "SingleLabel", ("Regression",)))
    return "Regression" if said == "Regression" else "SingleLabel"


def _checked(label: Column, task: Task) -> str | None:
    """The separator of labels, if the task needs one. Raises DataError if the task cannot have such labels."""
    wanted = {
        "SingleLabel": ("Text", "Numbers"),
        "MultiLabel": ("Lists", "Text"),
        "Regression": ("Numbers",),
        "TokenClassification": ("Spans",),
    }
    if label.form not in wanted[task]:
        holds = {"Numbers": "numbers", "Lists": "lists", "Spans": "spans"}.get(label.form, "text")
        raise DataError(
            TASK_OPTION,
            f"must suit the labels (got {task}, and {quoted(label.name)} holds {holds})",
        )
    if task != "MultiLabel" or label.form == "Lists":
        return None
    separator = _separator(label)
    if separator is None:
        raise DataError(
            LABEL_OPTION,
            "must name a column of lists, or of labels with | or ; or , between them, with task MultiLabel "
            f"(got {quoted(label.name)})",
        )
    return separator


def _separator(label: Column) -> str | None:
    """What is between the labels of a cell: what makes of the cells' texts fewer names that more rows share."""
    if label.form != "Text":
        return None
    for mark in _SEPARATORS:
        several = sum(count for cell, count in label.counts.items() if mark in cell)
        parts = Counter(
            part.strip() for cell in label.counts for part in cell.split(mark) if part.strip()
        )
        short = all(len(part.split()) <= 4 for part in parts)
        shared = len(parts) < label.distinct or 2 * len(parts) <= sum(parts.values())
        if 20 * several >= label.filled and short and shared and several > 1:
            return mark
    return None


# -- groups


def _with_groups(roles: Roles, columns: Sequence[Column]) -> Roles:
    used = (*roles.texts, *roles.labels)
    groups = tuple(
        column
        for column in columns
        if column not in used
        and column.form in ("Text", "Numbers")
        and column.distinct >= 10
        and 2 * column.distinct <= column.filled
        and (column.form == "Text" or column.is_whole)
    )
    return Roles(roles.task, roles.labels, roles.texts, roles.tokens, roles.separator, groups)
