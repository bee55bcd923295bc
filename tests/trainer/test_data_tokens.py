"""Rows are framed and cut exactly as the tokenizer itself would do it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.tokens import Frame, tokenise
from finetune_trainer.training.batches import Batcher

TEXTS = [
    "Return the product of array elements over a given axis.",
    "Draw samples.",
    "Compute the (multiplicative) inverse of a matrix; naïve users beware: O(n³)! " * 4,
    "x",
]
OTHERS = ["Fill.", TEXTS[2], TEXTS[0], "The quick brown fox jumps over the lazy dog. " * 3]


@pytest.fixture(scope="module")
def bert(examples: Path) -> Any:
    return ModelSource(str(examples / "models" / "all-MiniLM-L6-v2")).tokenizer()


@pytest.fixture(scope="module")
def roberta() -> Any:
    """A small tokenizer of RoBERTa's kind: `<s> a </s></s> b </s>`, no segments."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    bpe.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def prepared(tokenizer: Any, *columns: list[str]) -> PreparedData:
    rows = np.arange(len(columns[0]))
    return PreparedData(
        task="Regression",
        model=ModelSource("none"),
        columns=tuple(tokenise(tokenizer, column) for column in columns),
        labels=np.zeros(len(rows), dtype=np.float32),
        label_names=("y",),
        train=rows,
        validation=rows[:0],
        test=rows[:0],
        frame=Frame.of(tokenizer, columns),
        max_tokens=512,
    )


@pytest.mark.parametrize("max_length", [8, 9, 16, 31, 512])
@pytest.mark.parametrize("columns", [[TEXTS], [TEXTS, OTHERS]], ids=["single", "pair"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_batches_are_what_the_tokenizer_makes(
    kind: str, columns: list[list[str]], max_length: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    data = prepared(tokenizer, *columns)
    batch = Batcher(data, max_length, torch.device("cpu"))(data.train)
    options = {"truncation": "longest_first", "max_length": max_length, "padding": True}
    expected = tokenizer(*columns, return_tensors="pt", **options)
    assert set(batch.inputs) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(batch.inputs[name], tensor), name
    assert (
        data.lengths(data.train, max_length).tolist() == expected["attention_mask"].sum(1).tolist()
    )


def of_letters(letters: str) -> Any:
    """A tokenizer that knows these letters, and drops all others without a word."""
    vocabulary = {each: number for number, each in enumerate(["[PAD]", "[CLS]", "[SEP]", *letters])}
    made = Tokenizer(BPE(vocabulary, merges=[]))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")


def with_side(tokenizer: Any, folder: Path) -> Any:
    """The same that cuts texts on the left, as saved and read again."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, truncation_side="left")


KINDS: dict[str, Callable[..., Any]] = {
    "bert": lambda get, folder: get("bert"),
    "roberta": lambda get, folder: get("roberta"),
    "bert, cut on the left": lambda get, folder: with_side(get("bert"), folder),
    "roberta, cut on the left": lambda get, folder: with_side(get("roberta"), folder),
    "letters without a and b": lambda get, folder: of_letters("cdefghilmnoprstuvwxyz"),
    "no special tokens": lambda get, folder: bare(get("roberta")),
}


def bare(tokenizer: Any) -> Any:
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return other


@pytest.mark.parametrize("max_length", [9, 16, 512])
@pytest.mark.parametrize("columns", [[TEXTS], [TEXTS, OTHERS]], ids=["single", "pair"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_what_the_exported_tokenizer_makes(
    kind: str,
    columns: list[list[str]],
    max_length: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """As whoever has the exported folder calls it: it is told to truncate, and knows to what by itself."""
    tokenizer = KINDS[kind](request.getfixturevalue, tmp_path / "made")
    data = prepared(tokenizer, *columns)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(tmp_path / "model")
    served = AutoTokenizer.from_pretrained(tmp_path / "model")
    expected = served(*columns, truncation=True, padding=True, return_tensors="pt")
    batch = Batcher(data, max_length, torch.device("cpu"))(data.train)
    for name, tensor in batch.inputs.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_tokenizer_that_reads_none_of_the_texts_is_refused() -> None:
    tokenizer = of_letters("JQZ")
    with pytest.raises(ValueError, match="makes no tokens from any of 4 texts"):
        Frame.of(tokenizer, [TEXTS])
    assert Frame.of(tokenizer, [[*TEXTS, "Q"]]).special == 2


def test_texts_are_kept_whole(bert: Any) -> None:
    tokens = tokenise(bert, ["word " * 10_000, "", "one two"])
    assert tokens.lengths.tolist() == [10_000, 0, 2]
    assert bert.decode(tokens[2]) == "one two"
