"""Varied copies of training rows: what each operation does to real text, and which rows a trial gets to see."""

import csv
import pickle
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.augmentation import OPERATIONS, vary, words_of
from finetune_trainer.data.synonyms import Synonyms, wordnet
from finetune_trainer.errors import DataError
from finetune_trainer.training import Pretrained, TrialRun
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, outcome, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="f1_macro")
VARIED = {"augmentation": "All", "augmentationCopies": 2}
CONFIG = Hyperparameters(
    epochs=2,
    batch_size=4,
    max_length=16,
    learning_rate=3e-4,
    augmentation="All",
    augmentation_copies=2,
)


@pytest.fixture(scope="module")
def texts(examples: Path) -> list[str]:
    """The docstrings of the examples."""
    with (examples / "data" / "library.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def synonyms(texts: list[str]) -> Synonyms:
    """What WordNet has of their words."""
    return wordnet({word.lower() for text in texts for word in words_of(text)})


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    """Rows of a study that varies them; read-only, as Ray hands them out."""
    data = prepare(make_spec(hyperparameters=VARIED), Path("/"))
    assert data.variable_texts is not None
    for array in (data.labels, data.train, data.columns[0].ids, *data.variable_texts.arrays):
        array.flags.writeable = False
    return data


def varied(text: str, name: str, share: float, synonyms: Synonyms, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return words_of(vary(text, OPERATIONS[name], share, synonyms, generator))


def is_within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether `part` is what is left of `whole` when some words are taken out."""
    rest = iter(whole)
    return all(word in rest for word in part)


def changed(share: float, words: Sequence[str]) -> int:
    return max(1, round(share * len(words)))


def test_wordnet_has_synonyms_of_a_quarter_of_all_words_but_of_no_stop_words(
    texts: list[str], synonyms: Synonyms
) -> None:
    counts = Counter(word.lower() for text in texts for word in words_of(text))
    assert sum(counts[word] for word in synonyms) > 0.25 * sum(counts.values())
    for word, others in synonyms.items():
        assert others
        assert word not in others
    assert {"a", "in", "it", "the", "x", "2"} <= counts.keys() - synonyms.keys()


def test_wordnet_gives_the_most_frequent_sense_of_each_part_of_speech() -> None:
    found = wordnet({"dog", "compute", "a", "array", "handy", "nosuchword"})
    assert found["dog"][:2] == ("domestic dog", "Canis familiaris")
    assert "chase" in found["dog"]  # the verb
    assert "andiron" not in found["dog"]  # a rare sense
    assert set(found["compute"]) >= {"calculate", "work out"}
    assert found["handy"] == ("ready to hand",)  # and not W. C. Handy
    assert found.keys() == {"dog", "compute", "array", "handy"}


@pytest.mark.parametrize("share", [0.01, 0.2, 1])
def test_synonyms_take_the_place_of_a_share_of_the_words(
    texts: list[str], synonyms: Synonyms, share: float
) -> None:
    single = {  # of one word each, so that places can be compared
        word: chosen
        for word, others in synonyms.items()
        if (chosen := tuple(other for other in others if words_of(other) == [other]))
    }
    for seed, text in enumerate(texts[:100]):
        before, after = words_of(text), varied(text, "Synonyms", share, single, seed)
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        able = sum(word.lower() in single for word in before)
        assert len(pairs) == min(changed(share, before), able)
        for old, new in pairs:
            same_case = (new[0].lower() + new[1:], new)
            assert set(same_case) & set(single[old.lower()])
            assert new[0].isupper() or not old[0].isupper()


@pytest.mark.parametrize("share", [0.01, 0.2, 1])
def test_synonyms_are_inserted_between_the_words(
    texts: list[str], synonyms: Synonyms, share: float
) -> None:
    grown = 0
    for seed, text in enumerate(texts[:100]):
        before, after = words_of(text), varied(text, "Insertion", share, synonyms, seed)
        able = [word.lower() for word in before if word.lower() in synonyms]
        assert is_within(before, after)
        assert len(after) >= len(before) + (changed(share, before) if able else 0)
        offered = {part for word in able for other in synonyms[word] for part in words_of(other)}
        assert set(Counter(after) - Counter(before)) <= offered
        grown += len(after) > len(before)
    assert grown > 80


@pytest.mark.parametrize("share", [0.01, 0.2, 1])
def test_a_share_of_the_words_is_deleted_but_never_all(texts: list[str], share: float) -> None:
    for seed, text in enumerate(texts[:100]):
        before, after = words_of(text), varied(text, "Deletion", share, {}, seed)
        assert is_within(after, before)
        assert len(after) == max(1, len(before) - changed(share, before))


@pytest.mark.parametrize("share", [0.01, 0.2, 1])
def test_a_share_of_the_words_change_places(texts: list[str], share: float) -> None:
    exact = 0
    for seed, text in enumerate(texts[:100]):
        before, after = words_of(text), varied(text, "Swap", share, {}, seed)
        moved = sum(old != new for old, new in zip(before, after, strict=True))
        most = 2 * min(max(1, changed(share, before) // 2), len(before) // 2)
        assert Counter(before) == Counter(after)
        assert moved <= most
        exact += moved == most
    assert exact > 50  # the others swapped a word with itself


def test_what_stands_between_the_words_stays() -> None:
    dictionary: dict[str, tuple[str, ...]] = {"rows": ("lines",), "sorted": ("ordered",)}
    generator = np.random.default_rng(0)
    text = "Sorted rows (of `x`), or None."
    replaced = vary(text, OPERATIONS["Synonyms"], 1, dictionary, generator)
    assert replaced == "Ordered lines (of `x`), or None."
    assert vary("one, two.", OPERATIONS["Swap"], 1, {}, generator) == "two, one."


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("text", ["", "?!", "word"])
def test_what_cannot_be_varied_stays_as_it_is(name: str, text: str) -> None:
    assert vary(text, OPERATIONS[name], 1, {}, np.random.default_rng(0)) == text


def test_copies_stand_behind_the_rows_and_only_training_rows_have_any(data: PreparedData) -> None:
    rows, copied = len(data.labels), 2 * len(data.train)
    epoch = data.augmented(CONFIG, 5, 0)
    assert len(epoch.labels) == len(epoch.columns[0]) == rows + copied
    assert epoch.train.tolist() == [*data.train, *range(rows, rows + copied)]
    assert epoch.validation is data.validation
    assert epoch.test is data.test
    assert np.array_equal(epoch.columns[0].ids[: len(data.columns[0].ids)], data.columns[0].ids)
    assert np.array_equal(epoch.labels[rows:], data.labels[np.repeat(data.train, 2)])
    others = {data.columns[0][row].tobytes() for row in [*data.validation, *data.test]}
    copies = [epoch.columns[0][row].tobytes() for row in range(rows, rows + copied)]
    assert not others.intersection(copies)
    originals = [data.columns[0][row].tobytes() for row in np.repeat(data.train, 2).tolist()]
    same = sum(one == other for one, other in zip(copies, originals, strict=True))
    assert same < 0.1 * copied
    assert epoch.fingerprint == data.fingerprint


def test_every_epoch_and_seed_draws_its_own_copies_and_always_the_same(data: PreparedData) -> None:
    def drawn(seed: int, epoch: int) -> bytes:
        return data.augmented(CONFIG, seed, epoch).columns[0].ids.tobytes()

    assert drawn(5, 0) == drawn(5, 0)
    assert len({drawn(5, 0), drawn(5, 1), drawn(6, 0)}) == 3


def test_the_copies_of_a_row_do_not_depend_on_the_other_rows(data: PreparedData) -> None:
    few = data.sampled(40, True, 3)
    assert data.variable_texts is not None
    (some,) = data.variable_texts.varied(few.train, CONFIG, 5, 1)
    (all_of_them,) = data.variable_texts.varied(data.train, CONFIG, 5, 1)
    places = np.searchsorted(data.train, few.train)
    assert some == [all_of_them[at] for place in places for at in (2 * place, 2 * place + 1)]


def test_validation_rows_are_varied_once_they_are_training_rows(data: PreparedData) -> None:
    merged = data.merged().augmented(CONFIG, 5, 0)
    assert len(merged.train) == 3 * (len(data.train) + len(data.validation))
    fold = data.fold(1, 3, True, 0)
    epoch = fold.augmented(CONFIG, 5, 0)
    assert len(epoch.train) == 3 * len(fold.train)
    assert np.array_equal(epoch.validation, fold.validation)


def write_rows(path: Path, texts: Sequence[str], columns: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "label"])
        for row in range(0, 40):
            cells = [texts[(row + 7 * at) % 40] for at in range(len(columns))]
            writer.writerow([*cells, ("one", "two")[row % 2]])


@pytest.fixture
def prepare_columns(make_spec: MakeSpec, tmp_path: Path, texts: list[str]) -> Any:
    """Prepares 40 docstrings in columns of these names, with changes of the data set."""

    def run(columns: Sequence[str], augmentation: str, **dataset: Any) -> PreparedData:
        write_rows(tmp_path / "rows.csv", texts, columns)
        source = {"files": {"train": "rows.csv"}, "textColumns": columns, "labelColumn": "label"}
        hyperparameters = {"augmentation": augmentation}
        spec = make_spec(dataset={**source, **dataset}, hyperparameters=hyperparameters)
        return prepare(spec, tmp_path)

    return run


def test_both_texts_of_a_pair_are_varied(prepare_columns: Any) -> None:
    data = prepare_columns(["first", "second"], "Deletion")
    config = Hyperparameters(augmentation="Deletion", augmentation_share=0.3)
    epoch = data.augmented(config, 5, 0)
    rows = len(data.labels)
    for column in epoch.columns:
        for at, row in enumerate(data.train):
            assert len(column[rows + at]) < len(column[int(row)])


def test_columns_that_are_joined_to_one_text_keep_what_stands_between_them(
    prepare_columns: Any,
) -> None:
    columns = ["first", "second", "third"]
    data = prepare_columns(columns, "All", joinTextColumns=True)
    separator = data.model.tokenizer().sep_token_id
    config = Hyperparameters(augmentation="All", augmentation_share=1)
    epoch = data.augmented(config, 5, 0)
    for row in epoch.train:
        assert (epoch.columns[0][int(row)] == separator).sum() == 2


def test_synonyms_from_a_file(prepare_columns: Any, tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("\ufeffThe\tzebra, okapi\n\nthe\tokapi,gnu\nunused\tx\n")
    data = prepare_columns(["text"], "Synonyms", synonyms="words.tsv")
    assert data.variable_texts.synonyms == {"the": ("zebra", "okapi", "gnu")}
    config = Hyperparameters(augmentation="Synonyms", augmentation_share=1, augmentation_copies=4)
    (copies,) = data.variable_texts.varied(data.train, config, 5, 0)
    counts = Counter(word.lower() for text in copies for word in words_of(text))
    assert counts["the"] == 0
    assert min(counts["zebra"], counts["okapi"], counts["gnu"]) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a file that exists"),
        (b"the a, an\n", "must have a word, a tab and synonyms separated by commas"),
        (b"word\tsynonym\nthe\t ,\n", "line 2"),
        (b"the\t\xff\n", "UTF-8"),
        (b"nosuchword\tsynonym\n", "must have synonyms of words in the training rows"),
    ],
)
@pytest.mark.parametrize("augmentation", ["Insertion", "Swap"])
def test_a_synonym_file_that_cannot_be_used_is_refused(
    prepare_columns: Any, tmp_path: Path, content: bytes | None, message: str, augmentation: str
) -> None:
    if content is not None:
        (tmp_path / "words.tsv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare_columns(["text"], augmentation, synonyms="words.tsv")
    assert caught.value.field == "spec.dataset.synonyms"
    assert message in caught.value.message


def test_without_wordnet_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataError, match=r"spec\.dataset\.synonyms: must name a file .* wn=="):
        wordnet({"word"})


def test_only_a_study_that_varies_texts_carries_them(
    make_spec: MakeSpec, data: PreparedData
) -> None:
    plain = prepare(make_spec(), Path("/"))
    assert plain.variable_texts is None
    assert plain.augmented(Hyperparameters(), 5, 0) is plain
    space = {"augmentation": {"values": ["None", "Deletion"]}}
    searched = prepare(make_spec(searchSpaces=[space]), Path("/")).variable_texts
    assert searched is not None
    assert searched.synonyms == {}  # deleting needs none
    assert len(searched.columns[0]) == len(plain.train) + len(plain.validation)
    assert data.fingerprint != plain.fingerprint


def test_texts_travel_without_copies(data: PreparedData) -> None:
    buffers: list[pickle.PickleBuffer] = []
    assert data.variable_texts is not None
    fresh = replace(data, variable_texts=replace(data.variable_texts))  # nothing is cached yet
    message = pickle.dumps(fresh, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 6_000
    arrived = pickle.loads(message, buffers=buffers)
    assert arrived.digest() == data.fingerprint
    one, other = (each.augmented(CONFIG, 5, 1).columns[0] for each in (data, arrived))
    assert np.array_equal(one.ids, other.ids)


@pytest.fixture(scope="module")
def rows(data: PreparedData) -> PreparedData:
    return small(data, 8, 8)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


class Passes:
    """Counts forward passes, and says yes at one of them."""

    def __init__(self, pause_at: int | None = None) -> None:
        self.count = 0
        self._pause_at = pause_at

    def __call__(self) -> bool:
        self.count += 1
        return self.count == self._pause_at


def test_a_trial_trains_on_rows_and_copies_and_resumes_in_the_middle_of_them(
    rows: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    unbroken = TrialRun(pretrained, rows, CONFIG, 5, OBJECTIVE)
    results = train(unbroken)
    broken = TrialRun(pretrained, rows, CONFIG, 5, OBJECTIVE)
    passes = Passes()
    first = broken.train_to(1, passes)
    assert first is not None
    assert passes.count == 8 * 3 / 4 + 1  # of 8 rows with 2 copies each, and one to validate
    assert broken.train_to(2, Passes(pause_at=4)) is None
    broken.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, rows, OBJECTIVE)
    second = resumed.train_to(2)
    assert second is not None
    assert outcome([first, second]) == outcome(results)
    assert_same(weights(resumed), weights(unbroken))


def test_copies_change_what_is_learnt_but_not_what_is_validated(
    rows: PreparedData, pretrained: Pretrained
) -> None:
    def trained(config: Hyperparameters) -> TrialRun:
        run = TrialRun(pretrained, rows, config, 5, OBJECTIVE)
        run.train_to(1)
        return run

    copied = CONFIG.model_copy(update={"augmentation_copies": 1, "augmentation": "Deletion"})
    runs = [trained(copied), trained(copied.model_copy(update={"augmentation_share": 0.5}))]
    one, other = (run.predict(rows.validation) for run in runs)
    assert not np.array_equal(one, other)
    assert all(run.data is rows for run in runs)


def test_copies_of_rare_classes_are_balanced_too(
    rows: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(update={"class_balance": "Oversample"})
    most = int(np.bincount(rows.labels[rows.train]).max())
    classes = len(np.unique(rows.labels[rows.train]))
    passes = Passes()
    assert TrialRun(pretrained, rows, config, 5, OBJECTIVE).train_to(1, passes) is not None
    assert passes.count == -(-3 * most * classes // 4) + 1
