"""Every family of encoders that a tiny model can be made of trains, and is handed over as its card says."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.data import ModelSource, PreparedData, prepare
from finetune_trainer.data.windows import units_of
from finetune_trainer.errors import ModelError
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.batches import Batcher
from finetune_trainer.training.pooling import CODE, PooledClassifier, is_pooled
from tests.trainer.conftest import MakeSpec

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "embedding_size": 32,
}
ONE_GROUP = dict.fromkeys(
    ["q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"], 1
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {}, "bert": {}, "big_bird": {}, "camembert": {}, "convbert": {}, "data2vec-text": {},
    "deberta": {}, "deberta-v2": {}, "distilbert": {}, "electra": {}, "ernie": {}, "esm": {},
    "eurobert": {"num_key_value_heads": 2}, "flaubert": {}, "fnet": {}, "ibert": {},
    "jina_embeddings_v3": {}, "layoutlm": {}, "longformer": {}, "luke": {"entity_vocab_size": 8},
    "markuplm": {}, "megatron-bert": {}, "mobilebert": {}, "modernbert": {}, "mpnet": {}, "mra": {},
    "nomic_bert": {}, "nystromformer": {}, "rembert": {}, "roberta": {}, "roberta-prelayernorm": {},
    "roc_bert": {}, "roformer": {}, "squeezebert": ONE_GROUP, "xlm": {}, "xlm-roberta": {},
    "xlm-roberta-xl": {}, "yoso": {},
}  # fmt: skip
QUICK = ("bert", "roberta", "modernbert", "nomic_bert", "squeezebert", "fnet", "convbert", "esm")
"""One of each kind: of positions, of pooling of its own, of names that are converted, of padding that matters."""
CUT_OTHERWISE = ("longformer", "albert")
"""With a list that has an entry for each layer, and with layers that share their weights."""

CONFIG = Hyperparameters(epochs=1, batch_size=8, max_length=64, learning_rate=1e-3)
OBJECTIVE = Objective(metric="accuracy", additional_metrics=["loss"])


def tiny(family: str, folder: Path, examples: Path, **changes: Any) -> Path:
    """A small model of that family with random weights, and MiniLM's tokenizer."""
    tokenizer = ModelSource(str(examples / "models" / "all-MiniLM-L6-v2")).tokenizer()
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 102, "cls_token_id": 101}
    fields = {**TINY, **numbers, "vocab_size": len(tokenizer), "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(
        family, **{**fields, **FAMILIES.get(family, {}), **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepared(model: Path, make_spec: MakeSpec, folder: Path, pair: bool = False) -> PreparedData:
    """Rows of 3 to 40 words."""
    words = [
        "one",
        "red",
        "small",
        "old",
        "cat",
        "sleeps",
        "in",
        "a",
        "warm",
        "house",
        "by",
        "the",
        "sea",
        "and",
        "dreams",
        "of",
        "fish",
    ]
    lines = ["text,second,label"]
    for number in range(40):
        text = " ".join(words[(number + at) % len(words)] for at in range(3 + number))
        lines.append(f"{text} {number},row {number},{'cat' if number % 2 else 'dog'}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    dataset = {
        "files": {"train": str(folder / "rows.csv")},
        "labelColumn": "label",
        "textColumns": ["text", "second"] if pair else ["text"],
        "allowLabelInText": True,
        "split": {"validation": 0.2, "test": 0.2},
    }
    hyperparameters = {"maxLength": CONFIG.max_length}
    spec = make_spec(model={"name": str(model)}, dataset=dataset, hyperparameters=hyperparameters)
    return prepare(spec, Path("/"))


def answers(model: Any, data: PreparedData, each: bool) -> Any:
    """Its logits for the test rows, all in one batch, or one by one."""
    batch = Batcher(data, CONFIG.max_length, torch.device("cpu"))
    parts = data.test[:, None] if each else [data.test]
    with torch.inference_mode():
        return torch.cat([model(**batch(rows).inputs).logits for rows in parts]).numpy()


def tagged(model: Path, make_spec: MakeSpec, folder: Path) -> PreparedData:
    """Rows of 3 to 40 words, in which a word is an animal if the one before it is old."""
    words = ["one", "old", "cat", "sleeps", "in", "a", "warm", "house", "by", "an", "old", "dog"]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(40):
            row = [words[(number + at) % len(words)] for at in range(3 + number)]
            tags = ["B-ANIMAL" if at and row[at - 1] == "old" else "O" for at, _ in enumerate(row)]
            file.write(json.dumps({"words": row, "tags": tags}) + "\n")
    dataset = {
        "files": {"train": str(folder / "rows.jsonl")},
        **{"textColumns": None, "labelColumn": None, "tokensColumn": "words", "tagsColumn": "tags"},
        "split": {"validation": 0.2, "test": 0.2},
    }
    spec = make_spec(
        task="TokenClassification",
        model={"name": str(model)},
        dataset=dataset,
        objective={"metric": "f1_micro"},
        hyperparameters={"maxLength": 16},
    )
    return prepare(spec, Path("/"))


def test_a_family_that_transformers_has_no_tagger_of_is_refused(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    source = tiny("bart", tmp_path / "pretrained", examples, d_model=32)
    with pytest.raises(ModelError, match="TokenClassification") as error:
        tagged(source, make_spec, tmp_path)
    assert error.value.field == "spec.model.name"


@pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_every_family_tags_words_as_it_is_handed_over(
    family: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    source = tiny(family, tmp_path / "pretrained", examples)
    data = tagged(source, make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = CONFIG.model_copy(update={"max_length": 16})
    objective = Objective(metric="f1_micro", additional_metrics=["accuracy"])
    run = TrialRun(pretrained, data, config, 0, objective)
    before = run.evaluate("test")
    assert run.train_to(1) is not None
    after = run.evaluate("test")
    assert after["loss"] < before["loss"]
    run.export(tmp_path / "model")
    loaded = load_exported(tmp_path / "model")
    units = units_of(data, config.max_length)
    batch = Batcher(units.data, config.max_length, torch.device("cpu"))
    found = []
    for unit in units.of(data.test)[:, None]:
        one = batch(unit)
        with torch.inference_mode():
            found += one.labelled(loaded(**one.inputs).logits).argmax(dim=1).tolist()
    assert found == run.predict(data.test).values[:, 0].tolist()


@pytest.mark.parametrize("pooling", ["Architecture", "Mean", "Cls"])
@pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_what_is_trained_is_what_is_handed_over(
    family: str, pooling: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    source = tiny(family, tmp_path / "pretrained", examples)
    data = prepared(source, make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = CONFIG.model_copy(update={"pooling": pooling})
    run = TrialRun(pretrained, data, config, 0, OBJECTIVE)
    before = run.predict(data.test)
    assert run.train_to(1) is not None
    expected = run.predict(data.test)
    assert not np.allclose(expected, before, atol=1e-4)

    run.export(tmp_path / "model")
    own = is_pooled(tmp_path / "model")
    assert own == (pooling != "Architecture" and family not in ("modernbert", "eurobert"))
    auto = transformers.AutoModelForSequenceClassification
    served, account = auto.from_pretrained(
        tmp_path / "model", trust_remote_code=own, output_loading_info=True
    )
    assert not any(account.values()), "each weight is read"
    each = data.padding_matters
    assert answers(served.eval(), data, each) == pytest.approx(expected, abs=1e-4)
    assert answers(load_exported(tmp_path / "model"), data, each) == pytest.approx(
        expected, abs=1e-4
    )
    if not each:
        assert answers(served, data, True) == pytest.approx(expected, abs=1e-4)

    again = prepared(tmp_path / "model", make_spec, tmp_path)
    encoder = Pretrained.load(again.model, again.task, again.label_names)
    trained = run.model.base_model.state_dict()
    prefix = encoder.model_class.base_model_prefix
    for name, tensor in trained.items():
        if "pooler" not in name:
            assert torch.equal(encoder.weights[f"{prefix}.{name}"], tensor), name


@pytest.mark.parametrize(
    "family",
    [
        name if name in (*QUICK, *CUT_OTHERWISE) else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_the_upper_layers_of_any_family_can_be_cut_off(
    family: str, examples: Path, tmp_path: Path
) -> None:
    source = ModelSource(str(tiny(family, tmp_path / "pretrained", examples)))
    pretrained = Pretrained.load(source, "SingleLabel", ["cat", "dog"])
    tokens = torch.tensor([[101, 2035, 2003, 2092, 102]])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    hidden = {}
    for layers in (0, 1):
        fresh = pretrained.fresh_model(Hyperparameters(encoder_layers=layers), seed=3).model
        encoder = fresh.base_model.eval()
        assert encoder.config.num_hidden_layers == (layers or 2)
        with torch.inference_mode():
            hidden[layers] = encoder(**inputs)[0]
        kept = {
            name: tensor for name, tensor in fresh.state_dict().items() if "contact" not in name
        }
        for name, tensor in kept.items():
            if name in pretrained.weights:
                assert torch.equal(tensor, pretrained.weights[name]), name
    assert not torch.allclose(hidden[0], hidden[1], atol=1e-4)
    fresh.save_pretrained(tmp_path / "cut")
    again = transformers.AutoModel.from_pretrained(tmp_path / "cut").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**inputs)[0], hidden[1])


@pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_the_words_of_any_family_can_be_moved(
    family: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    data = prepared(tiny(family, tmp_path / "pretrained", examples), make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    none = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
    losses = []
    for length in (0.0, 3.0):
        changes = {**none, "adversarial_epsilon": length, "batch_size": 64}
        result = TrialRun(pretrained, data, CONFIG.model_copy(update=changes), 0, OBJECTIVE)
        trained = result.train_to(1)
        assert trained is not None
        losses.append(trained.train_loss)
    assert losses[1] > losses[0] + 1e-5


def test_padding_is_noticed_where_it_matters(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    found = {}
    for family in ("bert", "fnet", "convbert", "nystromformer"):
        model = tiny(family, tmp_path / family, examples)
        found[family] = prepared(model, make_spec, tmp_path).padding_matters
    assert found == {"bert": False, "fnet": True, "convbert": True, "nystromformer": True}


def test_a_row_has_one_prediction_whatever_rows_are_beside_it(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    model = tiny("convbert", tmp_path / "convbert", examples)
    data = prepared(model, make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)

    def run(rows: PreparedData, **changes: Any) -> TrialRun:
        return TrialRun(pretrained, rows, CONFIG.model_copy(update=changes), 0, OBJECTIVE)

    mean = {"pooling": "Mean"}
    together = run(data, **mean).predict(data.test)
    one_by_one = np.concatenate([run(data, **mean).predict(row) for row in data.test[:, None]])
    assert together == pytest.approx(one_by_one, abs=1e-6)
    careless = run(replace(data, padding_matters=False), **mean).predict(data.test)
    assert not np.allclose(careless, together, atol=1e-5)
    changes: dict[str, Any] = {"freeze": "Encoder", **mean}
    frozen, whole = run(data, **changes), run(data, augmentation="None", **changes)
    assert frozen.predict(data.test[:1]) == pytest.approx(whole.predict(data.test)[:1], abs=1e-5)


_REFUSED = """
import sys, transformers
for load in (
    transformers.AutoModelForSequenceClassification.from_pretrained,
    lambda folder, **options: transformers.pipeline("text-classification", model=folder, **options),
):
    try:
        load(sys.argv[1], trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit("it was loaded")
    load(sys.argv[1], trust_remote_code=True)
told = transformers.pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
print(told("a cat")[0]["label"])
"""


def test_a_head_of_ours_is_loaded_with_trust_and_refused_without(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    """By whoever has transformers and not this project."""
    data = prepared(tiny("bert", tmp_path / "bert", examples), make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = CONFIG.model_copy(update={"pooling": "Mean", "head_layers": 1, "head_width": 24})
    TrialRun(pretrained, data, config, 0, OBJECTIVE).export(tmp_path / "model")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _REFUSED, str(tmp_path / "model")]
    told = subprocess.run(
        command, env={**os.environ, **home}, check=False, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-1] in ("cat", "dog")
    # Nobody who loads it by this project runs what is in the folder.
    (tmp_path / "model" / CODE).write_text("raise RuntimeError('it was run')\n")
    assert isinstance(load_exported(tmp_path / "model"), torch.nn.Module)
    assert prepared(tmp_path / "model", make_spec, tmp_path).model.name == str(tmp_path / "model")


def test_a_head_that_an_older_version_wrote_is_loaded(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    import json

    from safetensors.torch import save_file

    data = prepared(tiny("bert", tmp_path / "bert", examples), make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    run = TrialRun(pretrained, data, CONFIG.model_copy(update={"pooling": "Cls"}), 0, OBJECTIVE)
    model, folder = run.model, tmp_path / "older"
    assert isinstance(model, PooledClassifier)
    model.encoder.save_pretrained(folder)
    save_file(model.head.state_dict(), folder / "head.safetensors")
    shape = {"pooling": "Cls", "widths": [2], "dropout": 0.1}
    (folder / "head.json").write_text(json.dumps(shape))
    found = answers(load_exported(folder), data, False)
    assert found == pytest.approx(run.predict(data.test), abs=1e-5)


# What a model cannot read is said before anything trains.


def test_a_head_that_was_trained_for_something_else_is_drawn_anew(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    source = tiny("bert", tmp_path / "bert", examples)
    config = transformers.AutoConfig.from_pretrained(source, num_labels=2)
    other = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.constant_(other.classifier.bias, 3.0)
    other.save_pretrained(source)
    data = prepared(source, make_spec, tmp_path)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    heads = [
        TrialRun(pretrained, data, CONFIG, seed, OBJECTIVE).model.classifier for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert all(head.bias.abs().max() < 1 for head in heads)


@pytest.mark.parametrize(
    ("family", "changes", "pair", "says"),
    [
        ("bert", {"vocab_size": 2000}, False, "its vocabulary ends with 1999: were tokens added"),
        ("bert", {"type_vocab_size": 1}, True, "as segments 0 to 1, but it has only 1"),
        ("gpt2", {"pad_token_id": None}, False, "no padding token is defined"),
        ("bert", {"max_position_embeddings": 12}, False, ""),
        ("esm", {}, False, ""),
        ("markuplm", {}, False, ""),
    ],
)
def test_rows_that_a_model_cannot_read_are_no_surprise(
    family: str,
    changes: dict[str, Any],
    pair: bool,
    says: str,
    make_spec: MakeSpec,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either they are cut to what it can read, or it is refused with the reason."""
    monkeypatch.setitem(FAMILIES, "gpt2", {})
    model = tiny(family, tmp_path / "model", examples, **changes)
    if says:
        with pytest.raises(ModelError, match="must be a model that can read the rows") as error:
            prepared(model, make_spec, tmp_path, pair)
        assert error.value.field == "spec.model.name"
        assert says in error.value.message
        return
    data = prepared(model, make_spec, tmp_path, pair)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    assert TrialRun(pretrained, data, CONFIG, 0, OBJECTIVE).train_to(1) is not None
