"""Entities, in every notation, and what is right of those that a model finds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.tagging import (
    OUTSIDE,
    Span,
    Tagged,
    Tags,
    entities_of,
    in_iob2,
    is_marked,
    outputs_of,
    spans_of,
)
from finetune_trainer.tasks.token_classification import Judged
from tests.trainer.seqeval_values import NAMES, OUTPUTS, TYPES, VALUES, sequences

TASK = task_of("TokenClassification")


def tags(rows: list[list[str]], names: tuple[str, ...] = OUTPUTS) -> Tags:
    return Tags.of(([names.index(tag) for tag in row] for row in rows), np.int64)


def judged(predicted: Tags) -> Judged:
    """What is kept of a model that predicts these tags."""
    losses = np.zeros(len(predicted.values))
    values = np.stack([predicted.values, losses], axis=1).astype(np.float32)
    return Judged(values, predicted.offsets)


def test_entities_count_as_seqeval_counts_them_in_its_strict_mode() -> None:
    known = json.loads(VALUES.read_text())
    assert len(known) == 1000
    for (right, predicted), expected in zip(sequences(), known, strict=True):
        answers, labels = judged(tags(predicted)), tags(right)
        found = [TASK.metric(name, answers, labels, None) for name in NAMES]
        if not any(tag.startswith("B-") for row in right + predicted for tag in row):
            assert np.isnan(found).all(), "no entities: seqeval warns, and says 0 or NaN"
        else:
            assert found == pytest.approx(expected, abs=1e-12), (right, predicted)


ENTITIES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(TYPES)), max_size=4
)


def laid_out(entities: list[tuple[int, int, str]]) -> tuple[list[Span], int]:
    """Entities with gaps before them, and the number of words."""
    found, at = [], 0
    for gap, length, kind in entities:
        found.append((at + gap, at + gap + length, kind))
        at += gap + length
    return found, at + 1


def in_iob1(spans: list[Span], words: int) -> list[str]:
    found = [OUTSIDE] * words
    for number, (start, end, kind) in enumerate(spans):
        found[start:end] = [f"I-{kind}"] * (end - start)
        if number and spans[number - 1][1:] == (start, kind):
            found[start] = f"B-{kind}"
    return found


def in_bioes(spans: list[Span], words: int, marks: str = "BIES") -> list[str]:
    begin, inside, end_, single = [*marks]
    found = [OUTSIDE] * words
    for start, end, kind in spans:
        body = [inside] * max(0, end - start - 2)
        prefixes = [single] if end - start == 1 else [begin, *body, end_]
        found[start:end] = [f"{mark}-{kind}" for mark in prefixes]
    return found


@given(ENTITIES)
def test_every_notation_marks_the_same_entities(entities: list[tuple[int, int, str]]) -> None:
    spans, words = laid_out(entities)
    for written in (
        in_iob2(spans, words),
        in_iob1(spans, words),
        in_bioes(spans, words),
        in_bioes(spans, words, "BILU"),
        in_bioes(spans, words, "BMES"),
    ):
        assert spans_of(written, marked=True) == spans
    plain = [OUTSIDE] * words
    for start, end, kind in spans:
        plain[start:end] = [kind] * (end - start)
    merged = spans_of(plain, marked=False)
    assert in_iob2(merged, words) == in_iob2(spans_of(in_iob1(merged, words), True), words)


@given(ENTITIES)
def test_iob2_as_numbers_has_the_same_entities(entities: list[tuple[int, int, str]]) -> None:
    spans, words = laid_out(entities)
    rows = [in_iob2(spans, words), [OUTSIDE], in_iob2(spans, words)]
    found = entities_of(tags(rows))
    each = [
        (int(s), int(e), TYPES[k])
        for s, e, k in zip(found.start, found.end, found.kind, strict=True)
    ]
    later = [(start + words + 1, end + words + 1, kind) for start, end, kind in spans]
    assert each == [*spans, *later]
    assert found.row.tolist() == [0] * len(spans) + [2] * len(spans)


def test_marks_are_told_from_names_that_look_like_them() -> None:
    assert is_marked(["O", "B-PER", "I-PER"])
    assert not is_marked(["O", "PER"])
    assert not is_marked(["O"])
    assert not is_marked(["B-PER", "LOC"])
    assert is_marked(["B-PER", "I-PER", "LOC"])
    assert outputs_of(["LOC", "PER"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_a_word_without_a_token_is_never_found_and_has_no_loss() -> None:
    labels = tags([["B-LOC", "O"], ["B-PER"]])
    values = np.array([[1, 0.5], [0, 0.1], [np.nan, np.nan]], dtype=np.float32)
    answers = Judged(values, labels.offsets)
    assert TASK.metric("recall_micro", answers, labels, None) == 0.5
    assert TASK.metric("precision_micro", answers, labels, None) == 1
    assert TASK.metric("accuracy", answers, labels, None) == pytest.approx(2 / 3)
    assert TASK.value_of_loss(answers, labels) == pytest.approx(0.3)
    names = OUTPUTS[:5]
    assert TASK.named(TASK.predictions(answers).values, names) == ["B-LOC", "O", "O"]


def test_report_says_which_entity_was_taken_for_which() -> None:
    right = [["B-LOC", "I-LOC", "O"], ["B-PER", "O", "B-ORG"]]
    said = [["B-LOC", "I-LOC", "O"], ["B-ORG", "B-PER", "O"]]
    report = TASK.report(OUTPUTS, judged(tags(said)), tags(right), None)
    assert report.confused_with == [*TYPES, "(none)"]
    assert report.confusion == [
        [1, 0, 0, 0],
        [0, 0, 0, 1],  # ORG was missed
        [0, 1, 0, 0],  # PER was taken for ORG
        [0, 0, 1, 0],  # and a PER was found where none is
    ]
    assert [(one.label, one.support) for one in report.labels or []] == [
        ("LOC", 1),
        ("ORG", 1),
        ("PER", 1),
    ]


def test_where_every_word_is_one_its_tags_are_the_types() -> None:
    names = ("ADJ", "NOUN", "VERB")
    labels = TASK.encode([_row(["NOUN", "VERB"]), _row(["ADJ", "NOUN", "NOUN"])], names)
    said = judged(Tags(np.array([1, 1, 0, 1, 0]), labels.offsets))
    assert TASK.metric("accuracy", said, labels, None) == 0.6
    assert TASK.metric("f1_micro", said, labels, None) == pytest.approx(0.6)
    assert TASK.kinds(names) == names
    assert TASK.kind_counts(labels, 3).tolist() == [1, 2, 1]
    report = TASK.report(names, said, labels, None)
    assert report.labels is not None
    assert [one.support for one in report.labels] == [1, 3, 1]


def _row(names: list[str]) -> Tagged:
    places = tuple(range(len(names)))
    return Tagged(places, places, tuple(names))
