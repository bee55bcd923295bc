"""Pretrained weights: read once, never shared between trials, with the trial's dropouts in every architecture."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.data import ModelSource
from finetune_trainer.errors import ModelError, TrialFailure
from finetune_trainer.training import Pretrained
from finetune_trainer.training.dropouts import set_dropouts
from finetune_trainer.training.layers import Layers, trainable

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "deberta": {},
    "deberta-v2": {},
    "mpnet": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
}
NO_DROPOUT = Hyperparameters(hidden_dropout=0, attention_dropout=0, classifier_dropout=0)


def tiny(architecture: str, dropouts: Hyperparameters) -> Any:
    config = transformers.AutoConfig.for_model(architecture, **TINY, **ARCHITECTURES[architecture])
    config.num_labels = 3
    set_dropouts(config, dropouts)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def outputs_vary(model: Any) -> bool:
    model.train()
    ids = torch.arange(3, 19).reshape(2, 8)
    mask = torch.ones_like(ids)
    first, second = (model(input_ids=ids, attention_mask=mask).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropouts_reach_every_architecture(architecture: str) -> None:
    assert not outputs_vary(tiny(architecture, NO_DROPOUT))
    names = ["hidden_dropout", "attention_dropout", "classifier_dropout"]
    if architecture == "mpnet":
        names.remove("classifier_dropout")  # its head has the dropout of the hidden layers
    for name in names:
        dropouts = NO_DROPOUT.model_copy(update={name: 0.5})
        assert outputs_vary(tiny(architecture, dropouts)), name


@pytest.fixture(scope="module")
def source(examples: Path) -> ModelSource:
    return ModelSource(str(examples / "models" / "all-MiniLM-L6-v2"))


@pytest.fixture(scope="module")
def pretrained(source: ModelSource) -> Pretrained:
    return Pretrained.load(source, "SingleLabel", ["a", "b", "c"])


def test_trials_do_not_share_weights(pretrained: Pretrained) -> None:
    first = pretrained.fresh_model(NO_DROPOUT, 1).model
    for parameter in first.parameters():
        parameter.data.fill_(7.0)
    second = pretrained.fresh_model(NO_DROPOUT, 1).model
    for name, tensor in second.state_dict().items():
        if name in pretrained.weights:
            assert torch.equal(tensor, pretrained.weights[name])
    assert not any((parameter == 7.0).all() for parameter in second.parameters())


def test_the_seed_decides_the_head_and_nothing_outside_it(pretrained: Pretrained) -> None:
    def head(seed: int) -> Any:
        model = pretrained.fresh_model(NO_DROPOUT, seed).model
        return model.get_parameter("classifier.weight")

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = head(1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, head(1))
    assert not torch.equal(first, head(2))


def test_model_has_the_names_of_the_labels(pretrained: Pretrained) -> None:
    model = pretrained.fresh_model(NO_DROPOUT, 1).model
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.dtype == torch.float32


def test_loading_says_nothing(source: ModelSource, capfd: pytest.CaptureFixture[str]) -> None:
    Pretrained.load(source, "Regression", ["y"]).fresh_model(NO_DROPOUT, 1)
    assert capfd.readouterr() == ("", "")


def test_attention_is_that_of_torchs_fused_kernels(pretrained: Pretrained) -> None:
    model = pretrained.fresh_model(NO_DROPOUT, 1).model
    assert model.config._attn_implementation == "sdpa"
    pooled = pretrained.fresh_model(Hyperparameters(pooling="Mean"), 1).model
    assert pooled.config._attn_implementation == "sdpa"


def loaded(model: Any, folder: Path) -> Pretrained:
    model.save_pretrained(folder)
    return Pretrained.load(ModelSource(str(folder)), "SingleLabel", ["a", "b", "c"])


def masked(architecture: str, folder: Path, **changes: Any) -> Pretrained:
    """A tiny model of that architecture, as it was pretrained: with a head for masked words."""
    config = {**TINY, **ARCHITECTURES[architecture], **changes}
    found = transformers.AutoConfig.for_model(architecture, **config)
    return loaded(transformers.AutoModelForMaskedLM.from_config(found), folder)


@pytest.mark.parametrize(
    ("changes", "frozen_below"),
    [({"lora_rank": 2}, 0), ({"freeze": "Encoder"}, 4), ({"freeze": "Encoder", "lora_rank": 2}, 4)],
)
def test_a_pooler_that_is_not_pretrained_is_trained_as_the_head_is(
    changes: dict[str, Any], frozen_below: int, tmp_path: Path
) -> None:
    config = NO_DROPOUT.model_copy(update=changes)
    pretrained = masked("bert", tmp_path / "masked")
    assert "bert.pooler.dense.weight" in pretrained.new
    fresh = pretrained.fresh_model(config, 1)
    assert fresh.layers.always_frozen_below(config) == frozen_below
    assert fresh.layers.rate("bert.pooler.dense.weight", Hyperparameters(layer_decay=0.5)) == 1
    head = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    head |= {"classifier.weight", "classifier.bias"}
    trained = set(trainable(fresh.model, fresh.layers, frozen_below, config.lora_rank > 0))
    assert head == {name for name in trained if "lora_" not in name}

    whole = loaded(tiny("bert", NO_DROPOUT).bert, tmp_path / "whole").fresh_model(config, 1)
    trained = set(trainable(whole.model, whole.layers, frozen_below, config.lora_rank > 0))
    assert not {name for name in trained if "pooler" in name}  # it is pretrained


@pytest.mark.parametrize(
    ("architecture", "changes", "depths"),
    [
        ("mpnet", {}, {"mpnet.encoder.relative_attention_bias.weight": 0}),
        (
            "deberta-v2",
            {"relative_attention": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
            {
                "deberta.encoder.rel_embeddings.weight": 0,
                "deberta.encoder.LayerNorm.weight": 0,
                "deberta.encoder.conv.conv.weight": 1,
                "deberta.encoder.conv.LayerNorm.bias": 1,
            },
        ),
        ("modernbert", {}, {"model.final_norm.weight": 3}),
    ],
)
def test_what_layers_share_is_frozen_with_those_that_use_it(
    architecture: str, changes: dict[str, Any], depths: dict[str, int], tmp_path: Path
) -> None:
    model = masked(architecture, tmp_path, **changes).fresh_model(NO_DROPOUT, 1)
    names = {name for name, _ in model.model.named_parameters()}
    assert {name: model.layers.depth(name) for name in names & depths.keys()} == depths
    lower = Hyperparameters(freeze="Layers", frozen_layers=1)
    below = model.layers.always_frozen_below(lower)
    trained = trainable(model.model, model.layers, below, has_lora=False).keys()
    assert trained & depths.keys() == {name for name, depth in depths.items() if depth > 1}
    everything = trainable(model.model, model.layers, 0, has_lora=False).keys()
    assert everything == names


def test_low_rank_updates_are_asked_for_only_of_models_that_have_layers_for_them(
    tmp_path: Path,
) -> None:
    pretrained = masked("albert", tmp_path)
    with pytest.raises(
        TrialFailure, match=r"to use loraRank \(got a model of type albert"
    ) as error:
        pretrained.fresh_model(Hyperparameters(lora_rank=2), 1)
    assert error.value.failure_class == "UserError"
    assert error.value.message.startswith("spec.model.name must be an encoder with linear layers")
    assert Layers.of(pretrained.fresh_model(NO_DROPOUT, 1).model).count == 0


def test_only_safetensors_are_read(source: ModelSource, tmp_path: Path) -> None:
    shutil.copy(Path(source.name) / "config.json", tmp_path)
    torch.save(
        {"embeddings.word_embeddings.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(ModelError, match="whose safetensors weights can be loaded") as error:
        Pretrained.load(ModelSource(str(tmp_path)), "SingleLabel", ["a", "b"])
    assert error.value.field == "spec.model.name"


def test_weights_of_another_architecture_are_refused(source: ModelSource, tmp_path: Path) -> None:
    transformers.DistilBertConfig(dim=16, hidden_dim=16, n_heads=2).save_pretrained(tmp_path)
    shutil.copy(Path(source.name) / "model.safetensors", tmp_path)
    with pytest.raises(ModelError, match="encoder tensors are missing"):
        Pretrained.load(ModelSource(str(tmp_path)), "SingleLabel", ["a", "b"])
