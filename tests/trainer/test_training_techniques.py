"""Techniques of fine-tuning on a real encoder: what each changes in the weights, the batches or the metrics."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune_api.cluster import Compute
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.layers import Layers
from finetune_trainer.training.perturbation import mixout, steepest
from finetune_trainer.training.pooling import load_classifier
from tests.needs import ToolMissing, not_run
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, outcome, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="loss", additional_metrics=["accuracy"])
CONFIG = Hyperparameters(epochs=2, batch_size=8, max_length=16, learning_rate=3e-4)
PLAIN = CONFIG.model_copy(
    update={
        "optimizer": "SGD",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr_schedule": "Constant",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1e6,
        "learning_rate": 0.05,
        "epochs": 1,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
        "batch_size": 16,
    }
)
"""One step of plain gradient descent: a weight changes by its gradient times its rate, and by nothing else."""

Start = Callable[..., TrialRun]


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    """16 rows for each part, of 8 classes."""
    return small(prepare(make_spec(), Path("/")), 16, 16)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


@pytest.fixture(scope="module")
def start(data: PreparedData, pretrained: Pretrained) -> Start:
    def start(
        base: Hyperparameters = CONFIG,
        data: PreparedData = data,
        compute: Compute | None = None,
        objective: Objective = OBJECTIVE,
        **changes: Any,
    ) -> TrialRun:
        config = base.model_copy(update=changes)
        return TrialRun(pretrained, data, config, 5, objective, compute=compute)

    return start


def copied(run: TrialRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in weights(run).items()}


def steps(run: TrialRun) -> dict[str, torch.Tensor]:
    """How far one epoch has moved each tensor."""
    before = copied(run)
    run.train_to(run.position + 1)
    return {name: tensor - before[name] for name, tensor in weights(run).items()}


def moved(run: TrialRun) -> set[str]:
    """The names of the tensors that one epoch has changed."""
    return {name for name, step in steps(run).items() if step.abs().max() > 0}


def depths(run: TrialRun, names: set[str]) -> set[int]:
    layers = Layers.of(run.model)
    return {layers.depth(name) for name in names}


EMBEDDINGS, POOLER, HEAD = 0, 7, 8
"""Depths in a MiniLM of six layers."""


def test_layer_decay_slows_each_layer_more_than_the_one_above(start: Start) -> None:
    whole, slowed = steps(start(PLAIN)), steps(start(PLAIN, layer_decay=0.5))
    layers = Layers.of(start(PLAIN).model)
    for name, step in whole.items():
        if step.abs().max() == 0:
            continue  # no gradient: rows of words that no text has
        share = 0.5 ** max(0, POOLER - layers.depth(name))
        torch.testing.assert_close(slowed[name], step * share, rtol=2e-2, atol=1e-7)


def test_l1_penalty_pulls_matrices_towards_zero_and_leaves_vectors(start: Start) -> None:
    start_weights = copied(start(PLAIN))
    without, with_penalty = steps(start(PLAIN)), steps(start(PLAIN, l1_penalty=0.01))
    for name, step in without.items():
        pull = with_penalty[name] - step
        expected = torch.zeros_like(pull)
        if step.ndim > 1:
            expected = -0.05 * 0.01 * start_weights[name].sign()
        torch.testing.assert_close(pull, expected, rtol=0, atol=1e-5)


def test_label_smoothing_makes_the_model_less_sure(start: Start, data: PreparedData) -> None:
    def sureness(smoothing: float) -> float:
        run = start(epochs=6, label_smoothing=smoothing, learning_rate=1e-3)
        train(run)
        logits = torch.from_numpy(run.predict(data.train))
        return float(logits.softmax(dim=1).max(dim=1).values.mean())

    assert sureness(0.6) < sureness(0.0) - 0.1


def test_weights_are_drawn_back_to_where_they_were_pretrained(
    start: Start, pretrained: Pretrained, data: PreparedData, tmp_path: Path
) -> None:
    """By SGD at rate 0.05, one step an epoch: 0.05 * 4 of what a step has moved comes back at the next."""
    free, drawn = start(PLAIN, epochs=3), start(PLAIN, epochs=3, pretrained_pull=4.0)
    origin = copied(drawn)
    for run in (free, drawn):
        run.train_to(1)
    assert_same(weights(free), weights(drawn))  # they had not moved yet
    moved = copied(drawn)
    for run in (free, drawn):
        run.train_to(2)
    pooler = "bert.pooler.dense.weight"
    assert not torch.allclose(weights(free)[pooler], weights(drawn)[pooler])
    for name, tensor in weights(drawn).items():
        back = 0.05 * 4.0 * (moved[name] - origin[name])
        expected = weights(free)[name] - (0 if name.startswith("classifier") else 1) * back
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-6)
    drawn.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    for run in (drawn, resumed):
        run.train_to(3)
    assert_same(weights(resumed), weights(drawn))


def test_r_drop_adds_how_much_two_predictions_under_dropout_differ(start: Start) -> None:
    def first_loss(weight: float, dropout: float = 0.3) -> float:
        none = {"attention_dropout": dropout, "classifier_dropout": dropout}
        result = start(PLAIN, r_drop=weight, hidden_dropout=dropout, **none).train_to(0.5)
        assert result is not None
        return result.train_loss

    differing = first_loss(2.0) - first_loss(1.0)
    assert differing > 1e-4
    assert first_loss(5.0) - first_loss(2.0) == pytest.approx(3 * differing, rel=1e-3)
    assert first_loss(5.0, dropout=0.0) == pytest.approx(first_loss(0.0, dropout=0.0), rel=1e-5)


def test_words_are_moved_to_where_the_loss_rises_fastest(start: Start) -> None:
    def first_loss(length: float, **changes: Any) -> float:
        result = start(PLAIN, adversarial_epsilon=length, **changes).train_to(0.5)
        assert result is not None
        return result.train_loss

    plain = first_loss(0.0)
    rise = first_loss(0.01) - plain
    assert rise > 1e-5
    assert first_loss(0.02) - plain == pytest.approx(2 * rise, rel=0.1)  # a slope
    assert first_loss(3.0) > plain + 10 * rise
    both = {"lora_rank": 2, "r_drop": 1.0}
    assert first_loss(3.0, **both) > first_loss(0.0, **both) + 10 * rise


@pytest.mark.parametrize("freeze", ["Layers", "Encoder"])
def test_words_below_frozen_layers_are_not_moved(start: Start, freeze: str) -> None:
    with pytest.raises(TrialFailure, match="adversarialEpsilon must be 0 for frozen layers"):
        start(adversarial_epsilon=1.0, freeze=freeze)


def test_steepest_step_has_its_length_in_each_row() -> None:
    slope = torch.randn(3, 4, 5) * torch.tensor([1e-6, 1.0, 1e3])[:, None, None]
    step = steepest(torch.cat([slope, torch.zeros(1, 4, 5)]), 2.0)
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx([2, 2, 2, 0])
    for one, along in zip(step, slope, strict=False):
        torch.testing.assert_close(one / one.max(), along / along.max())


def test_mixout_replaces_a_share_and_keeps_the_mean() -> None:
    origin = torch.randn(200, 300)
    weight = torch.nn.Parameter(origin + torch.rand_like(origin) + 0.5)
    before = weight.detach().clone()
    with mixout({weight: origin}, 0.75):
        inside = weight.detach().clone()
        torch.autograd.backward((weight * torch.arange(300)).sum())
    assert torch.equal(weight, before)
    replaced = inside == origin
    assert replaced.float().mean() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close((inside - origin)[~replaced], 4 * (before - origin)[~replaced])
    assert weight.grad is not None
    expected = torch.where(replaced, 0.0, 4.0) * torch.arange(300)
    torch.testing.assert_close(weight.grad, expected)
    with pytest.raises(ZeroDivisionError), mixout({weight: origin}, 0.75):
        _ = 1 / 0
    assert torch.equal(weight, before)


def test_mixout_is_for_the_matrices_of_the_encoder(start: Start) -> None:
    """At first all weights are the pretrained ones, so that only the gradients show what was replaced."""
    plain, mixed = steps(start(PLAIN)), steps(start(PLAIN, mixout=0.75))
    seen = 0
    for name, step in mixed.items():
        if step.ndim == 2 and (".layer." in name or "pooler" in name):
            moves = plain[name].abs() > 1e-5  # enough to be seen beside rounding
            if moves.sum() < 500:
                continue
            seen += 1
            kept = step[moves] != 0
            assert kept.float().mean() == pytest.approx(0.25, abs=0.1), name
            ratio = (step[moves][kept] / plain[name][moves][kept]).median()
            assert ratio == pytest.approx(4, rel=0.05), name
        else:
            torch.testing.assert_close(step, plain[name], rtol=1e-3, atol=1e-6)
    assert seen > 10


def test_focal_loss_leaves_what_is_sure_alone(start: Start, data: PreparedData) -> None:
    def sureness(gamma: float) -> float:
        run = start(epochs=6, focal_gamma=gamma, learning_rate=1e-3)
        train(run)
        logits = torch.from_numpy(run.predict(data.train))
        return float(logits.softmax(dim=1).max(dim=1).values.mean())

    assert sureness(5.0) < sureness(0.0) - 0.03


@pytest.fixture(scope="module")
def lopsided(make_spec: MakeSpec) -> PreparedData:
    """Two classes, one of which has six of 48 training rows."""
    data = prepare(make_spec(), Path("/"))
    one, other = (np.flatnonzero(data.labels == label) for label in (0, 1))
    rows = {"train": (one[:42], other[:6]), "validation": (one[42:52], other[6:16])}
    parts: dict[str, Any] = {name: np.sort(np.concatenate(chosen)) for name, chosen in rows.items()}
    changed = replace(data, **parts, test=parts["validation"])
    return replace(changed, fingerprint=changed.digest())


@pytest.mark.parametrize(
    "balance",
    [
        "Weights",
        pytest.param("Oversample", marks=pytest.mark.slow),
        pytest.param("Undersample", marks=pytest.mark.slow),
    ],
)
def test_class_balance_finds_more_of_a_rare_class(
    balance: str, lopsided: PreparedData, start: Start
) -> None:
    def share_of_rare(balance: str) -> float:
        run = start(data=lopsided, epochs=2, class_balance=balance)
        train(run)
        probabilities = torch.from_numpy(run.predict(lopsided.validation)).softmax(dim=1)
        return float(probabilities[:, 1].mean())

    assert share_of_rare(balance) > share_of_rare("None") + 0.05


def test_averaging_evaluates_the_mean_of_the_weights(
    start: Start, tmp_path: Path, data: PreparedData, pretrained: Pretrained
) -> None:
    plain, averaged = start(epochs=3), start(epochs=3, averaging_start=1 / 3)
    seen = []
    for _ in range(6):  # two steps an epoch
        plain.train_to(plain.position + 0.5)
        seen.append(copied(plain))
    train(averaged)
    assert_same(weights(averaged), weights(plain))  # it trains on as if it did not average
    averaged.export(tmp_path / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        mean = torch.stack([one[name] for one in seen[2:]]).mean(dim=0)
        torch.testing.assert_close(tensor, mean, rtol=1e-4, atol=1e-6)

    paused = start(epochs=3, averaging_start=1 / 3)
    paused.train_to(1.5)
    paused.save(tmp_path / "paused")
    resumed = TrialRun.resume(tmp_path / "paused", pretrained, data, OBJECTIVE)
    train(resumed)
    assert resumed.evaluate("test") == averaged.evaluate("test")


def test_an_exponential_average_forgets_the_first_steps(start: Start, tmp_path: Path) -> None:
    plain, averaged = start(epochs=3), start(epochs=3, averaging_start=1 / 3, averaging_decay=0.6)
    seen = []
    for _ in range(6):  # two steps an epoch
        plain.train_to(plain.position + 0.5)
        seen.append(copied(plain))
    train(averaged)
    averaged.export(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        third, *later = (one[name] for one in seen[2:])
        expected = (third + later[0]) / 2
        for step in later[1:]:
            expected = 0.6 * expected + 0.4 * step
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)


def test_early_stopping_watches_its_own_metric_and_counts_only_real_gains(
    start: Start, data: PreparedData
) -> None:
    seen = replace(data, validation=data.train)  # whose loss falls in every epoch
    patience = {"early_stopping_patience": 1, "epochs": 4, "data": seen}
    by_loss = start(**patience)
    by_accuracy = start(
        objective=Objective(metric="loss", early_stopping_metric="accuracy"),
        learning_rate=1e-9,  # accuracy does not move
        **patience,
    )
    demanding = start(early_stopping_min_delta=100.0, **patience)
    assert len(train(by_loss)) == 4
    assert len(train(by_accuracy)) == 2
    assert len(train(demanding)) == 2


def test_reduce_on_plateau_slows_a_trial_that_stands_still_and_its_refit(
    start: Start, data: PreparedData, pretrained: Pretrained
) -> None:
    plateau = {"lr_schedule": "ReduceOnPlateau", "lr_gamma": 0.1, "epochs": 4}
    objective = Objective(metric="accuracy")
    base = PLAIN.model_copy(update={**plateau, "learning_rate": 1e-3})  # accuracy stands still

    def rates(run: TrialRun) -> list[float]:
        moves = [steps(run)["classifier.weight"].norm().item() for _ in range(4)]
        return [move / moves[0] for move in moves]

    expected = pytest.approx([1, 1, 0.1, 0.01], rel=0.2)
    assert rates(start(base, objective=objective)) == expected
    merged = data.merged()
    refit = TrialRun(pretrained, merged, base, 5, objective, history=[0.5, 0.5, 0.5, 0.5])
    assert rates(refit) == expected
    improving = TrialRun(pretrained, merged, base, 5, objective, history=[0.5, 0.6, 0.7, 0.8])
    assert rates(improving) == pytest.approx([1, 1, 1, 1], rel=0.2)


def test_a_schedule_that_becomes_reduce_on_plateau_begins_at_its_whole_rate(start: Start) -> None:
    """PBT may change it under way, when the trial has stood still for long."""
    base = PLAIN.model_copy(update={"learning_rate": 1e-3, "epochs": 6, "lr_gamma": 0.1})
    run = start(base, objective=Objective(metric="accuracy"))  # which stands still
    moves = [steps(run)["classifier.weight"].norm().item() for _ in range(3)]
    run.reconfigure(base.model_copy(update={"lr_schedule": "ReduceOnPlateau"}))
    moves += [steps(run)["classifier.weight"].norm().item() for _ in range(3)]
    shares = [move / moves[0] for move in moves]
    assert shares == pytest.approx([1, 1, 1, 1, 1, 0.1], rel=0.25)


@pytest.mark.parametrize(
    ("freeze", "lowest"),
    [("None", EMBEDDINGS), ("Embeddings", 1), ("Layers", 3), ("Encoder", HEAD)],
)
def test_freezing_leaves_what_lies_below_as_pretrained(
    freeze: str, lowest: int, start: Start
) -> None:
    run = start(PLAIN, freeze=freeze, frozen_layers=2)
    assert depths(run, moved(run)) == set(range(lowest, HEAD + 1))


def test_gradual_unfreezing_opens_one_layer_more_each_time(start: Start) -> None:
    run = start(PLAIN, unfreeze_epochs=1.0, freeze="Layers", frozen_layers=4, epochs=5)
    opened = [depths(run, moved(run)) for _ in range(5)]
    assert opened[0] == {HEAD}
    assert opened[1] == {6, POOLER, HEAD}
    assert opened[2] == opened[3] == opened[4] == {5, 6, POOLER, HEAD}


def test_what_is_frozen_has_no_dropout(start: Start, data: PreparedData) -> None:
    dropouts = {"hidden_dropout": 0.5, "attention_dropout": 0.5, "classifier_dropout": 0.0}
    run = start(PLAIN, freeze="Encoder", **dropouts)
    calm = start(PLAIN, freeze="Encoder")
    for name, step in steps(run).items():
        torch.testing.assert_close(step, steps_of(calm)[name], rtol=1e-4, atol=1e-7)


_STEPS: dict[int, dict[str, torch.Tensor]] = {}


def steps_of(run: TrialRun) -> dict[str, torch.Tensor]:
    """As `steps`, trained once for each run."""
    if id(run) not in _STEPS:
        _STEPS[id(run)] = steps(run)
    return _STEPS[id(run)]


def test_kept_layers_are_the_lowest_of_the_pretrained(
    start: Start, pretrained: Pretrained, tmp_path: Path
) -> None:
    run = start(encoder_layers=2)
    found = weights(run)
    assert depths(run, set(found)) == {0, 1, 2, 3, 4}
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(found[name], pretrained.weights[name])
    run.export(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert len(model.bert.encoder.layer) == 2
    assert len(weights(start(encoder_layers=99))) == len(weights(start()))


def test_layers_that_begin_anew_are_the_highest_and_drawn_by_the_seed(
    pretrained: Pretrained,
) -> None:
    config = Hyperparameters(reinit_layers=2)

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = pretrained.fresh_model(config, seed).model.state_dict()
        return found

    fresh = pretrained.fresh_model(config, 5)
    layers, found, other = fresh.layers, fresh.model.state_dict(), drawn(6)
    anew = {
        name
        for name in pretrained.weights
        if layers.depth(name) in (layers.count - 1, layers.count)
    }
    assert len(anew) == 2 * 16  # weights and biases of six linear layers and two normalisations
    for name, tensor in pretrained.weights.items():
        assert torch.equal(found[name], tensor) != (name in anew), name
        if name in anew and tensor.ndim > 1:
            expected = pretrained.config.initializer_range
            assert found[name].std().item() == pytest.approx(expected, rel=0.05)
            assert not torch.equal(found[name], other[name])
    assert all(torch.equal(found[name], tensor) for name, tensor in drawn(5).items())


@pytest.mark.parametrize("freeze", ["Encoder", "Layers"])
def test_layers_that_begin_anew_must_not_be_frozen(freeze: str, start: Start) -> None:
    with pytest.raises(TrialFailure, match="reinitLayers must leave out frozen layers"):
        start(reinit_layers=2, freeze=freeze, frozen_layers=5)


@pytest.mark.parametrize("pooling", ["Cls", "Mean"])
def test_pooled_winner_is_exported_and_loaded_as_it_was(
    pooling: str, start: Start, data: PreparedData, tmp_path: Path
) -> None:
    run = start(pooling=pooling, head_layers=1, head_width=24, epochs=1)
    train(run)
    run.export(tmp_path)
    model = load_classifier(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [tokenizer.decode(data.columns[0][row]) for row in data.test]
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, run.predict(data.test), atol=1e-5)
    head: Any = model.head
    assert tuple(head[1].weight.shape) == (24, 384)


def test_mean_pooling_takes_every_token_but_no_padding(start: Start, data: PreparedData) -> None:
    run = start(pooling="Mean")
    ids = torch.tensor([[101, 2023, 2003, 102, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    model = run.model
    with torch.inference_mode():
        hidden = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = model.head(hidden[:, :4].mean(dim=1))
        padded = model(input_ids=ids, attention_mask=mask).logits
        bare = model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
    torch.testing.assert_close(padded, expected)
    torch.testing.assert_close(padded, bare, rtol=1e-4, atol=1e-5)


def test_lora_trains_small_updates_that_the_exported_model_has_merged(
    start: Start, data: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    run = start(lora_rank=4, learning_rate=5e-3)
    before = copied(run)
    train(run)
    changed = {name for name, tensor in weights(run).items() if not tensor.equal(before[name])}
    assert changed
    assert all("lora_" in name or name.startswith("classifier") for name in changed)
    run.save(tmp_path / "checkpoint")
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir())
    assert size < 0.1 * 4 * sum(tensor.numel() for tensor in pretrained.weights.values())
    resumed = TrialRun.resume(tmp_path / "checkpoint", pretrained, data, OBJECTIVE)
    np.testing.assert_array_equal(resumed.predict(data.test), run.predict(data.test))

    run.export(tmp_path / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(model.state_dict()[query], pretrained.weights[query])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [tokenizer.decode(data.columns[0][row]) for row in data.test]
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, run.predict(data.test), atol=1e-4)
    assert_same(before, copied(start(lora_rank=4)))  # merging is done to a copy


def test_bf16_learns_and_fp32_state_stays_fp32(start: Start) -> None:
    exact, rough = start(epochs=1), start(epochs=1, compute=Compute(precision="BF16"))
    first, second = train(exact)[0], train(rough)[0]
    assert second.metrics["loss"] != first.metrics["loss"]
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=0.05)
    assert {tensor.dtype for tensor in weights(rough).values()} == {torch.float32}


def test_tf32_is_fp32_on_a_cpu(start: Start) -> None:
    exact, same = start(epochs=1), start(epochs=1, compute=Compute(precision="TF32"))
    assert outcome(train(exact)) == outcome(train(same))


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(start: Start) -> None:
    def calls(run: TrialRun) -> int:
        count = 0

        def counted(*_: Any) -> None:
            nonlocal count
            count += 1

        query = run.model.bert.encoder.layer[0].attention.self.query
        query.register_forward_hook(counted)
        run.train_to(0.5)
        return count

    # With Adafactor the model is trained as it is; others see only the words that occur.
    kept = start(optimizer="Adafactor")
    computed_twice = start(optimizer="Adafactor", compute=Compute(gradient_checkpointing=True))
    assert calls(computed_twice) == calls(kept) + 1
    for name, tensor in weights(kept).items():
        torch.testing.assert_close(weights(computed_twice)[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_compiled_model_trains_as_an_eager_one(start: Start) -> None:
    """With the dropout drawn by a compiled kernel it could not be the same, so there is none."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        not_run(ToolMissing("a C++ compiler", "torch.compile needs one"))
    small_model = {"encoder_layers": 1, "epochs": 1, "learning_rate": 0.05}
    eager = start(PLAIN, **small_model)
    compiled = start(PLAIN, compute=Compute(compile=True), **small_model)
    first, second = train(eager)[0], train(compiled)[0]
    assert second.train_loss == pytest.approx(first.train_loss, rel=1e-4)
    assert second.metrics == pytest.approx(first.metrics, rel=1e-4)
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted > 0


def test_gradients_are_clipped_to_their_norm(start: Start) -> None:
    free, clipped = steps(start(PLAIN)), steps(start(PLAIN, max_grad_norm=0.01))

    def norm(moves: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float(step.norm() ** 2) for step in moves.values()))

    assert norm(free) > 0.02 * 0.05
    assert norm(clipped) == pytest.approx(0.01 * 0.05, rel=0.02)


def test_layers_are_asked_for_only_of_models_that_have_them(data: PreparedData) -> None:
    config = transformers.AlbertConfig(
        vocab_size=40000, embedding_size=8, hidden_size=16, num_attention_heads=2,
        intermediate_size=16, num_hidden_layers=2, num_labels=8,
    )  # fmt: skip
    model = transformers.AlbertForSequenceClassification(config)
    layers = Layers.of(model)
    asked = Hyperparameters(freeze="Layers", layer_decay=0.9)
    with pytest.raises(TrialFailure, match=r"a list of layers to use freeze: Layers, layerDecay"):
        layers.frozen_below(asked, 0)
    assert layers.frozen_below(Hyperparameters(freeze="Encoder"), 0) == layers.head
