"""What `prepare` makes of good data, of bad data and of missing models."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig

from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.model_source import max_tokens
from finetune_trainer.data.prepare import _limited
from finetune_trainer.errors import DataError, ModelError, StorageUnavailable, StudyError
from finetune_trainer.storage.folder import Storage
from tests.trainer.conftest import MakeSpec
from tests.trainer.object_store import CREDENTIALS, object_store

CLASSES = ("cats", "dogs")


def text(row: int) -> str:
    return f"{row} {('purr', 'bark')[row % 2]}s every day"


def write_csv(path: Path, rows: Sequence[tuple[Any, Any]], header: str = "text,label") -> str:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return path.name


def write_json(path: Path, labels: Sequence[Any]) -> str:
    rows = ({"text": text(row), "label": label} for row, label in enumerate(labels))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def good(count: int = 20) -> list[tuple[Any, Any]]:
    return [(text(row), CLASSES[row % 2]) for row in range(count)]


@pytest.fixture
def prepare_files(make_spec: MakeSpec, tmp_path: Path) -> Any:
    """Prepares the files of `tmp_path` that are named, each a part."""

    def run(files: dict[str, str], **changes: Any) -> PreparedData:
        dataset = {"files": files, "labelColumn": "label", **changes.pop("dataset", {})}
        return prepare(make_spec(dataset=dataset, **changes), tmp_path)

    return run


REGRESSION = {"task": "Regression", "objective": {"metric": "rmse"}}
MULTI = {"task": "MultiLabel", "objective": {"metric": "f1_micro"}}


def test_examples_are_prepared_in_whole(make_spec: MakeSpec, examples: Path) -> None:
    data = prepare(make_spec(), Path("/"))
    names = "datasets numpy pandas pyarrow ray scipy sklearn transformers"
    assert " ".join(data.label_names) == names
    parts = np.concatenate([data.train, data.validation, data.test])
    assert sorted(parts) == list(range(len(data.labels))) == list(range(480))
    for part in (data.train, data.validation, data.test):
        counts = np.bincount(data.labels[part], minlength=8)
        assert counts.max() - counts.min() <= 1
    # Libraries that copied from each other have a docstring in common.
    assert not [
        text
        for text in data.warnings
        if "the same texts as a row with a different label" not in text
    ]
    merged = data.merged()
    assert len(merged.train) == 432
    assert len(merged.validation) == 0
    assert merged.fingerprint != data.fingerprint


def test_relative_paths_are_below_the_base(make_spec: MakeSpec, examples: Path) -> None:
    spec = make_spec(
        model={"name": "models/all-MiniLM-L6-v2"}, dataset={"files": {"train": "data/library.csv"}}
    )
    data = prepare(spec, examples)
    assert data.model.name == str(examples / "models" / "all-MiniLM-L6-v2")
    assert data.fingerprint == prepare(make_spec(), Path("/")).fingerprint


def test_rows_come_from_an_object_store_and_errors_name_them(
    make_spec: MakeSpec, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def located(path: str) -> Any:
        return make_spec(dataset={"files": {"train": store.told(path)}})

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        storage = Storage.open(store.uri)
        storage.write("data/library.csv", (examples / "data" / "library.csv").read_bytes())
        storage.write("data/empty.csv", b"text,other\n")
        expected = prepare(make_spec(), tmp_path)
        assert prepare(located("data/library.csv"), tmp_path).digest() == expected.digest()
        for path, message in {
            "data/none.csv": r"must be a file that exists \(got s3://[^?@]*/data/none\.csv\)",
            "data/empty.csv": r"must name a column of the data .* in s3://[^?@]*/data/empty\.csv",
            "data/library.txt": r"must end in .* \(got s3://[^?@]*/data/library\.txt\)",
        }.items():
            with pytest.raises(DataError, match=message):
                prepare(located(path), tmp_path)
    with pytest.raises(StorageUnavailable, match=r"s3://[^?@]*/data/library\.csv: "):
        prepare(located("data/library.csv"), tmp_path)


def test_prepared_rows_travel_by_pickle_without_copies(make_spec: MakeSpec) -> None:
    data = prepare(make_spec(), Path("/"))
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 5_000
    assert pickle.loads(message, buffers=buffers).digest() == data.fingerprint


@pytest.mark.parametrize(
    ("suffix", "scheme"), [("csv", ""), ("parquet", ""), ("jsonl", ""), ("jsonl", "file://")]
)
def test_every_format_gives_the_same_rows(
    prepare_files: Any, tmp_path: Path, suffix: str, scheme: str
) -> None:
    reference = prepare_files({"train": write_csv(tmp_path / "reference.csv", good())})
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        write_csv(path, good())
    elif suffix == "parquet":
        texts, labels = zip(*good(), strict=True)
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    else:
        write_json(path, [label for _, label in good()])
    location = f"{scheme}{path}" if scheme else path.name
    assert prepare_files({"train": location}).fingerprint == reference.fingerprint


def test_a_pair_of_text_columns(prepare_files: Any, tmp_path: Path) -> None:
    rows = [(f"{text(row)},{text(row + 1)}", CLASSES[row % 2]) for row in range(20)]
    name = write_csv(tmp_path / "rows.csv", rows, "one,two,label")
    data = prepare_files({"train": name}, dataset={"textColumns": ["one", "two"]})
    assert len(data.columns) == 2
    assert data.frame.special == 3


def test_labels_that_are_whole_numbers_are_ordered_by_value(
    prepare_files: Any, tmp_path: Path
) -> None:
    name = write_json(tmp_path / "rows.jsonl", [10.0, 9, 10, "9"] * 5)
    assert prepare_files({"train": name}).label_names == ("9", "10")


def test_label_sets_from_lists_and_from_text(prepare_files: Any, tmp_path: Path) -> None:
    lists = write_json(tmp_path / "lists.jsonl", [["b", "a"], ["a"], []] * 7)
    words = write_json(tmp_path / "words.jsonl", ["b; a", "a", ";"] * 7)
    data = prepare_files({"train": lists}, **MULTI)
    assert data.label_names == ("a", "b")
    assert data.labels.sum() == 21
    separated = prepare_files({"train": words}, dataset={"labelSeparator": ";"}, **MULTI)
    assert separated.labels.sum() == 21
    assert separated.warnings == (
        "spec.dataset.files.train: 7 of 21 train rows (33.3%) have no label and are left out (lines 3, 6, 9, 12, 15, …)",
    )


# What is wrong with the rows of training: (rows, task, field, message).
WRONG: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "no rows": ([], {}, "files.train", "must have train rows with a text and a label"),
    "one class": (["a"] * 20, {}, "labelColumn", "at least two values .*got only 'a'"),
    "no labels": (
        [None, "", float("nan")] * 9,
        {},
        "files.train",
        "got 27 readable rows, 27 without",
    ),
    "too few rows": (
        ["a", "b"] * 2,
        {},
        "files.train",
        r"at least 5 usable rows to be split \(got 4",
    ),
    "singletons": (
        list("abcdefgh"),
        {},
        "labelColumn",
        r"label has 8 different values in 8 rows; is it the right column\?",
    ),
    "no class to spare": (
        ["a", *"abcdefg"],
        {},
        "split.stratify",
        "must be false: of 7 classes in 8 rows, none has a row to spare for test",
    ),
    "a list as class": ([["a"], ["b"]] * 9, {}, "labelColumn", r"one class per row .*got \['a'\]"),
    "words as numbers": (
        [1, "2.5", "many"] * 9,
        REGRESSION,
        "labelColumn",
        "must hold finite numbers with task Regression .got 'many'",
    ),
    "infinite": ([1, float("inf")] * 9, REGRESSION, "labelColumn", r"finite numbers.*got inf"),
    "one number": ([3.0] * 20, REGRESSION, "labelColumn", "at least two values"),
    "text as label sets": (["a,b", "c"] * 9, MULTI, "labelSeparator", "must be given .*got 'a,b'"),
    "numbers as label sets": ([1, 2] * 9, MULTI, "labelColumn", "a list of labels .* .got 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_rows_are_refused_at_their_field(
    prepare_files: Any, tmp_path: Path, case: str
) -> None:
    labels, changes, field, message = WRONG[case]
    name = write_json(tmp_path / "rows.jsonl", labels)
    with pytest.raises(DataError, match=message) as error:
        prepare_files({"train": name}, **changes)
    assert error.value.field == f"spec.dataset.{field}"


@pytest.mark.parametrize(
    ("dataset", "field", "message"),
    [
        ({"files": {"train": "none.csv"}}, "files.train", r"file that exists \(got .*/none.csv"),
        (
            {"files": {"train": "."}},
            "files.train",
            r"a file \(got /.*, a folder\): name a file in it",
        ),
        ({"files": {"train": "folder.csv"}}, "files.train", r"got /.*/folder\.csv, a folder"),
        ({"files": {"train": "../*.csv"}}, "files.train", r"patterns are not expanded: name one"),
        ({"files": {"train": "rows.xlsx"}}, "files.train", "must end in .csv"),
        ({"files": {"train": "bad.parquet"}}, "files.train", "is not a Parquet file"),
        ({"files": {"train": "file:///none.csv"}}, "files.train", "must be a file that exists"),
        (
            {"files": {"train": "nope://x/rows.csv"}},
            "files.train",
            r"must be a path, or a URI .*csv\)$",
        ),
        ({"files": {"train": "https://x/rows.csv"}}, "files.train", "s3://.*; download it first"),
        ({"files": {"train": "ftp://x/rows.csv"}}, "files.train", "s3://.*; download it first"),
        ({"files": {"train": "hf://x/rows.csv"}}, "files.train", "spec.dataset.hub reads"),
        ({"files": {"train": "file:///a b.csv"}}, "files.train", "as %20, or give the plain path"),
        ({"files": {"train": "file:///tmp.csv"}}, "files.train", r"got file:///tmp\.csv\)"),
        ({"labelNamesFile": "folder.csv"}, "labelNamesFile", "a folder.: name a file"),
        ({"labelNamesFile": "none.txt"}, "labelNamesFile", r"exists \(got /.*/none\.txt\)"),
        ({"labelColumn": "Label"}, "labelColumn", "text, label.*; is label meant"),
        ({"files": {"train": "rows.csv", "test": "none.csv"}}, "files.test", "must be a file"),
        (
            {"files": {"train": "rows.csv", "validation": "empty.csv"}},
            "files.validation",
            "must have",
        ),
        ({"labelColumn": "class"}, "labelColumn", "got class; the columns are: text, label"),
        (
            {"textColumns": ["text", "more"]},
            r"textColumns[1]",
            "got more; the columns are: text, label",
        ),
    ],
)
def test_what_is_not_there_is_refused_at_its_field(
    prepare_files: Any, tmp_path: Path, dataset: dict[str, Any], field: str, message: str
) -> None:
    write_csv(tmp_path / "rows.csv", good())
    write_csv(tmp_path / "empty.csv", [])
    write_csv(tmp_path / "bad.parquet", good())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=message) as error:
        prepare_files({"train": "rows.csv"}, dataset=dataset)
    assert error.value.field == f"spec.dataset.{field}"


def test_bad_rows_are_counted_and_no_other_is_lost(prepare_files: Any, tmp_path: Path) -> None:
    rows = good(30)
    rows[3] = ('"broken', "cats")
    rows[5] = (rows[5][0], "")
    rows[6] = (rows[6][0], "NaN")
    rows[7] = (rows[7][0], "NaN")
    rows[8] = ("", "dogs")
    rows[9] = ("word " * 10_000, "cats")
    test = [
        *((f"new {text}", label) for text, label in good(5)),
        ("meow", "lions"),
        ("roar", "tigers"),
    ]
    data = prepare_files(
        {
            "train": write_csv(tmp_path / "train.csv", rows),
            "test": write_csv(tmp_path / "test.csv", test),
            "maxUnreadable": 0.05,
        }
    )
    assert data.warnings == (
        "spec.dataset.files.train: skipped 1 of 30 rows (3.3%) that cannot be read: a quote that opens a field must be "
        "closed at its end (line 5)",
        "spec.dataset.files.train: 2 of 29 train rows (6.9%) say 'NaN' as their label, which is read as no label, and are "
        "left out (lines 8, 9); rename it if it is a class",
        "spec.dataset.files.train: 1 of 29 train rows (3.4%) have no label and are left out (line 7)",
        "spec.dataset.files.train: 1 of 29 train rows (3.4%) have no text and are left out (line 10)",
        "spec.dataset.files.test: 2 of 7 test rows have labels that no training row has and are left out "
        "(lions, tigers; the training rows have cats, dogs)",
        "spec.dataset.textColumns: 1 of 30 rows are longer than 128 tokens and are cut off there "
        "(the longest has 10002)",
    )
    assert len(data.train) + len(data.validation) == 25
    assert len(data.test) == 5


def test_a_file_of_broken_rows_says_so(prepare_files: Any, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\none;a\ntwo;b\n")
    why = r"\(got 2 of 2 rows \(100.0%\) that cannot be read: 1 field where the header has 2 \(lines 2, 3\)\)"
    with pytest.raises(
        DataError, match=rf"must be readable {why}; does the header name each column"
    ):
        prepare_files({"train": "train.csv"})
    with pytest.raises(DataError, match=r"got 0 readable rows.*; skipped 2 of 2 rows"):
        prepare_files({"train": "train.csv", "maxUnreadable": 1})


def test_classes_that_go_with_unreadable_rows_are_named(prepare_files: Any, tmp_path: Path) -> None:
    rows = [f"ein Wort {number},{'blau' if number % 2 else 'rot'}" for number in range(40)]
    rows += [f"ein Gruß {number},gelb" for number in range(10)]
    (tmp_path / "train.csv").write_bytes(
        ("text,label\n" + "\n".join(rows) + "\n").encode("latin-1")
    )
    with pytest.raises(
        DataError, match=r"including all rows of gelb.*set spec\.dataset\.files\.encoding"
    ) as error:
        prepare_files({"train": "train.csv"})
    assert error.value.field == "spec.dataset.files.train"
    data = prepare_files({"train": "train.csv", "encoding": "ISO-8859-1"})
    assert data.label_names == ("blau", "gelb", "rot")
    with pytest.raises(DataError, match="must be a text encoding") as error:
        prepare_files({"train": "train.csv", "encoding": "no-such"})
    assert error.value.field == "spec.dataset.files.encoding"


def test_rows_of_goemotions_kind_need_no_script(make_spec: Any, tmp_path: Path) -> None:
    """Tabs, no header, numbers of labels separated by commas, their names in a file."""
    names = ["joy", "anger", "grief", "calm"]
    (tmp_path / "emotions.txt").write_text("\n".join(names) + "\n")
    rows = [f"a text of number {n}\t{n % 4},{(n + 1) % 4}\tid{n}" for n in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    dataset = {
        "files": {"train": "train.tsv", "columnNames": ["text", "labels", "id"]},
        "labelColumn": "labels",
        "labelSeparator": ",",
        "labelNamesFile": "emotions.txt",
    }
    objective = {"metric": "f1_macro"}
    data = prepare(make_spec(task="MultiLabel", dataset=dataset, objective=objective), tmp_path)
    assert data.label_names == tuple(sorted(names))
    dataset["labelNames"] = names[:3]
    del dataset["labelNamesFile"]
    with pytest.raises(
        DataError,
        match=r"numbers from 0 to 2, the positions in .*\(got '3' on line 3 of train\.tsv and",
    ) as error:
        prepare(make_spec(task="MultiLabel", dataset=dataset, objective=objective), tmp_path)
    assert error.value.field == "spec.dataset.labelColumn"


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"metric": "accuracy", "target": 95}, "the best accuracy is 1; is 0.95 meant?"),
        ({"metric": "loss", "target": -1}, "-1 can never be reached: the best loss is 0"),
        ({"metric": "accuracy", "goal": "Minimize"}, "Minimize searches for the worst accuracy"),
    ],
)
def test_an_objective_that_can_hardly_be_meant_is_a_warning(
    objective: dict[str, Any], says: str, make_spec: Any, tmp_path: Path
) -> None:
    rows = write_csv(tmp_path / "train.csv", good(30))
    dataset = {"files": {"train": rows}, "labelColumn": "label"}
    data = prepare(make_spec(dataset=dataset, objective=objective), tmp_path)
    assert [text for text in data.warnings if says in text]


def test_a_part_with_unknown_labels_only_is_refused(prepare_files: Any, tmp_path: Path) -> None:
    files = {
        "train": write_csv(tmp_path / "train.csv", good()),
        "validation": write_csv(tmp_path / "validation.csv", [("roar", "lions")]),
    }
    with pytest.raises(
        DataError,
        match=r"1 of 1 validation rows have labels that no .*\(lions; the training rows have cats",
    ) as error:
        prepare_files(files)
    assert error.value.field == "spec.dataset.files.validation"


def test_warnings_stay_within_what_the_status_holds(prepare_files: Any, tmp_path: Path) -> None:
    rows = [*good(), *(("x", f"{row:0200d}") for row in range(5))]
    data = prepare_files(
        {
            "train": write_csv(tmp_path / "train.csv", good()),
            "test": write_csv(tmp_path / "test.csv", rows),
        }
    )
    (warning,) = [text for text in data.warnings if "no training row" in text]
    assert len(warning) == 256
    assert warning.startswith("spec.dataset.files.test: 5 of 25 test rows")


def test_more_warnings_than_the_status_holds_go_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = _limited([f"warning {number}" for number in range(15)])
    assert len(shown) == 10
    assert shown[-2:] == ("warning 8", "and 6 more in the log of the driver")
    assert [record.message for record in caplog.records][-1] == "warning 14"


@pytest.mark.parametrize(
    ("model_type", "expected"), [("bert", 512), ("xlm-roberta", 510), ("mpnet", 510)]
)
def test_a_row_is_never_longer_than_the_positions_of_the_model(
    model_type: str, expected: int
) -> None:
    config = AutoConfig.for_model(model_type, max_position_embeddings=512, pad_token_id=1)
    assert max_tokens(SimpleNamespace(model_max_length=10**30), config) == expected
    assert max_tokens(SimpleNamespace(model_max_length=256), config) == 256


def test_roc_auc_says_which_labels_it_leaves_out(prepare_files: Any, tmp_path: Path) -> None:
    files = {
        "train": write_csv(tmp_path / "train.csv", [*good(), ("roar", "lions")]),
        "validation": write_csv(tmp_path / "validation.csv", good(6)),
        "test": write_csv(tmp_path / "test.csv", good(6)),
    }
    objective = {"metric": "roc_auc"}
    data = prepare_files(files, objective=objective)
    assert [
        text for text in data.warnings if text.startswith("roc_auc is the mean over 2 of 3 labels")
    ]
    alone = (
        "spec.dataset.labelColumn: 1 of 3 classes has a single row (lions), which cannot be both"
    )
    assert [text for text in data.warnings if text.startswith(alone)]
    write_csv(tmp_path / "validation.csv", good(1))
    with pytest.raises(DataError, match="roc_auc must have") as error:
        prepare_files(files, objective=objective)
    assert error.value.field == "spec.objective.metric"


@pytest.mark.parametrize("name", ["models/none", "bert-base-uncased", "empty", "/dev/null"])
def test_a_model_that_cannot_be_loaded_is_refused(
    prepare_files: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_csv(tmp_path / "rows.csv", good())
    with pytest.raises(ModelError) as error:
        prepare_files({"train": "rows.csv"}, model={"name": name})
    assert error.value.field == "spec.model.name"
    assert len(str(error.value)) < 700


def test_model_code_is_never_run(prepare_files: Any, tmp_path: Path, examples: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((examples / "models" / "all-MiniLM-L6-v2" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")
    write_csv(tmp_path / "rows.csv", good())
    with pytest.raises(ModelError, match="without remote code"):
        prepare_files({"train": "rows.csv"}, model={"name": "model"})


@pytest.mark.parametrize("task", ["SingleLabel", "MultiLabel", "Regression"])
@pytest.mark.parametrize(
    ("rows", "validation", "test"), [(5, 0.6, 0.39), (7, 0.6, 0.39), (5, 0.95, 0.04)]
)
def test_a_split_that_leaves_nothing_to_train_on_is_refused(
    prepare_files: Any, tmp_path: Path, task: str, rows: int, validation: float, test: float
) -> None:
    kinds: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "SingleLabel": (["a", "b"], {}),
        "MultiLabel": ([["a"], ["b"]], MULTI),
        "Regression": ([1.5, 2.5], REGRESSION),
    }
    labels, changes = kinds[task]
    name = write_json(tmp_path / "rows.jsonl", (labels * rows)[:rows])
    split = {"validation": validation, "test": test, "stratify": False}
    with pytest.raises(DataError, match="must leave rows for training") as error:
        prepare_files({"train": name}, dataset={"split": split}, **changes)
    assert error.value.field == "spec.dataset.split"
    taken = (
        f"(got {validation:g} for validation and {test:g} for test, which is all of {rows} rows)"
    )
    assert taken in error.value.message


def test_every_error_is_one_a_user_can_mend() -> None:
    assert issubclass(DataError, StudyError)
    assert (DataError.reason, ModelError.reason) == ("DataError", "ModelError")


# Folds and samples.


def test_folds_share_out_training_and_validation_rows_and_leave_the_test_rows_alone(
    prepare_files: Any, tmp_path: Path
) -> None:
    data = prepare_files({"train": write_csv(tmp_path / "a.csv", good(50))})
    pool = sorted([*data.train, *data.validation])
    parts = [data.fold(index, 4, stratify=True, seed=3) for index in range(4)]
    assert sorted(row for part in parts for row in part.validation) == pool
    for part in parts:
        assert sorted([*part.train, *part.validation]) == pool
        assert (part.test == data.test).all()
        classes = np.bincount(part.labels[part.validation], minlength=2)
        assert abs(int(classes[0]) - int(classes[1])) <= 1
    assert len({part.fingerprint for part in parts}) == 4
    with pytest.raises(DataError, match=r"crossValidation.folds: must be at most the \d+ rows"):
        data.fold(0, 100, stratify=False, seed=0)


def test_a_sample_of_rows_is_part_of_a_larger_one_and_all_is_all(
    prepare_files: Any, tmp_path: Path
) -> None:
    data = prepare_files({"train": write_csv(tmp_path / "a.csv", good(80))})
    small, large = (data.sampled(rows, stratify=True, seed=1) for rows in (10, 30))
    assert (len(small.train), len(large.train)) == (10, 30)
    assert set(small.train) < set(large.train) < set(data.train)
    assert set(np.bincount(small.labels[small.train])) == {5}
    assert (data.sampled(999, stratify=True, seed=1).train == data.train).all()


def test_a_metric_that_some_fold_leaves_undefined_is_refused_before_training(
    prepare_files: Any, tmp_path: Path
) -> None:
    rows = [(text(row), "rare" if row < 4 else "common") for row in range(60)]
    files = {"train": write_csv(tmp_path / "a.csv", rows)}
    changes = {
        "objective": {"metric": "roc_auc"},
        "validation": {"crossValidation": {"folds": 8}},
    }
    with pytest.raises(
        DataError, match="roc_auc must have a label that some validation rows of each"
    ):
        prepare_files(files, **changes)
