"""A folder that is only half a model is refused, at the field that names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from huggingface_hub import constants

from finetune_api.dataset import PretrainedModel
from finetune_trainer.data import ModelSource, prepare
from finetune_trainer.data.model_store import fetched
from finetune_trainer.errors import ModelError, StorageUnavailable
from finetune_trainer.storage.folder import Storage
from tests.trainer.conftest import MakeSpec
from tests.trainer.object_store import CREDENTIALS, object_store

BARE = ("config.json", "model.safetensors")

Copy = Callable[..., ModelSource]


@pytest.fixture
def copy(examples: Path, tmp_path: Path) -> Copy:
    """Copies the files of MiniLM that are named, or all; `config` changes its configuration."""

    def copy(*names: str, **config: object) -> ModelSource:
        folder = tmp_path / "model"
        folder.mkdir()
        for path in (examples / "models" / "all-MiniLM-L6-v2").iterdir():
            if path.is_file() and (not names or path.name in names):
                shutil.copy(path, folder)
        changed = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(changed))
        return ModelSource(str(folder))

    return copy


def test_a_model_comes_from_an_object_store_once(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "huggingface"))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        storage = Storage.open(store.uri)
        storage.upload(Path(copy().name), "models/minilm")
        uri = store.told("models/minilm/")
        source = ModelSource.find(PretrainedModel(name=uri), tmp_path)
        assert source.tokenizer().vocab_size == 30522
        model, _ = source.weights(source.config(num_labels=3))
        assert model.config.num_hidden_layers == 6
        store.requests.clear()
        fetched.cache_clear()  # as in another process
        source.config()
        assert dict(store.requests) == {"LIST": 1}
        storage.write("models/minilm/config.json", b"{}")
        fetched.cache_clear()
        with pytest.raises(ModelError, match=r"got s3://bucket/studies/one/models/minilm/: "):
            source.config()
        nothing = ModelSource.find(PretrainedModel(name=uri.replace("minilm", "none")), tmp_path)
        with pytest.raises(ModelError, match=r"^spec\.model\.name: .*models/none/"):
            nothing.config()
    with pytest.raises(StorageUnavailable, match=r"models/other/: .*NETWORK_CONNECTION"):
        ModelSource(uri.replace("minilm", "other")).config()


def test_a_folder_without_a_vocabulary_is_refused(copy: Copy, make_spec: MakeSpec) -> None:
    source = copy(*BARE)
    named = r"spec\.model\.name: .* must be in vocab\.txt or tokenizer\.json but is not there"
    with pytest.raises(ModelError, match=named):
        source.tokenizer()
    with pytest.raises(ModelError, match=named):
        prepare(make_spec(model={"name": source.name}), Path("/"))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "deberta-v2", "mpnet"])
def test_no_architecture_passes_without_a_vocabulary(kind: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^spec\.model\.name: .*tokenizer can be loaded"):
        ModelSource(str(tmp_path)).tokenizer()


def test_a_tokenizer_that_pads_on_the_left_is_refused(copy: Copy) -> None:
    source = copy()
    assert source.tokenizer().padding_side == "right"
    path = Path(source.name) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    with pytest.raises(ModelError, match=r"pads on the right .*padding_side is left") as error:
        source.tokenizer()
    assert error.value.field == "spec.model.name"


def test_weights_of_fewer_layers_than_the_configuration_has_are_refused(copy: Copy) -> None:
    source = copy(*BARE, num_hidden_layers=7)
    with pytest.raises(ModelError, match="16 of 119 encoder tensors are missing") as error:
        source.weights(source.config())
    assert error.value.field == "spec.model.name"
    assert error.value.message.count("bert.encoder.layer.6.") == 3  # of those that are missing
    fewer = json.loads((Path(source.name) / "config.json").read_text()) | {"num_hidden_layers": 2}
    (Path(source.name) / "config.json").write_text(json.dumps(fewer))
    model, _ = source.weights(source.config())
    assert len(model.bert.encoder.layer) == 2


def test_weights_of_another_shape_are_refused(copy: Copy) -> None:
    source = copy(*BARE, vocab_size=30_600)
    with pytest.raises(ModelError, match=r"1 of 103 .* another shape, such as bert\.embeddings"):
        source.weights(source.config())


def test_a_pooler_may_be_new(copy: Copy, tmp_path: Path) -> None:
    source = copy()
    masked = transformers.AutoModelForMaskedLM.from_pretrained(source.name)
    masked.save_pretrained(tmp_path / "masked")
    without = ModelSource(str(tmp_path / "masked"))
    _, info = without.weights(without.config())
    assert "bert.pooler.dense.weight" in info["missing_keys"]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"hyperparameters": {"pretrainedModel": "models/none"}},
            "spec.hyperparameters.pretrainedModel",
            "must be a folder or hub id",
        ),
        (
            {"searchSpaces": [{"pretrainedModel": {"values": ["models/none"]}}]},
            "spec.searchSpaces",
            "pretrainedModel must be a folder or hub id",
        ),
    ],
)
def test_another_pretrained_model_is_refused_where_it_is_named(
    changes: dict[str, object], field: str, message: str, make_spec: MakeSpec
) -> None:
    with pytest.raises(ModelError) as error:
        prepare(make_spec(**changes), Path("/"))
    assert error.value.field == field
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny/config.json", r"\(got tiny/config\.json, a file\); name its folder tiny$"),
        ("tiny/none", r"\(got tiny/none; no such folder: /\S+/tiny/none\)$"),
        ("./none", r"\(got \./none; no such folder: /\S+/none\)$"),
        ("../a/none", r"\(got \.\./a/none; no such folder: /\S+/a/none\)$"),
        ("/no/such/model", r"\(got /no/such/model; no such folder: /no/such/model\)$"),
    ],
)
def test_a_path_without_a_model_folder_says_what_is_there(
    name: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    start = r"^spec\.model\.name: must be a folder or hub id of a model "
    with pytest.raises(ModelError, match=start + says):
        ModelSource.find(PretrainedModel(name=name), tmp_path)


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model"])
def test_what_may_be_a_hub_id_is_asked_for_there_and_says_where_else(
    name: str, tmp_path: Path
) -> None:
    source = ModelSource.find(PretrainedModel(name=name, revision="main"), tmp_path)
    assert source == ModelSource(name, "main")
    with pytest.raises(ModelError) as error:
        source.config()
    assert f"no such folder: {tmp_path / name}, and HF_HUB_OFFLINE forbids" in error.value.message


def test_a_model_without_a_padding_token_says_where_to_set_it(
    examples: Path, make_spec: MakeSpec, tmp_path: Path
) -> None:
    tokenizer = ModelSource(str(examples / "models" / "all-MiniLM-L6-v2")).tokenizer()
    tokenizer.save_pretrained(tmp_path)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer)}
    config = transformers.AutoConfig.for_model("gpt2", pad_token_id=None, **size)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"; set pad_token_id in the model's configuration\)$"):
        prepare(make_spec(model={"name": str(tmp_path)}), Path("/"))
