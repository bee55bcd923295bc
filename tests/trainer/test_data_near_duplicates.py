"""Near-duplicates: found by a real sentence encoder among docstrings, and left out of training alone."""

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, near_duplicates, prepare
from finetune_trainer.data.embeddings import embed
from finetune_trainer.errors import DataError, ModelError, TrialFailure
from finetune_trainer.training import Pretrained, TrialRun
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")

LOWEST = 0.5
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ROWS = {"train": 80, "validation": 25, "test": 25}
CLOSE = 0.9
SEARCHED = [{"duplicateThreshold": {"values": [LOWEST, 1]}}]


def reworded(text: str) -> str:
    """The text as somebody else would write it, hardly changed."""
    return f"{text.rstrip('.')}!".replace("Return ", "Returns ").replace(" the ", " a ")


def read_rows(examples: Path) -> list[tuple[str, str]]:
    with (examples / "data" / "library.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["library"]) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "library"), *rows])


@pytest.fixture(scope="module")
def planted(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings in three files; behind the training rows five each of reworded training rows, of repeated
    training rows, and of reworded validation and test rows."""
    folder, rows = tmp_path_factory.mktemp("planted"), read_rows(examples)
    parts, start = {}, 0
    for part, count in ROWS.items():
        parts[part] = rows[start : start + count]
        start += count
    again = [(reworded(text), label) for text, label in parts["train"][:5]] + parts["train"][5:10]
    leaks = [
        (reworded(text), label)
        for part in ("validation", "test")
        for text, label in parts[part][:5]
    ]
    parts["train"] = parts["train"] + again + leaks
    for part, chosen in parts.items():
        write_rows(folder / f"{part}.csv", chosen)
    return folder


PLANTED = list(range(ROWS["train"], ROWS["train"] + 20))


@pytest.fixture(scope="module")
def prepare_planted(make_spec: MakeSpec, planted: Path) -> Any:
    def run(**changes: Any) -> PreparedData:
        files = {part: f"{part}.csv" for part in ROWS}
        dataset = {"files": files, **changes.pop("dataset", {})}
        return prepare(make_spec(dataset=dataset, **changes), planted)

    return run


@pytest.fixture(scope="module")
def data(prepare_planted: Any) -> PreparedData:
    """The planted rows of a study that searches thresholds from 0.5; read-only, as Ray hands them out."""
    data: PreparedData = prepare_planted(searchSpaces=SEARCHED)
    assert data.near_duplicates is not None
    for array in data.near_duplicates.arrays:
        array.flags.writeable = False
    return data


@pytest.fixture(scope="module")
def vectors(data: PreparedData, planted: Path) -> NDArray[np.float64]:
    """The embeddings by a way of their own: transformers' model in single precision, text by text."""
    texts: list[str] = []
    for part in ROWS:
        with (planted / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    return one_by_one(data, texts)


def one_by_one(data: PreparedData, texts: Sequence[str]) -> NDArray[np.float64]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(data.model.name)
    model = transformers.AutoModel.from_pretrained(data.model.name).eval()
    found = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.inference_mode():
            found.append(model(**inputs).last_hidden_state[0].mean(0).numpy())
    means = np.stack(found).astype(np.float64)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def cosines(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """All rows against all."""
    cosines = vectors @ vectors.T
    # None of the thresholds is so near to a cosine that single precision could tell it otherwise.
    assert min(np.abs(cosines - threshold).min() for threshold in THRESHOLDS) > 1e-6
    return cosines


def expected(cosines: NDArray[np.float64], data: PreparedData, threshold: float) -> list[int]:
    """The training rows that stay, row by row."""
    others = [*data.validation, *data.test]
    kept: list[int] = []
    for row in data.train:
        if not (cosines[row, [*others, *kept]] >= threshold).any():
            kept.append(int(row))
    return kept


def test_planted_rows_are_found_and_left_out(data: PreparedData) -> None:
    kept = data.deduplicated(CLOSE).train
    assert not set(PLANTED) & set(kept)
    assert set(range(5, 10)) <= set(kept)  # of repeated rows the first one stays
    assert len(kept) > 0.85 * ROWS["train"]


def test_no_training_row_is_close_to_a_row_of_another_part(
    data: PreparedData, cosines: NDArray[np.float64]
) -> None:
    others = np.concatenate([data.validation, data.test])
    assert cosines[np.ix_(data.train, others)].max() > 0.97
    for threshold in THRESHOLDS:
        kept = data.deduplicated(threshold)
        assert cosines[np.ix_(kept.train, others)].max() < threshold
        assert kept.validation is data.validation
        assert kept.test is data.test


def test_one_keeps_all_and_a_higher_threshold_keeps_more(data: PreparedData) -> None:
    assert data.deduplicated(1) is data
    kept = [len(data.deduplicated(threshold).train) for threshold in THRESHOLDS]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] < len(data.train)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_same_rows_stay_as_by_comparing_all_with_all(
    data: PreparedData, cosines: NDArray[np.float64], threshold: float
) -> None:
    views = [data, data.merged(), data.sampled(100, True, 3)]
    views += [data.fold(index, 3, True, 0) for index in range(3)]
    views.append(data.fold(0, 3, True, 0).sampled(60, True, 1))
    for view in views:
        assert view.deduplicated(threshold).train.tolist() == expected(cosines, view, threshold)


def test_blocks_make_no_difference(
    vectors: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = vectors.astype(np.float32)
    whole = near_duplicates.close_pairs(single, 0.3, "field")
    monkeypatch.setattr(near_duplicates, "_BLOCK", 32)
    blocks = near_duplicates.close_pairs(single, 0.3, "field")
    assert len(whole) > 100
    assert sorted(whole.tolist()) == sorted(blocks.tolist())


@pytest.mark.slow
def test_the_same_pairs_are_found_with_any_number_of_threads(
    data: PreparedData, prepare_planted: Any
) -> None:
    torch.set_num_threads(2)
    again = prepare_planted(searchSpaces=SEARCHED)
    torch.set_num_threads(1)
    assert again.fingerprint == data.fingerprint


def test_the_fingerprint_covers_the_pairs_but_not_what_a_trial_leaves_out(
    data: PreparedData, prepare_planted: Any
) -> None:
    plain = prepare_planted()
    fixed = prepare_planted(hyperparameters={"duplicateThreshold": CLOSE})
    assert plain.near_duplicates is None
    assert fixed.near_duplicates.cosine.min() >= np.float32(CLOSE)
    assert len({plain.fingerprint, fixed.fingerprint, data.fingerprint}) == 3
    assert data.deduplicated(CLOSE).fingerprint == data.fingerprint
    assert np.array_equal(data.deduplicated(CLOSE).train, fixed.deduplicated(CLOSE).train)


def test_the_steps_count_what_the_lowest_threshold_leaves_out(
    data: PreparedData, prepare_planted: Any
) -> None:
    (step,) = [step for step in data.steps if step.step == "duplicateThreshold"]
    left = len(data.train) - len(data.deduplicated(LOWEST).train)
    assert (step.part, step.rows_in, step.dropped) == ("train", len(data.train), left)
    assert "0.5" in step.why
    assert "duplicateThreshold" not in [step.step for step in prepare_planted().steps]


def test_embeddings_are_means_over_the_tokens_that_are_there(
    data: PreparedData, examples: Path
) -> None:
    texts = [*(text for text, _ in read_rows(examples)[:8]), "word " * 600]
    for precision in ("float32", "float64"):
        vectors = embed(data.model, texts, precision)
        assert vectors.dtype == precision
        assert np.allclose(vectors, one_by_one(data, texts), atol=1e-5)


def rarely(data: PreparedData, rows: list[int]) -> PreparedData:
    """The same rows, where only `rows` are of the class `rare`."""
    labels = data.labels.copy()
    labels[rows] = len(data.label_names)
    return replace(data, labels=labels, label_names=(*data.label_names, "rare"))


def test_the_last_row_of_a_class_stays_if_it_is_alike_to_training_rows_alone(
    data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    rare = rarely(data, PLANTED[:10])  # each as an earlier training row of another class
    single = rare.deduplicated(CLOSE)
    assert set(single.train) - set(data.deduplicated(CLOSE).train) == {PLANTED[0]}
    assert single.train.tolist() == sorted(single.train)
    assert "a near-duplicate is kept as the last training row of rare" in caplog.text
    multi = replace(
        rare, task="MultiLabel", labels=np.eye(len(rare.label_names), dtype=bool)[rare.labels]
    )
    assert multi.deduplicated(CLOSE).train.tolist() == single.train.tolist()


def test_the_last_row_of_a_class_stays_in_the_final_fit(data: PreparedData) -> None:
    """A validation row is a training row there, so what was left out for its sake is there again."""
    alike = near_duplicates.NearDuplicates(
        texts=np.arange(len(data.labels), dtype=np.int32),
        later=np.array([1, 3], dtype=np.int32),
        earlier=np.array([0, 0], dtype=np.int32),
        cosine=np.array([0.95, 0.95], dtype=np.float32),
    )
    labels = np.zeros_like(data.labels)
    labels[1] = 1
    few = replace(
        data,
        near_duplicates=alike,
        labels=labels,
        label_names=("usual", "rare"),
        train=np.array([0, 1, 2]),
        validation=np.array([3]),
        test=np.array([4]),
    )
    assert few.deduplicated(CLOSE).train.tolist() == [1, 2]
    assert few.merged().deduplicated(CLOSE).train.tolist() == [0, 1, 2]


def test_a_row_that_is_kept_for_its_class_is_told(make_spec: MakeSpec, tmp_path: Path) -> None:
    text, other = "Return the mean of the columns of a table.", "Draw samples from a list."
    rows = [(text, "usual"), (other, "usual"), (reworded(text), "rare")]
    write_rows(tmp_path / "train.csv", rows)
    write_rows(tmp_path / "held_out.csv", [("Open a file.", "usual"), ("Close it.", "usual")])
    files = {"train": "train.csv", "validation": "held_out.csv", "test": "held_out.csv"}
    cleaning = {"duplicates": "Keep", "conflicts": "Keep"}
    dataset = {"files": files, "cleaning": cleaning}
    fixed = {"duplicateThreshold": CLOSE}
    found = prepare(make_spec(dataset=dataset, hyperparameters=fixed), tmp_path)
    assert found.deduplicated(CLOSE).train.tolist() == [0, 1, 2]
    (step,) = [step for step in found.steps if step.step == "duplicateThreshold"]
    assert step.dropped == 0
    (warning,) = [text for text in found.warnings if "is kept" in text]
    assert warning.startswith(
        "spec.hyperparameters.duplicateThreshold: a row with a similarity of 0.9 or more, "
    )
    assert warning.endswith("if no other training row has its label (rare)")


def test_a_class_of_which_every_row_is_alike_to_held_out_rows_fails_the_trial(
    data: PreparedData,
) -> None:
    rare = rarely(data, PLANTED[10:])
    labels = rare.labels
    assert len(rare.deduplicated(0.9999).train) > 0
    with pytest.raises(TrialFailure, match=r"duplicateThreshold must .* 0\.9, .* none of rare"):
        rare.deduplicated(CLOSE)
    multi = replace(
        rare, task="MultiLabel", labels=np.eye(len(rare.label_names), dtype=bool)[labels]
    )
    with pytest.raises(TrialFailure, match="none of rare"):
        multi.deduplicated(CLOSE)
    numbers = replace(
        data, task="Regression", train=data.train[PLANTED[10:]], label_names=("size",)
    )
    with pytest.raises(TrialFailure, match="leaves 0 of 10") as caught:
        numbers.deduplicated(CLOSE)
    assert caught.value.failure_class == "UserError"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"hyperparameters": {"duplicateThreshold": 0.6}},
            "spec.hyperparameters.duplicateThreshold",
        ),
        ({"searchSpaces": SEARCHED}, "spec.searchSpaces"),
    ],
)
def test_more_pairs_than_there_is_room_for_are_refused(
    prepare_planted: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], field: str
) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 0)
    with pytest.raises(
        DataError, match="must be higher for these rows: more than 0 pairs"
    ) as caught:
        prepare_planted(dataset={"files": {"train": "test.csv"}}, **changes)
    assert caught.value.field == field


def shallow(model: Path, folder: Path) -> Path:
    """The encoder of `model` with its first two layers alone."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    return folder


def test_an_encoder_of_its_own_compares_the_rows(
    data: PreparedData, prepare_planted: Any, tmp_path: Path
) -> None:
    encoder = shallow(Path(data.model.name), tmp_path / "shallow")
    cleaning = {"duplicateEncoder": {"name": str(encoder)}}
    other = prepare_planted(dataset={"cleaning": cleaning}, searchSpaces=SEARCHED)
    assert not set(PLANTED) & set(other.deduplicated(CLOSE).train)
    assert other.near_duplicates is not None
    assert data.near_duplicates is not None
    assert len(other.near_duplicates.cosine) != len(data.near_duplicates.cosine)


@pytest.mark.parametrize("broken", ["no such folder", "no weights", "too few layers"])
def test_an_encoder_that_cannot_be_loaded_is_refused(
    data: PreparedData, prepare_planted: Any, tmp_path: Path, broken: str
) -> None:
    encoder = tmp_path / "encoder"
    if broken != "no such folder":
        shallow(Path(data.model.name), encoder)
    if broken == "no weights":
        (encoder / "model.safetensors").unlink()
    if broken == "too few layers":
        config = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    cleaning = {"duplicateEncoder": {"name": str(encoder)}}
    with pytest.raises(ModelError) as caught:
        prepare_planted(dataset={"cleaning": cleaning}, searchSpaces=SEARCHED)
    assert caught.value.field == "spec.dataset.cleaning.duplicateEncoder.name"


def test_pairs_of_texts_are_compared_in_both(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    texts = [text for text, _ in read_rows(examples)[:40]]
    rows = [
        (text, other, ("one", "two")[n % 2])
        for n, (text, other) in enumerate(zip(texts[:20], texts[20:], strict=True))
    ]
    rows.append((reworded(texts[0]), reworded(texts[20]), "one"))
    rows.append((reworded(texts[1]), texts[39], "two"))
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("first", "second", "label"), *rows])
    dataset = {
        "files": {"train": "pairs.csv"},
        "textColumns": ["first", "second"],
        "labelColumn": "label",
        "split": {"stratify": False},
    }
    spec = make_spec(dataset=dataset, hyperparameters={"duplicateThreshold": CLOSE})
    found = prepare(spec, tmp_path).near_duplicates
    assert found is not None
    assert len(found.cosine) == 1


def test_a_trial_trains_on_what_its_threshold_leaves(data: PreparedData, tmp_path: Path) -> None:
    labels = np.arange(len(data.labels)) % 2
    # The last five are reworded validation rows.
    rows = replace(small(data, len(data.train), 8), labels=labels, train=data.train[PLANTED[5:15]])
    pretrained = Pretrained.load(rows.model, rows.task, rows.label_names)
    objective = Objective(metric="loss")
    config = Hyperparameters(epochs=2, batch_size=1, max_length=16, duplicate_threshold=CLOSE)
    run = TrialRun(pretrained, rows, config, 5, objective)
    assert run.data.train.tolist() == PLANTED[5:10]
    passes = itertools.count()
    assert run.train_to(1, lambda: next(passes) < 0) is not None
    assert next(passes) == len(run.data.train) + 1  # and one to validate
    run.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, rows, objective)
    assert np.array_equal(resumed.data.train, run.data.train)
    changed = config.model_copy(update={"duplicate_threshold": 1.0})
    inheriting = TrialRun.resume(tmp_path, pretrained, rows, objective, changed=changed)
    assert np.array_equal(inheriting.data.train, rows.train)
