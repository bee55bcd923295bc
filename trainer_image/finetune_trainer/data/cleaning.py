"""Cleans texts for the model, and leaves out rows whose texts are not worth learning from."""

import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import replace

from bs4 import BeautifulSoup, ParserRejectedMarkup, UnusualUsageWarning

from finetune_api.dataset import Cleaning
from finetune_trainer.cells.places import read_each
from finetune_trainer.cells.words import JOINT, text_of
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account

_SILENT = ("script", "style", "template")
_BREAKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "caption", "dd", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
        *("head", "header", "hr", "li", "main", "nav", "ol", "option", "p", "pre", "section"),
        *("table", "td", "th", "title", "tr", "ul"),
    )
)
"""Elements that a browser shows as blocks of their own."""


def cleaned(raw: RawRows, cleaning: Cleaning, account: Account) -> RawRows:
    """`raw` with every text cleaned as `cleaning` says; None for a cell that has no text before or after.

    Raises DataError for cells that cannot be text.
    """
    columns = [read_each(column, text_of, raw.places) for column in raw.texts]
    for field, why, clean in _STEPS:
        if not getattr(cleaning, field):
            continue
        changed = set()
        for column in columns:
            for row, text in enumerate(column):
                column[row] = None if text is None else text_of(clean(text))
                if column[row] != text:
                    changed.add(row)
        step = str(Cleaning.model_fields[field].alias)
        account.add(raw.part, step, len(raw), why, changed=len(changed))
    return replace(raw, texts=tuple(columns))


def clean_text(text: str, cleaning: Cleaning) -> str:
    """One text, cleaned as `cleaning` says."""
    for field, _, clean in _STEPS:
        if getattr(cleaning, field):
            text = clean(text)
    return text


def joined(raw: RawRows, account: Account) -> RawRows:
    """`raw` with the texts of each row joined into one by `JOINT`; cells without a text are left out."""
    rows = [[text for text in row if text is not None] for row in zip(*raw.texts, strict=True)]
    several = sum(len(texts) > 1 for texts in rows)
    account.add(raw.part, "joinTextColumns", len(raw), "joined from several texts", changed=several)
    return replace(raw, texts=([JOINT.join(texts) or None for texts in rows],))


def within_lengths(rows: LabelledRows, cleaning: Cleaning, account: Account) -> LabelledRows:
    """The rows all of whose texts are as long as `cleaning` allows, in characters.

    Raises DataError if no row is left.
    """
    least, most = cleaning.min_characters, cleaning.max_characters
    if least is not None:
        short = _rows_where(rows, lambda text: len(text) < least)
        rows = rows.without(short, "minCharacters", f"shorter than {least} characters", account)
    if most is not None:
        long = _rows_where(rows, lambda text: len(text) > most)
        rows = rows.without(long, "maxCharacters", f"longer than {most} characters", account)
    return rows


def _rows_where(rows: LabelledRows, holds: Callable[[str], bool]) -> set[int]:
    return {row for column in rows.texts for row, text in enumerate(column) if holds(text)}


def visible_text(html: str) -> str:
    """What a browser would show of `html`, one line per block; text that cannot be HTML stays as it is."""
    if "<" not in html and "&" not in html:
        return html
    with warnings.catch_warnings():
        # Here a text may well be a URL, a file name or XML.
        warnings.simplefilter("ignore", UnusualUsageWarning)
        try:
            soup = BeautifulSoup(html, "html.parser")
        except ParserRejectedMarkup:
            return html
    for tag in soup.find_all(_SILENT):
        tag.decompose()
    # A function looks each name up once; a list is searched entry by entry.
    for tag in soup.find_all(lambda tag: tag.name in _BREAKS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    lines = (line.strip() for line in soup.get_text().splitlines())
    return "\n".join(line for line in lines if line)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


_STEPS = (
    ("strip_html", "tags and entities replaced by their text", visible_text),
    ("normalize_unicode", "not in normal form NFKC", _composed),
    ("normalize_whitespace", "white space other than single spaces", _single_spaced),
    ("lowercase", "capital letters", str.lower),
)
"""Each field of `Cleaning` that changes texts, what the changed ones had, and how they change; in order of use."""
