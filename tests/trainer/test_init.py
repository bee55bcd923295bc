"""`finetune init`: from a data file to a manifest that `finetune plan` takes at once."""

import csv
import gzip
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from finetune_api.editor_schema import STUDY_SCHEMA, study_schema
from finetune_api.manifest import flow_yaml, load_yaml, parse_study
from finetune_api.study import FineTuneStudy, name_problem
from finetune_trainer import cli
from finetune_trainer.data.formats import Layout
from finetune_trainer.drafts.choices import Model, choose
from finetune_trainer.drafts.columns import Column, column_of
from finetune_trainer.drafts.facts import facts_of
from finetune_trainer.drafts.manifest import Draft, Source, manifest_of, study_name
from finetune_trainer.drafts.roles import Given, Question, Roles, roles_of
from finetune_trainer.errors import DataError
from tests.trainer.test_small_commands import read

Captured = pytest.CaptureFixture[str]

WORDS = [
    "the",
    "old",
    "ship",
    "left",
    "port",
    "at",
    "dawn",
    "while",
    "gulls",
    "cried",
    "over",
    "grey",
    "water",
    "and",
    "nobody",
    "waved",
]


def sentence(row: int) -> str:
    """A sentence of five to nine words, another for each row."""
    return (
        " ".join(WORDS[(row * 7 + at * (1 + row % 5)) % len(WORDS)] for at in range(5 + row % 5))
        + f" {row}"
    )


TEXTS = [sentence(row) for row in range(60)]
COLOURS = [("red", "green", "blue")[row % 3] for row in range(60)]


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    return path


def write_json(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def init(data: Path, *options: str) -> tuple[int, Path]:
    into = data.parent / "study.yaml"
    return cli.main(["init", str(data), "--into", str(into), "--yes", *options]), into


def study_in(path: Path) -> FineTuneStudy:
    return parse_study(load_yaml(path.read_text()))


def best(question: Question) -> str:
    return question.best


def roles(columns: Mapping[str, Sequence[Any]], **given: Any) -> Roles:
    return roles_of(
        [column_of(name, cells) for name, cells in columns.items()], Given(**given), best
    )


# -- what columns are


@pytest.mark.parametrize(
    ("cells", "form"),
    [
        (["", None, " "], "Nothing"),
        (["a", "b", None], "Text"),
        ([1, 2, None], "Numbers"),
        (["1", "2.5", ""], "Numbers"),
        (["1", "two"], "Text"),
        ([True, False], "Text"),
        ([["a"], []], "Lists"),
        (['["a", "b"]', "[]"], "Lists"),
        ([[{"start": 0, "end": 1, "label": "x"}], []], "Spans"),
        (['[{"start": 0, "end": 1, "label": "x"}]'], "Spans"),
        ([{"a": 1}], "Other"),
        ([b"x"], "Other"),
    ],
)
def test_a_column_is_what_its_cells_are(cells: list[Any], form: str) -> None:
    assert column_of("c", cells).form == form


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("user_id", ["a b c", "d e f"]),
        ("nr", [str(row) for row in range(9)]),
        ("where", [f"https://example.com/{row}" for row in range(9)]),
        ("when", [f"2024-01-0{row}" for row in range(1, 9)]),
        ("who", [f"person{row}@example.com" for row in range(9)]),
    ],
)
def test_what_only_names_a_row_is_an_identifier(name: str, cells: list[str]) -> None:
    assert column_of(name, cells).is_identifier
    assert not column_of("text", TEXTS).is_identifier


# -- what they are for


@pytest.mark.parametrize(
    ("labels", "task", "separator"),
    [
        (COLOURS, "SingleLabel", None),
        ([row % 2 for row in range(60)], "SingleLabel", None),
        ([1 + row % 5 for row in range(60)], "SingleLabel", None),
        ([row / 7 for row in range(60)], "Regression", None),
        ([row * 3 for row in range(60)], "Regression", None),
        ([["a", "b"][: row % 3] for row in range(60)], "MultiLabel", None),
        ([("a;b", "b;c", "a", "c;a;b")[row % 4] for row in range(60)], "MultiLabel", ";"),
        ([("a|b", "b|c", "a", "c|a|b")[row % 4] for row in range(60)], "MultiLabel", "|"),
        ([[{"start": 0, "end": 3, "label": "X"}]] * 60, "TokenClassification", None),
    ],
)
def test_the_task_follows_from_the_labels(
    labels: list[Any], task: str, separator: str | None
) -> None:
    found = roles({"id": range(60), "text": TEXTS, "label": labels})
    assert (found.task, found.separator) == (task, separator)
    assert [column.name for column in found.texts] == ["text"]
    assert found.label.name == "label"


def test_columns_of_yes_and_no_are_labels_of_their_own() -> None:
    marks = {
        name: [(row // by) % 2 for row in range(60)] for name, by in (("rude", 1), ("spam", 2))
    }
    found = roles({"id": range(60), "comment": TEXTS, **marks})
    assert found.task == "MultiLabel"
    assert [column.name for column in found.labels] == ["rude", "spam"]


def test_words_and_a_tag_for_each_are_for_tagging() -> None:
    words = [text.split() for text in TEXTS]
    tags = [["B-X", *["O"] * (len(row) - 1)] for row in words]
    found = roles({"tokens": words, "ner_tags": tags})
    assert found.task == "TokenClassification"
    assert found.tokens is not None
    assert (found.tokens.name, found.label.name) == ("tokens", "ner_tags")


def test_of_several_columns_of_tags_entities_are_the_guess() -> None:
    words = [text.split() for text in TEXTS]
    numbers = [[at % 3 for at, _ in enumerate(row)] for row in words]
    found = roles({"tokens": words, "pos_tags": numbers, "ner_tags": numbers})
    assert found.label.name == "ner_tags"
    assert found.tokens is not None
    assert found.tokens.name == "tokens"


def test_two_columns_that_are_called_so_are_a_pair() -> None:
    other = [sentence(row + 100) for row in range(60)]
    found = roles({"premise": TEXTS, "hypothesis": other, "label": COLOURS})
    assert [column.name for column in found.texts] == ["premise", "hypothesis"]


def test_a_column_that_repeats_may_be_a_group() -> None:
    author = [f"author {row % 12}" for row in range(60)]
    found = roles({"author": author, "text": TEXTS, "label": COLOURS})
    assert [column.name for column in found.groups] == ["author"]


def test_the_label_need_not_be_called_so() -> None:
    found = roles({"colour": COLOURS, "statement": TEXTS})
    assert (found.label.name, found.texts[0].name) == ("colour", "statement")


def test_what_is_unclear_is_asked() -> None:
    asked: list[Question] = []

    def last(question: Question) -> str:
        asked.append(question)
        return question.others[-1]

    columns: dict[str, list[Any]] = {
        "one": TEXTS,
        "two": [sentence(row + 99) for row in range(60)],
        "stars": [1 + row % 5 for row in range(60)],
    }
    found = roles_of([column_of(name, cells) for name, cells in columns.items()], Given(), last)
    assert [question.option for question in asked] == ["--text-column", "--task"]
    assert found.task == "Regression"
    assert asked[0].others[-1] == found.texts[0].name


def test_what_is_given_is_not_guessed() -> None:
    columns = {
        "a": TEXTS,
        "b": [sentence(row + 99) for row in range(60)],
        "c": COLOURS,
        "label": COLOURS,
    }
    found = roles(columns, texts=("b",), label="c", task="SingleLabel")
    assert (found.texts[0].name, found.label.name) == ("b", "c")


@pytest.mark.parametrize(
    ("columns", "given", "says"),
    [
        ({"a": [1, 2, 3], "b": [4, 5, 6]}, {}, "--text-column: must be given: no column looks like natural language"),
        ({"text": TEXTS, "label": ["x"] * 60}, {}, "--label-column: .*got label: all 60 rows .* say x"),
        ({"text": TEXTS, "label": [f"l{row}" for row in range(60)]}, {}, "--label-column: .*each of 60 rows has a value of its own"),
        ({"text": TEXTS}, {}, "--label-column: must be given: no column looks like labels"),
        ({"text": TEXTS, "label": COLOURS}, {"label": "lable"}, "--label-column: must name a column .*the columns are: text, label"),
        ({"text": TEXTS, "label": COLOURS}, {"texts": ("Text",)}, "--text-column: .*is text meant"),
        ({"text": TEXTS, "label": COLOURS}, {"texts": ("text",), "label": "text"}, "--label-column: must not be a text"),
        ({"text": TEXTS, "label": COLOURS}, {"label": "label", "task": "Regression"}, "--task: must suit the labels .got Regression"),
        ({"text": TEXTS, "label": COLOURS}, {"task": "MultiLabel"}, "--label-column: must name a column of lists"),
        ({"text": TEXTS, "label": COLOURS}, {"task": "TokenClassification"}, "--task: .*must have spans"),
        ({"text": TEXTS, "label": [[]] * 60, "e": [None] * 60}, {"label": "e"}, "--label-column: .*empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_names_the_option_to_give(
    columns: dict[str, list[Any]], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        roles(columns, **given)


# -- what is written


def written(columns: Mapping[str, Sequence[Any]], model: str = "org/model") -> str:
    found = roles(columns)
    facts = facts_of(found)
    chosen = choose(found.task, facts, Model(model), 60)
    source = Source("rows.csv", Layout())
    return manifest_of(Draft("study", STUDY_SCHEMA, source, found, facts, Model(model), chosen))


HOSTILE = [
    'a "quoted" name', "it's", "key: value", "# comment", "a #b", "- item", "{x}", "[y]", "yes", "null", "1e5", "~",
    "été", "名前", "emoji 😀", "two\nlines", "tab\there", "*alias", "&anchor", "!tag", "%", "@", "|", ">", "a, b", "x:",
    " blank ", "\u2028", "\x85", "C:\\texts", "<<",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_of_a_column_gives_yaml_that_says_it(name: str) -> None:
    document = load_yaml(
        written(
            {name: TEXTS, "label": COLOURS, f"{name}2": [f"{name} {row % 12}" for row in range(60)]}
        )
    )
    assert document["spec"]["dataset"]["textColumns"] == [name]
    parse_study(document)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_names_of_columns_and_classes_give_a_study(data: st.DataObject) -> None:
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    text, label, *classes = data.draw(
        st.lists(
            names.filter(lambda name: name.strip() == name != ""),
            min_size=4,
            max_size=6,
            unique=True,
        )
    )
    labels = [classes[row % len(classes)] for row in range(60)]
    columns = [column_of(text, TEXTS), column_of(label, labels)]
    found = Roles("SingleLabel", (columns[1],), (columns[0],))
    facts = facts_of(found)
    chosen = choose("SingleLabel", facts, Model("m"), 5)
    document = load_yaml(
        manifest_of(Draft("s", "x", Source(text, Layout()), found, facts, Model("m"), chosen))
    )
    assert parse_study(document).spec.dataset.label_column == label
    assert document["spec"]["dataset"]["files"]["train"] == text


@given(st.text(max_size=60))
def test_any_name_of_a_file_gives_a_name_of_a_study(name: str) -> None:
    assert name_problem(study_name(name)) is None


@given(
    st.recursive(
        st.text() | st.integers(-9, 9) | st.booleans(), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_a_value_on_one_line_is_read_back(value: Any) -> None:
    line = flow_yaml(value)
    assert "\n" not in line
    assert load_yaml(f"key: {line}") == {"key": value}


@pytest.mark.parametrize(
    ("rare", "metric", "balances"),
    [(1, "f1_macro", ["None", "Weights", "Oversample"]), (30, "accuracy", None)],
)
def test_rare_classes_are_balanced_in_the_space(
    rare: int, metric: str, balances: list[str] | None
) -> None:
    labels = ["rare"] * (1 + rare) + ["frequent"] * (59 - rare)
    spec = parse_study(load_yaml(written({"text": TEXTS, "label": labels}))).spec
    assert spec.objective.metric == metric
    assert (spec.search_spaces[0].to_json().get("classBalance") or {}).get("values") == balances


def test_the_length_follows_from_the_texts() -> None:
    long = [" ".join([text] * 20) for text in TEXTS]
    lengths = [
        load_yaml(written({"text": texts, "label": COLOURS}))["spec"]["hyperparameters"][
            "maxLength"
        ]
        for texts in (TEXTS, long)
    ]
    assert lengths[0] <= 32 < 128 < lengths[1]


def test_a_group_is_a_hint_that_can_be_uncommented() -> None:
    text = written(
        {"author name": [f"a {row % 12}" for row in range(60)], "text": TEXTS, "label": COLOURS}
    )
    assert "    # groupColumn: author name\n" in text
    document = load_yaml(text.replace("    # groupColumn", "    groupColumn"))
    assert parse_study(document).spec.dataset.group_column == "author name"


# -- the command


SHAPES: dict[str, Mapping[str, Sequence[Any]]] = {
    "SingleLabel": {"text": TEXTS, "label": COLOURS},
    "MultiLabel": {"text": TEXTS, "label": [["a", "b", "c"][row % 3 :] for row in range(60)]},
    "Regression": {"text": TEXTS, "label": [row / 7 for row in range(60)]},
    "TokenClassification": {
        "text": TEXTS,
        "label": [[{"start": 0, "end": len(text.split()[0]), "label": "first"}] for text in TEXTS],
    },
}


@pytest.mark.parametrize("task", SHAPES)
def test_plan_takes_what_was_written(
    task: str, tmp_path: Path, examples: Path, capsys: Captured
) -> None:
    data = write_json(tmp_path / "rows.jsonl", SHAPES[task])
    code, into = init(data, "--model", str(examples / "models" / "all-MiniLM-L6-v2"))
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"finetune plan {into}" in said.out.replace("\n", " ")
    assert study_in(into).spec.task == task
    document = load_yaml(into.read_text())
    assert Draft202012Validator(study_schema()).is_valid(document)
    assert into.read_text().startswith(f"# yaml-language-server: $schema={STUDY_SCHEMA}\n")
    assert json.loads((tmp_path / STUDY_SCHEMA).read_text()) == study_schema()
    assert cli.main(["plan", str(into)]) == 0
    said = capsys.readouterr()
    assert "data: 36 train, 12 validation, 12 test rows" in said.out
    assert "20 trials" in said.out


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet", "rows.csv.gz"]
)
def test_every_format_is_read(name: str, tmp_path: Path, capsys: Captured) -> None:
    path, columns = tmp_path / name, {"text": TEXTS, "label": COLOURS}
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    elif ".json" in name:
        write_json(path, columns)
    else:
        plain = write_csv(
            tmp_path / name.removesuffix(".gz"), columns, "\t" if ".tsv" in name else ","
        )
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(plain.read_bytes()))
    code, into = init(path)
    assert code == 0, capsys.readouterr().err
    spec = study_in(into).spec
    assert spec.dataset.files is not None
    assert (spec.task, spec.dataset.files.train, spec.dataset.label_column) == (
        "SingleLabel",
        name,
        "label",
    )


def test_a_conll_file_is_for_tagging(tmp_path: Path) -> None:
    blocks = [
        "\n".join(f"{word} {'B-X' if at == 0 else 'O'}" for at, word in enumerate(text.split()))
        for text in TEXTS
    ]
    (tmp_path / "rows.conll").write_text("\n\n".join(blocks) + "\n")
    code, into = init(tmp_path / "rows.conll")
    assert code == 0
    assert study_in(into).spec.dataset.tokens_column == "tokens"


def test_semicolons_and_other_encodings_are_found(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv", {"text": [f"été {text}" for text in TEXTS], "label": COLOURS}, ";"
    )
    path.write_bytes(path.read_text("utf-8").encode("cp1252"))
    code, into = init(path)
    files = study_in(into).spec.dataset.files
    assert code == 0
    assert files is not None
    assert (files.delimiter, files.encoding) == (";", "windows-1252")


def test_files_beside_train_are_its_test_and_validation(tmp_path: Path) -> None:
    for part in ("train", "dev", "test"):
        write_csv(
            tmp_path / f"my-{part}.csv",
            {"text": [f"{part} {text}" for text in TEXTS], "label": COLOURS},
        )
    code, into = init(tmp_path / "my-train.csv")
    files = study_in(into).spec.dataset.files
    assert code == 0
    assert files is not None
    assert (files.train, files.validation, files.test) == (
        "my-train.csv",
        "my-dev.csv",
        "my-test.csv",
    )


def test_guesses_are_told_without_a_terminal(tmp_path: Path, capsys: Captured) -> None:
    data = write_csv(
        tmp_path / "r.csv", {"text": TEXTS, "stars": [1 + row % 5 for row in range(60)]}
    )
    assert init(data)[0] == 0
    assert "guessed --task SingleLabel (or Regression)" in capsys.readouterr().out


def test_facts_are_one_json_document(tmp_path: Path, capsys: Captured) -> None:
    code, into = init(
        write_csv(tmp_path / "r.csv", {"text": TEXTS, "label": COLOURS}), "--output", "json"
    )
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == 0
    assert (found["manifest"], found["task"], found["facts"]["rows"]) == (
        str(into),
        "SingleLabel",
        60,
    )
    assert "finetune plan" in said.err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.csv", "", "DATA: r.csv is empty"),
        ("r.csv", "text,label\n", "DATA: must have rows .*a header and nothing below it"),
        ("r.jsonl", "", "DATA: must have rows"),
        ("r.jsonl", "nonsense\n", "DATA: must have rows .*not JSON in line 1"),
        ("r.parquet", "x", "DATA: r.parquet is not a Parquet file"),
        ("r.xlsx", "x", "DATA: must end in .csv, .tsv"),
        ("r.csv.gz", "x", "DATA: r.csv.gz is not a complete gzip file"),
    ],
)
def test_a_file_without_rows_is_an_error(
    name: str,
    content: str,
    says: str,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", name, "--yes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("finetune: ")
    assert re.search(says, error), error
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    assert init(tmp_path / "none.csv")[0] == 2
    assert "DATA: must be a file that exists" in capsys.readouterr().err


def test_a_manifest_that_is_there_stays(tmp_path: Path, capsys: Captured) -> None:
    data = write_csv(tmp_path / "r.csv", {"text": TEXTS, "label": COLOURS})
    (tmp_path / "study.yaml").write_text("mine\n")
    assert init(data)[0] == 2
    assert "--into: must be a file that is not there yet" in capsys.readouterr().err
    assert (tmp_path / "study.yaml").read_text() == "mine\n"


def test_texts_that_give_their_label_away_are_told_at_once(
    tmp_path: Path, capsys: Captured
) -> None:
    texts = [f"{text} {colour}" for text, colour in zip(TEXTS, COLOURS, strict=True)]
    assert init(write_csv(tmp_path / "r.csv", {"text": texts, "label": COLOURS}))[0] == 1
    assert (
        "finetune plan refuses it: spec.dataset.textColumns: must not contain the labels"
        in capsys.readouterr().out
    )


def test_a_terminal_is_asked_also_before_it_overwrites(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", {"text": TEXTS, "stars": [1 + row % 5 for row in range(60)]})
    (tmp_path / "study.yaml").write_text("mine\n")
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "finetune_trainer.cli", "init", "r.csv"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(inner)
    try:
        assert "Overwrite it?" in read(terminal, "Overwrite it? [y/N]")
        os.write(terminal, b"y\n")
        assert "classes, or amounts" in read(terminal, "1 to 2 [1]")
        os.write(terminal, b"2\n")
        assert "wrote study.yaml" in read(terminal, "wrote study.yaml")
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert study_in(tmp_path / "study.yaml").spec.task == "Regression"


def test_columns_differ_even_if_they_hold_the_same() -> None:
    some, other = (Column(name, "Text", ["a"]) for name in ("x", "x"))
    assert some != other
