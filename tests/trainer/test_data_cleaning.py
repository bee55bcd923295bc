"""Cleaning changes the texts it should, drops the rows it should, and accounts for each."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import Cleaning
from finetune_trainer.data import PreparedData
from finetune_trainer.data.cleaning import cleaned, visible_text
from finetune_trainer.data.duplicates import (
    warn_of_shared_texts,
    without_conflicts,
    without_duplicates,
)
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.report import report
from finetune_trainer.data.steps import Account, Step
from finetune_trainer.errors import DataError
from tests.trainer.conftest import MakeSpec
from tests.trainer.data_files import prepare_rows, texts_of


def raw(*texts: Any) -> RawRows:
    labels: list[Any] = ["a"] * len(texts)
    return RawRows("spec.dataset.files.train", "train", ([*texts],), (labels,), [None] * len(texts))


def labelled(part: str, rows: Sequence[tuple[str, str]]) -> LabelledRows:
    texts, labels = ([*column] for column in zip(*rows, strict=True))
    return LabelledRows(f"files.{part}", part, (texts,), labels, [None] * len(rows))


def pairs(rows: LabelledRows) -> list[tuple[str, Any]]:
    return list(zip(rows.texts[0], rows.labels, strict=True))


def numbered(count: int) -> list[dict[str, str]]:
    return [
        {"text": f"message {row} of the day", "label": ("good", "bad")[row % 2]}
        for row in range(count)
    ]


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<p>Hello <b>w</b>orld</p>", "Hello world"),
        ("one<br>two<div>three</div>four", "one\ntwo\nthree\nfour"),
        ("<ul><li>a</li><li>b</li></ul>", "a\nb"),
        ("<script>x = '<p>y'</script>so<style>p {color: red}</style>", "so"),
        ("<!-- hidden -->shown", "shown"),
        ("fish &amp; chips, &#163;5", "fish & chips, £5"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("plain\n\n text ", "plain\n\n text "),
    ],
)
def test_html_becomes_what_a_browser_shows(html: str, shown: str) -> None:
    assert visible_text(html) == shown


@pytest.mark.parametrize(
    "text", ["https://example.org/?a=1&b=2", "notes&letters.html", "<![nonsense[ of no document"]
)
def test_text_that_is_no_html_stays_as_it_is_without_a_warning(text: str) -> None:
    assert visible_text(text) == text


def test_xml_is_read_without_a_warning() -> None:
    assert visible_text('<?xml version="1.0"?><a>hi</a>').endswith("hi")


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("stripHtml", "<i>ﬁ  b</i>", "ﬁ  b"),
        ("normalizeUnicode", "<i>ﬁ  b</i>", "<i>fi  b</i>"),
        ("normalizeWhitespace", "\t<i>ﬁ \n b</i> ", "<i>ﬁ b</i>"),
        ("lowercase", "<I>ﬁ  B</I>", "<i>ﬁ  b</i>"),
    ],
)
def test_each_step_changes_only_what_it_names(field: str, text: str, expected: str) -> None:
    account = Account()
    found = cleaned(raw(text, "same"), Cleaning.model_validate({field: True}), account)
    assert found.texts == ([expected, "same"],)
    (step,) = account.steps
    assert (step.step, step.rows_in, step.changed, step.dropped) == (field, 2, 1, 0)
    untouched = cleaned(raw(text), Cleaning(), account)
    assert untouched.texts == ([text],)
    assert len(account.steps) == 1


def test_steps_come_in_the_order_of_the_fields() -> None:
    every = Cleaning(
        strip_html=True, normalize_unicode=True, normalize_whitespace=True, lowercase=True
    )
    account = Account()
    found = cleaned(raw("<p>ﬁne&nbsp; <b>W</b>orld</p>", "<br>", None, "x"), every, account)
    assert found.texts == (["fine world", None, None, "x"],)
    assert [(step.step, step.changed) for step in account.steps] == [
        ("stripHtml", 2),
        ("normalizeUnicode", 1),
        ("normalizeWhitespace", 1),
        ("lowercase", 1),
    ]


def test_rows_without_a_text_after_cleaning_are_dropped_from_every_part(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    parts = {name: [*numbered(6), {"text": "<hr>", "label": "good"}] for name in ("train", "test")}
    data = prepare_rows(make_spec, tmp_path, parts, dataset={"cleaning": {"stripHtml": True}})
    for name in parts:
        told = f"1 of 7 {name} rows (14.3%) have no text and are left out (line 7)"
        warning = f"spec.dataset.files.{name}: {told}"
        assert warning in data.warnings
    assert len(data.test) == 6


def test_rows_of_other_lengths_are_dropped_from_every_part(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [
        {"text": word, "label": label} for word in ("ab", "abc", "abcd", "abcde") for label in "xy"
    ]
    parts = dict.fromkeys(("train", "validation", "test"), rows)
    cleaning = {"minCharacters": 3, "maxCharacters": 4}
    data = prepare_rows(make_spec, tmp_path, parts, dataset={"cleaning": cleaning})
    for name in parts:
        assert texts_of(data, name) == ["abc", "abc", "abcd", "abcd"]
    assert Step("test", "minCharacters", 8, 0, 2, "shorter than 3 characters") in data.steps
    assert Step("test", "maxCharacters", 6, 0, 2, "longer than 4 characters") in data.steps


def test_cleaning_that_leaves_no_row_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    parts = {"train": numbered(10), "test": numbered(3)}
    with pytest.raises(
        DataError, match=r"rows left after minCharacters \(got 10 rows, all shorter"
    ):
        prepare_rows(make_spec, tmp_path, parts, dataset={"cleaning": {"minCharacters": 100}})


def test_the_first_of_equal_rows_is_kept() -> None:
    account = Account()
    rows = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("a", "y")]
    found = without_duplicates({"train": labelled("train", rows)}, account)
    assert pairs(found["train"]) == [("a", "x"), ("b", "x"), ("a", "y")]
    (step,) = account.steps
    assert (step.step, step.rows_in, step.dropped) == ("duplicates", 6, 3)
    assert account.warnings == [
        "files.train: left out 3 of 6 train rows with the same texts and label as an earlier row"
    ]


def test_pairs_are_equal_only_if_both_texts_are() -> None:
    rows = LabelledRows("f", "train", (["a", "a", "a"], ["b", "c", "b"]), ["x"] * 3, [None] * 3)
    found = without_duplicates({"train": rows}, Account())["train"]
    assert found.texts == (["a", "a"], ["b", "c"])


def test_what_is_tested_on_is_not_trained_on() -> None:
    parts = {
        "train": labelled("train", [("a", "x"), ("v", "x"), ("t", "y"), ("both", "x")]),
        "validation": labelled("validation", [("v", "y"), ("both", "x"), ("w", "x")]),
        "test": labelled("test", [("t", "y"), ("both", "x"), ("u", "x")]),
    }
    found = without_duplicates(parts, Account())
    assert pairs(found["train"]) == [("a", "x")]
    assert pairs(found["validation"]) == [("v", "y"), ("w", "x")]
    assert pairs(found["test"]) == pairs(parts["test"])


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        (1, ["2 of 3 validation rows", "2 of 3 test rows"]),
        (5, ["5 of 7 rows of the folds", "2 of 3 test rows"]),
    ],
)
def test_held_out_rows_that_are_trained_on_are_told(folds: int, told: list[str]) -> None:
    parts = {
        "train": labelled("train", [("a", "x"), ("v", "x"), ("v", "y"), ("both", "x")]),
        "validation": labelled("validation", [("v", "y"), ("both", "x"), ("w", "x")]),
        "test": labelled("test", [("w", "y"), ("both", "x"), ("u", "x")]),
    }
    account = Account()
    warn_of_shared_texts(parts, folds, account)
    field = "spec.dataset.cleaning.duplicates: "
    assert [warning.split(" have")[0] for warning in account.warnings] == [field + t for t in told]
    once = without_duplicates(parts, Account())
    account = Account()
    warn_of_shared_texts(once, 1, account)
    assert account.warnings == [], "what Drop leaves has none"


def test_texts_are_compared_as_cleaned(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [*numbered(6), {"text": " <b>MESSAGE</b>  0 of the day", "label": "good"}]
    parts = {"train": numbered(6), "validation": rows, "test": numbered(20)[10:]}
    parts["train"].append({"text": "something else", "label": "good"})
    parts["train"].append({"text": "some other thing", "label": "bad"})

    def kept(**cleaning: Any) -> list[int]:
        changes = {"cleaning": {"duplicates": "Drop", **cleaning}}
        data = prepare_rows(make_spec, tmp_path, parts, dataset=changes)
        return [len(data.train), len(data.validation)]

    assert kept() == [2, 7]
    assert kept(stripHtml=True, normalizeWhitespace=True, lowercase=True) == [2, 6]


def split_texts(data: PreparedData) -> list[set[str]]:
    return [set(texts_of(data, part)) for part in ("train", "validation", "test")]


def test_equal_texts_with_different_labels_are_never_split_up(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [
        {"text": f"message {row // 2} of the day", "label": ("good", "bad")[row % 2]}
        for row in range(30)
    ]
    rows += rows[:10]

    def leaks(seed: int, duplicates: str) -> int:
        cleaning = {"duplicates": duplicates, "conflicts": "Keep"}
        split = {"validation": 0.2, "test": 0.2, "seed": seed}
        dataset = {"cleaning": cleaning, "split": split}
        data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=dataset)
        train, validation, test = split_texts(data)
        across = len(train & (validation | test)) + len(validation & test)
        folds = [set(texts_of(data.fold(n, 3, True, seed), "validation")) for n in range(3)]
        return across + sum(len(folds[n] & folds[n - 1]) for n in range(3))

    assert all(leaks(seed, "Keep") for seed in range(3))
    assert not any(leaks(seed, "Drop") for seed in range(3))


CONFLICT = [("a", "x"), ("b", "x"), ("a", "y"), ("c", "y"), ("c", "y")]


@pytest.mark.parametrize(
    ("conflicts", "left", "warnings"),
    [
        ("Keep", CONFLICT, []),
        (
            "Report",
            CONFLICT,
            [
                "spec.dataset.cleaning.conflicts: 2 of 5 train rows have the same texts as a row with a different "
                "label; they were kept (conflicts: Drop leaves them out)"
            ],
        ),
        (
            "Drop",
            [("b", "x"), ("c", "y"), ("c", "y")],
            [
                "files.train: left out 2 of 5 train rows with the same texts as a row with a different label"
            ],
        ),
    ],
)
def test_conflicting_labels_are_kept_told_or_dropped(
    conflicts: Any, left: list[Any], warnings: list[str]
) -> None:
    account = Account()
    parts = {name: labelled(name, CONFLICT) for name in ("train", "test")}
    found = without_conflicts(parts, ("train",), conflicts, account)
    assert pairs(found["train"]) == left
    assert pairs(found["test"]) == CONFLICT
    assert account.warnings == warnings


def test_a_conflict_with_a_validation_row_counts_where_folds_train_on_it(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    train = [*numbered(20), {"text": "unclear", "label": "good"}]
    validation = [*numbered(30)[20:], {"text": "unclear", "label": "bad"}]
    parts = {"train": train, "validation": validation, "test": validation}
    dataset = {"cleaning": {"conflicts": "Drop"}}

    def sizes(**changes: Any) -> list[int]:
        data = prepare_rows(make_spec, tmp_path, parts, dataset=dataset, **changes)
        return [len(data.part(name)) for name in parts]

    assert sizes() == [21, 11, 11]
    assert sizes(validation={"crossValidation": {"folds": 3}}) == [20, 10, 11]


def test_every_step_is_accounted_for_and_the_same_each_time(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    train = numbered(20)
    train += [{"text": "a", "label": "good"}, {"text": "unclear one", "label": "good"}]
    train += [{"text": "unclear one", "label": "bad"}, {"text": "no label"}, train[0]]
    parts = {"train": train, "test": [*numbered(22)[19:], {"text": "new thing", "label": "ugly"}]}
    cleaning = {
        "normalizeWhitespace": True,
        "minCharacters": 3,
        "duplicates": "Drop",
        "conflicts": "Drop",
    }
    changes = {"cleaning": cleaning, "split": {"validation": 0.25, "seed": 5}}
    data = prepare_rows(make_spec, tmp_path, parts, dataset=changes)
    counts = [(step.part, step.step, step.rows_in, step.dropped) for step in data.steps]
    assert counts[:10] == [
        ("train", "read", 25, 0),
        ("test", "read", 4, 0),
        ("train", "normalizeWhitespace", 25, 0),
        ("train", "label", 25, 1),
        ("train", "text", 25, 0),
        ("train", "minCharacters", 24, 1),
        ("test", "normalizeWhitespace", 4, 0),
        ("test", "label", 4, 0),
        ("test", "text", 4, 0),
        ("test", "minCharacters", 4, 0),
    ]
    assert counts[10:14] == [
        ("train", "duplicates", 23, 1),
        ("test", "duplicates", 4, 0),
        ("train", "duplicates", 22, 1),
        ("train", "split", 21, len(data.validation)),
    ]
    assert [step for _, step, *_ in counts[14:]] == ["conflicts", "knownLabel", "knownLabel"]
    assert counts[-1] == ("test", "knownLabel", 4, 1)
    assert len(data.train) == counts[14][2] - counts[14][3]
    again = prepare_rows(make_spec, tmp_path, parts, dataset=changes)
    assert (again.steps, again.fingerprint) == (data.steps, data.fingerprint)


def test_the_report_counts_rows_labels_and_steps(make_spec: MakeSpec, tmp_path: Path) -> None:
    parts = {"train": numbered(20), "validation": numbered(26)[20:], "test": numbered(29)[26:]}
    data = prepare_rows(make_spec, tmp_path, parts)
    document = report(data)
    assert document["parts"] == {
        "train": {"rows": 20, "labels": {"bad": 10, "good": 10}},
        "validation": {"rows": 6, "labels": {"bad": 3, "good": 3}},
        "test": {"rows": 3, "labels": {"bad": 1, "good": 2}},
    }
    assert document["fingerprint"] == data.fingerprint
    assert document["steps"] == [asdict(step) for step in data.steps]
    assert document["steps"][0] == {
        "part": "train",
        "step": "read",
        "rows_in": 20,
        "changed": 0,
        "dropped": 0,
        "why": "",
    }
