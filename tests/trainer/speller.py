"""A tiny encoder, untrained, that reads letter by letter, and a few rows for it: trials of it take milliseconds."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from finetune_api.study import StudySpec

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def write_speller(folder: Path) -> Path:
    """The encoder and its tokenizer in `folder`."""
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def speller_spec(folder: Path, **changes: Any) -> StudySpec:
    """A study of it in `folder`, which has to be written: is the word one of vowels?"""
    model = folder / "speller"
    if not model.exists():
        write_speller(model)
        vowels = [f"{a}{e}{i},yes" for a in "aeiou" for e in "aeiou" for i in "ae"]
        others = [f"{a}{e}{i},no" for a in "bcdfg" for e in "hjklm" for i in "np"]
        rows = [row for pair in zip(vowels, others, strict=True) for row in pair]
        (folder / "words.csv").write_text("\n".join(["word,vowels", *rows]))
    return StudySpec.model_validate(
        {
            "task": "SingleLabel",
            "model": {"name": str(model)},
            "dataset": {
                "files": {"train": str(folder / "words.csv")},
                "textColumns": ["word"],
                "labelColumn": "vowels",
            },
            "objective": {"metric": "accuracy"},
            "hyperparameters": {"epochs": 2, "maxLength": 8, "batchSize": 16},
            "searchSpaces": [{"learningRate": {"min": 1e-4, "max": 1e-2, "scale": "Log"}}],
            "search": {"algorithm": "Random", "seed": 7},
            "budget": {"maxTrials": 2},
            **changes,
        }
    )
