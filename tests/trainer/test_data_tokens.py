"""Rows are framed and cut exactly as the tokenizer itself would do it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast

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
        frame=Frame.of(tokenizer, pair=len(columns) == 2),
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


def test_texts_are_kept_whole(bert: Any) -> None:
    tokens = tokenise(bert, ["word " * 10_000, "", "one two"])
    assert tokens.lengths.tolist() == [10_000, 0, 2]
    assert bert.decode(tokens[2]) == "one two"
