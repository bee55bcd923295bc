"""The guard against texts that contain their own label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import load_yaml
from finetune_api.study import StudySpec
from finetune_trainer.data import prepare
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.leak import refuse_labels_in_texts
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.base import Label
from tests.trainer.conftest import ROOT, MakeSpec
from tests.trainer.data_files import prepare_rows


def is_refused(*rows: tuple[str, Label], more: Sequence[str] = ()) -> bool:
    """Whether these training rows are, with a second text column of `more`."""
    texts, labels = ([*column] for column in zip(*rows, strict=True))
    columns = (texts, [*more]) if more else (texts,)
    try:
        refuse_labels_in_texts(
            LabelledRows("f", "train", columns, labels, [None] * len(rows)), task_of("MultiLabel")
        )
    except DataError:
        return True
    return False


@pytest.mark.parametrize(
    "text", ["It says Billing here", "billing:", "(BILLING)", "a\tbilling question", "Billing"]
)
def test_the_label_as_a_whole_word_in_capitals_or_not(text: str) -> None:
    assert is_refused((text, "billing"))
    assert is_refused((text, "Billing"))


@pytest.mark.parametrize("text", ["rebilling", "billings", "billing_address", "bill ing", "sales"])
def test_a_part_of_another_word_is_not_the_label(text: str) -> None:
    assert not is_refused((text, "billing"))


def test_half_of_the_rows_are_not_most() -> None:
    rows = [("of cats", "cats"), ("of dogs", "dogs"), ("of cats", "dogs"), ("of dogs", "cats")]
    assert not is_refused(*rows)
    assert is_refused(*rows, ("more cats", "cats"))


@pytest.mark.parametrize("label", ["3", "-1.5", "10", "1,000", "a", "X"])
def test_numbers_and_single_characters_are_there_by_chance(label: str) -> None:
    assert not is_refused((f"of {label} things", label))


def test_all_labels_of_a_row_must_be_in_its_texts() -> None:
    assert not is_refused(("about sport", ("music", "sport")))
    assert is_refused(("about sport and music", ("music", "sport")))
    assert is_refused(("about sport", ("sport", "x")))
    assert not is_refused(("about sport", ()), ("about a", ("a",)))


def test_labels_of_several_words_and_signs() -> None:
    assert is_refused(("written in C++, see New York", "c++"))
    assert is_refused(("written in C++, see New York", "new york"))


def test_the_other_text_of_a_pair_counts_too() -> None:
    assert is_refused(("first", "sport"), more=["sport"])
    assert not is_refused(("first", "sport"), more=["music"])


def test_numbers_as_targets_are_never_a_leak() -> None:
    assert not is_refused(("costs 3.5", 3.5))


def test_a_leak_is_refused_at_the_text_columns_unless_allowed(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [
        {"text": f"{word} {row}", "label": word} for row in range(10) for word in ("up", "down")
    ]
    message = r"16 of 16 training rows contain .*labelled '(up|down)'\); .* set .*allowLabelInText"
    with pytest.raises(DataError, match=message) as error:
        prepare_rows(make_spec, tmp_path, {"train": rows})
    assert error.value.field == "spec.dataset.textColumns"
    allowed: dict[str, Any] = {"allowLabelInText": True}
    assert len(prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=allowed).labels) == 20


@pytest.mark.parametrize("name", ["library", "parameters", "regression"])
def test_no_example_leaks(name: str, examples: Path) -> None:
    manifest = load_yaml((ROOT / "examples" / f"{name}.yaml").read_text())
    assert len(prepare(StudySpec.model_validate(manifest["spec"]), examples).labels) > 400
