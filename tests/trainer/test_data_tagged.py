"""Rows of tagged words: how they are read, cut into windows, and what is said of wrong ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.tagged import words_in
from finetune_trainer.data.tokens import tokens_of_words
from finetune_trainer.data.windows import units_of
from finetune_trainer.errors import DataError, ModelError
from finetune_trainer.tasks.ragged import Ragged, ends
from tests.trainer.conftest import MakeSpec

Prepare = Callable[..., PreparedData]

_NAMED: list[tuple[list[str], list[str]]] = [
    (["Ada", "Lovelace", "met", "Babbage", "."], ["B-PER", "I-PER", "O", "B-PER", "O"]),
    (["She", "lived", "in", "London", "."], ["O", "O", "O", "B-LOC", "O"]),
]
ROWS = [*_NAMED * 5, *[(["Nothing", "here", "at", "all"], ["O", "O", "O", "O"])] * 2]
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.fixture
def tagged(make_spec: MakeSpec, shallow: Path, tmp_path: Path) -> Prepare:
    """Prepares the rows of one file, with the given fields of the data set and others of the study."""

    def prepared(content: str, name: str = "train.jsonl", **changes: Any) -> PreparedData:
        (tmp_path / name).write_text(content)
        columns = {"textColumns": None, "labelColumn": None}
        own = changes.pop("dataset", {"tokensColumn": "words", "tagsColumn": "tags"})
        dataset = {**columns, "files": {"train": name}, **own}
        spec = make_spec(
            **{
                "task": "TokenClassification",
                "model": {"name": str(shallow)},
                "objective": {"metric": "f1_micro"},
                "dataset": dataset,
                **changes,
            }
        )
        return prepare(spec, tmp_path)

    return prepared


def lines(rows: Any, one: str = "words", other: str = "tags") -> str:
    return "".join(json.dumps({one: a, other: b}) + "\n" for a, b in rows)


def of_words(data: PreparedData) -> list[tuple[str, str]]:
    """Each word of all rows as the model reads its first token, and its tag."""
    tokenizer, tokens = data.model.tokenizer(), data.word_tokens
    assert tokens is not None
    found = []
    for row in range(len(data.labels)):
        ids = data.columns[0][row]
        for token, tag in zip(tokens.row(row), data.labels.row(row), strict=True):
            found.append((tokenizer.decode([ids[token]]), data.label_names[tag]))
    return found


def spans_of_rows() -> list[tuple[str, list[dict[str, Any]]]]:
    """The same rows as texts with spans."""
    found = []
    for words, tags in ROWS:
        text, spans = "", []
        for word, tag in zip(words, tags, strict=True):
            if tag.startswith("B-"):
                spans.append({"start": len(text), "end": len(text) + len(word), "label": tag[2:]})
            elif tag != "O":
                spans[-1]["end"] = len(text) + len(word)
            text += word + " "
        found.append((text.rstrip(), spans))
    return found


def test_every_way_to_write_the_same_rows_gives_the_same_data(tagged: Prepare) -> None:
    expected = tagged(lines(ROWS))
    assert expected.label_names == NAMES
    assert ("ada", "B-PER") in of_words(expected)
    assert ("lovelace", "I-PER") in of_words(expected) or ("love", "I-PER") in of_words(expected)

    as_text = [(" ".join(words), json.dumps(tags)) for words, tags in ROWS]
    printed = [(str(words), str(tags)) for words, tags in ROWS]
    bioes = {"B-LOC": "S-LOC", "I-PER": "E-PER"}
    single = [
        [bioes.get(tag, tag) if n < 3 else "S-PER" for n, tag in enumerate(tags)]
        if tags[0] == "B-PER"
        else [bioes.get(tag, tag) for tag in tags]
        for _, tags in ROWS
    ]
    single = [
        ["O" if tag == "S-PER" and n == 4 else tag for n, tag in enumerate(row)] for row in single
    ]
    numbers = [[NAMES.index(tag) for tag in tags] for _, tags in ROWS]
    words = [words for words, _ in ROWS]
    conll = "-DOCSTART- -X- O\n\n" + "\n\n".join(
        "\n".join(f"{word} X {tag}" for word, tag in zip(*row, strict=True)) for row in ROWS
    )
    given = {"tokensColumn": "tokens", "tagsColumn": "tags"}
    spans = {"textColumns": ["text"], "spansColumn": "spans"}
    named = {"tokensColumn": "words", "tagsColumn": "tags", "labelNames": list(NAMES)}
    for other in (
        tagged(lines(as_text)),
        tagged(lines(printed)),
        tagged(lines(zip(words, single, strict=True))),
        tagged(lines(zip(words, numbers, strict=True)), dataset=named),
        tagged(conll, "train.conll", dataset=given),
        tagged(lines(spans_of_rows(), "text", "spans"), dataset=spans),
        tagged(
            lines([(t, json.dumps(s)) for t, s in spans_of_rows()], "text", "spans"), dataset=spans
        ),
    ):
        assert other.label_names == NAMES
        assert of_words(other) == of_words(expected)
        assert other.fingerprint == expected.fingerprint


def test_plain_tags_are_entities_unless_every_word_has_one(tagged: Prepare) -> None:
    plain = [(words, [tag[2:] or "O" for tag in tags]) for words, tags in ROWS]
    assert tagged(lines(plain)).label_names == NAMES
    speech = [(["She", "met", "him"], ["PRON", "VERB", "PRON"]), (["Nothing"], ["NOUN"])] * 8
    data = tagged(lines(speech), objective={"metric": "accuracy"})
    assert data.label_names == ("NOUN", "PRON", "VERB")
    assert data.labels.singles


@pytest.mark.parametrize(
    ("rows", "field", "said"),
    [
        ([(["a", "b"], ["O"])], "spec.dataset.tagsColumn", "1 tags for 2 words on line 13"),
        ([(["a"], ["PER"])], "spec.dataset.tagsColumn", "'PER' on line 13"),
        ([({"a": 1}, ["O"])], "spec.dataset.tokensColumn", "must hold lists of words"),
        ([(["a", None], ["O", "O"])], "spec.dataset.tokensColumn", "None at place 1"),
        ([(["a"], [["O"]])], "spec.dataset.tagsColumn", "must hold lists of words"),
        ([("['a' 'b']", "O O")], "spec.dataset.tokensColumn", "a list as text must be JSON"),
    ],
)
def test_wrong_words_and_tags_are_told_with_their_line(
    rows: Any, field: str, said: str, tagged: Prepare
) -> None:
    with pytest.raises(DataError) as error:
        tagged(lines([*ROWS, *rows]))
    assert error.value.field == field
    assert said in error.value.message


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([{"start": 0, "end": 99, "label": "X"}], "in a text of 12 characters"),
        ([{"start": 3, "end": 3, "label": "X"}], "from start to before end"),
        ([{"start": 0, "end": 3}], "must hold spans such as"),
        ([[0, 3, "X"]], "must hold spans such as"),
        ("nothing", "must hold lists of spans"),
        (
            [{"start": 0, "end": 5, "label": "X"}, {"start": 3, "end": 8, "label": "Y"}],
            "must hold spans that do not overlap (got 'It is' and 'is in'",
        ),
        ([{"start": 0, "end": 2, "label": None}], "must hold spans with a label"),
    ],
)
def test_wrong_spans_are_told_with_their_line(spans: Any, said: str, tagged: Prepare) -> None:
    content = lines([*spans_of_rows(), ("It is in one", spans)], "text", "spans")
    with pytest.raises(DataError) as error:
        tagged(content, dataset={"textColumns": ["text"], "spansColumn": "spans"})
    assert error.value.field == "spec.dataset.spansColumn"
    assert said in error.value.message
    assert "line 13" in error.value.message


def test_spans_within_words_are_widened_and_told(tagged: Prepare) -> None:
    row = ("an example of it", [{"start": 5, "end": 10, "label": "LOC"}])
    data = tagged(
        lines([*spans_of_rows(), row], "text", "spans"),
        dataset={"textColumns": ["text"], "spansColumn": "spans"},
    )
    assert ("example", "B-LOC") in of_words(data)
    (told,) = (text for text in data.warnings if "within a word" in text)
    assert "1 of 16 spans of the train rows" in told
    assert "('ample')" in told


def test_rows_without_words_or_tags_are_left_out_and_told(tagged: Prepare) -> None:
    data = tagged(lines([*ROWS, ([], []), (["a"], None)]))
    assert len(data.labels) == len(ROWS)
    told = " ".join(data.warnings)
    assert "1 of 14 train rows (7.1%) have no text" in told
    assert "1 of 14 train rows (7.1%) have no tags" in told
    with pytest.raises(DataError, match="must mark something"):
        tagged(lines([(["a", "b"], ["O", "O"])] * 12))


def test_types_that_training_lacks_are_left_out_of_validation(
    tagged: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "more.jsonl").write_text(lines([*ROWS, (["Acme"], ["B-ORG"])]))
    files = {"train": "train.jsonl", "validation": "more.jsonl", "test": "more.jsonl"}
    data = tagged(
        lines(ROWS), dataset={"tokensColumn": "words", "tagsColumn": "tags", "files": files}
    )
    assert len(data.validation) == len(ROWS)
    assert any(
        "labels that no training row has" in text and "ORG" in text for text in data.warnings
    )


def test_cleaning_keeps_each_word_and_its_tag(tagged: Prepare) -> None:
    rows = [([f"<b>{word}</b>" for word in words], tags) for words, tags in ROWS]
    given = {"tokensColumn": "words", "tagsColumn": "tags", "cleaning": {"stripHtml": True}}
    assert of_words(tagged(lines(rows), dataset=given)) == of_words(tagged(lines(ROWS)))


def test_words_of_a_text_follow_what_its_script_has() -> None:
    text = "Don't pay 3,50 € to 王小明さん or Jürgen_2! 서울에"
    words = [text[start:end] for start, end in words_in(text)]
    assert words == [
        *("Don", "'", "t", "pay", "3", ",", "50", "€", "to"),
        *("王", "小", "明", "さ", "ん", "or", "Jürgen", "_", "2", "!", "서", "울", "에"),
    ]


def test_each_word_of_a_long_row_is_labelled_once_where_most_text_is_around_it(
    tagged: Prepare,
) -> None:
    many = [f"w{n}" if n % 3 else "London" for n in range(200)]
    row = (many, ["B-LOC" if word == "London" else "O" for word in many])
    data = tagged(lines([*ROWS, row]))
    for longest in (8, 16, 21, 64, 500):
        units = units_of(data, longest)
        lengths = units.data.lengths(np.arange(len(units.data.labels)), longest)
        assert lengths.max() <= longest
        words = [*zip(units.data.labels.values, of_words(units.data), strict=True)]
        assert [tag for tag, _ in words] == data.labels.values.tolist()
        assert [word for _, word in words] == of_words(data)
        rows = np.arange(len(data.labels))
        assert units.of(rows).tolist() == [*range(len(units.data.labels))]
        for part in ("train", "validation", "test"):
            assert units.of(data.part(part)).tolist() == units.data.part(part).tolist()
        if longest == 16:
            tokens = units.data.word_tokens
            assert tokens is not None
            inner = units.of(data.labels.lengths.argmax(keepdims=True))[1:-1]
            room = longest - data.frame.special
            near = [
                min(*tokens.row(n)[[0, -1]], *(room - 1 - tokens.row(n)[[0, -1]])) for n in inner
            ]
            assert min(near) >= room // 4 // 2 - 1
        answers = units.data.labels.with_values(np.arange(len(data.labels.values))[:, None])
        joined = units.joined(answers, rows)
        assert joined.values[:, 0].tolist() == [*range(len(data.labels.values))]
        assert joined.offsets.tolist() == data.labels.offsets.tolist()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a bc\u200b d"], [[(0, 1), (2, 5), (6, 7)]]),
        (["don't"], [[(0, 3), (3, 4), (4, 5)]]),
        (["", "x"], [[], [(0, 1)]]),
    ],
)
def test_first_token_of_a_word_is_the_first_one_that_has_some_of_it(
    texts: list[str], words: list[list[tuple[int, int]]], shallow: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shallow)
    places = np.array([place for row in words for place in row], dtype=np.int64).reshape(-1, 2)
    tokens, first = tokens_of_words(tokenizer, texts, Ragged(places, ends([*map(len, words)])))
    for row, (text, spans) in enumerate(zip(texts, words, strict=True)):
        for (start, end), token in zip(spans, first.row(row), strict=True):
            said = tokenizer.decode([tokens[row][token]]).removeprefix("##")
            assert text[start:end].startswith(said)


def test_a_tokenizer_that_does_not_tell_places_is_refused(
    tagged: Prepare, monkeypatch: Any
) -> None:
    import transformers

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    with pytest.raises(ModelError, match="which characters its tokens come from"):
        tagged(lines(ROWS))


def test_conll_rows_with_other_fields_are_told(tagged: Prepare) -> None:
    good = "\n".join(f"{w} {t}" for w, t in zip(*ROWS[0], strict=True))
    content = "\n\n".join([good] * 8 + ["Only\nthree fields here"])
    given = {"tokensColumn": "tokens", "tagsColumn": "tags"}
    with pytest.raises(DataError, match="1 field where the first line has 2") as error:
        tagged(content, "train.conll", dataset=given)
    assert error.value.field == "spec.dataset.files.train"
    allowed = {**given, "files": {"train": "train.conll", "maxUnreadable": 0.2}}
    assert len(tagged(content, "train.conll", dataset=allowed).labels) == 8


def test_an_objective_of_entities_needs_some_to_validate_on(
    tagged: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "none.jsonl").write_text(lines([(["a", "b"], ["O", "O"])] * 4))
    columns = {"tokensColumn": "words", "tagsColumn": "tags"}
    files = {"train": "train.jsonl", "validation": "none.jsonl", "test": "train.jsonl"}
    with pytest.raises(DataError, match="f1_micro must have an entity in the validation rows"):
        tagged(lines(ROWS), dataset={**columns, "files": files})
    by_words = {"metric": "accuracy"}
    data = tagged(lines(ROWS), dataset={**columns, "files": files}, objective=by_words)
    assert len(data.validation) == 4


def test_a_word_with_a_blank_is_one_word(tagged: Prepare) -> None:
    rows = [(["New  York", "is", "big"], ["B-LOC", "O", "O"])]
    data = tagged(lines([*ROWS, *rows]))
    assert ("new", "B-LOC") in of_words(data)
    tokenizer = data.model.tokenizer()
    texts = [tokenizer.decode(data.columns[0][row]) for row in range(len(data.labels))]
    assert "new york is big" in texts
