"""The pretrained model as a hyperparameter: each trial reads the rows with its own model's tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import transformers

from finetune_trainer.data import prepare
from finetune_trainer.errors import ModelError
from finetune_trainer.records import events as ev
from tests.trainer.conftest import MakeSpec
from tests.trainer.one_slot import run_study
from tests.trainer.small_trials import small
from tests.trainer.speller import VOCABULARY, write_speller


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speller(tmp_path_factory.mktemp("models") / "speller")


def test_each_model_reads_the_rows_with_its_own_tokenizer(
    make_spec: MakeSpec, speller: Path
) -> None:
    name = str(speller)
    data = prepare(make_spec(searchSpaces=[{"pretrainedModel": {"values": [name]}}]), Path("/"))
    other = data.read_by(name)
    assert data.read_by("") is data
    assert other.model.name == name
    assert other.columns[0].ids.max() < len(VOCABULARY) < data.columns[0].ids.max()
    assert other.columns[0].lengths.sum() > 2 * data.columns[0].lengths.sum()
    assert other.max_tokens == 512
    np.testing.assert_array_equal(other.labels, data.labels)
    assert other.fingerprint != data.fingerprint
    assert other.fold(0, 3, True, 0).model.name == name


def test_a_study_tries_each_pretrained_model_on_its_own_tokens(
    make_spec: MakeSpec, examples: Path, speller: Path, tmp_path: Path
) -> None:
    names = [str(examples / "models" / "all-MiniLM-L6-v2"), str(speller)]
    spec = make_spec(
        searchSpaces=[{"pretrainedModel": {"values": names}}],
        hyperparameters={"epochs": 1, "maxLength": 16, "learningRate": 1e-3},
    )
    data = small(prepare(spec, Path("/")), 24, 16)
    events = run_study(spec, data, tmp_path)
    assert {e.params["pretrainedModel"] for e in events if isinstance(e, ev.Proposed)} == set(names)
    done = [e for e in events if isinstance(e, ev.EpochDone)]
    assert len({e.metrics["loss"] for e in done}) == 2
    values = {e.trial: e.value for e in done}
    refitted = next(e for e in events if isinstance(e, ev.RefitDone))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    winner = names[max(values, key=lambda trial: values[trial])]
    assert model.config.num_hidden_layers == (6 if winner == names[0] else 1)
    assert refitted.test_metrics


def test_a_model_that_cannot_be_loaded_is_named(make_spec: MakeSpec) -> None:
    spec = make_spec(searchSpaces=[{"pretrainedModel": {"values": ["models/none"]}}])
    with pytest.raises(ModelError, match="pretrainedModel must be a folder or hub id") as error:
        prepare(spec, Path("/"))
    assert error.value.field == "spec.searchSpaces"
