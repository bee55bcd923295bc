"""Trials with a real encoder on real text: they learn, stop, go on bit for bit, and fail as they should."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_api.tasks import Task
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import EpochResult, Pretrained, TrialRun, baseline_metrics
from finetune_trainer.training.batches import Batcher, training_steps
from finetune_trainer.training.head import EXTRA_ROWS, output_layer, start_at_priors
from finetune_trainer.training.optimizers import begin_momentum
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, outcome, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = get_args(Hyperparameters.model_fields["optimizer"].annotation)

OBJECTIVE = Objective(metric="f1_macro", additional_metrics=["accuracy"])
CONFIG = Hyperparameters(epochs=2, batch_size=4, max_length=16, learning_rate=3e-4)


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec, shallow: Path) -> PreparedData:
    """16 rows to train on, 16 for validation and for test, of 8 classes; read-only, as Ray hands them out."""
    data = small(prepare(make_spec(model={"name": str(shallow)}), Path("/")), 16, 16)
    for array in (data.labels, data.train, data.columns[0].ids, data.columns[0].offsets):
        array.flags.writeable = False
    return data


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


@pytest.fixture(scope="module")
def start(data: PreparedData, pretrained: Pretrained) -> Callable[..., TrialRun]:
    def start(
        config: Hyperparameters = CONFIG, seed: int = 5, data: PreparedData = data
    ) -> TrialRun:
        return TrialRun(pretrained, data, config, seed, OBJECTIVE)

    return start


class PauseAt:
    """Says yes at the given call."""

    def __init__(self, call: int) -> None:
        self.calls_left = call

    def __call__(self) -> bool:
        self.calls_left -= 1
        return self.calls_left < 0


@pytest.fixture(scope="module")
def unbroken(start: Callable[..., TrialRun]) -> tuple[TrialRun, list[EpochResult]]:
    """A trial that was never interrupted, and what its epochs showed."""
    run = start()
    return run, train(run)


def test_a_trial_learns(make_spec: MakeSpec) -> None:
    data = small(prepare(make_spec(), Path("/")), 96, 48)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = Hyperparameters(epochs=3, batch_size=8, max_length=16, learning_rate=3e-4)
    run = TrialRun(pretrained, data, config, 5, OBJECTIVE)
    results = train(run)
    assert [result.epoch for result in results] == [1, 2, 3]
    assert results[2].train_loss < results[1].train_loss < results[0].train_loss
    tested, constant = run.evaluate("test"), baseline_metrics(data, run.metric_names)
    assert tuple(tested) == tuple(constant) == ("f1_macro", "accuracy", "loss")
    assert tested["accuracy"] > constant["accuracy"] + 0.15
    assert tested["loss"] < constant["loss"]


TASKS: dict[Task, tuple[dict[str, Any], dict[str, Any], Objective]] = {
    "MultiLabel": (
        {"files": {"train": "data/parameters.jsonl"}, "labelColumn": "parameters"},
        {"metric": "f1_micro"},
        Objective(metric="loss", additional_metrics=["f1_micro", "jaccard"]),
    ),
    "Regression": (
        {"files": {"train": "data/arity.csv"}, "labelColumn": "arity"},
        {"metric": "rmse"},
        Objective(metric="rmse", additional_metrics=["mae", "r2"]),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_learn_too(task: Task, make_spec: MakeSpec, examples: Path) -> None:
    dataset, asked, objective = TASKS[task]
    data = small(prepare(make_spec(task=task, dataset=dataset, objective=asked), examples), 32, 16)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = Hyperparameters(epochs=3, batch_size=8, max_length=16, learning_rate=2e-4)
    results = train(TrialRun(pretrained, data, config, 5, objective))
    assert results[-1].train_loss < results[0].train_loss
    assert set(results[-1].metrics) == {objective.metric, *objective.additional_metrics, "loss"}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "accumulation"),
    [
        ("AdamW", "Linear", 1),
        ("SGD", "Cosine", 1),
        ("NesterovSGD", "Constant", 1),
        ("RMSprop", "Constant", 1),
        ("Adam", "Linear", 1),
        ("AdamW", "Cosine", 2),
    ],
)
def test_training_is_that_of_a_plain_loop(
    optimizer: Any,
    schedule: Any,
    accumulation: int,
    data: PreparedData,
    start: Callable[..., TrialRun],
    pretrained: Pretrained,
) -> None:
    """The same weights as torch's optimizers, transformers' schedules and its model's own loss give."""
    config = Hyperparameters(
        epochs=1, batch_size=4, gradient_accumulation=accumulation, max_length=16, optimizer=optimizer,
        learning_rate=1e-3, lr_schedule=schedule, warmup_ratio=0.4, max_grad_norm=0.5, weight_decay=0.1, adam_epsilon=1e-4,
        hidden_dropout=0, attention_dropout=0, classifier_dropout=0,
    )  # fmt: skip
    run = start(config)
    train(run)
    fresh = pretrained.fresh_model(config, 5)
    reference: Any = fresh.model
    assert fresh.output is not None
    start_at_priors(fresh.output, data.task, data.labels[data.train])
    plain_loop(reference, config, data)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_new_head_starts_at_the_shares_of_the_labels_as_far_as_few_rows_tell(
    data: PreparedData, start: Callable[..., TrialRun], pretrained: Pretrained
) -> None:
    labels = data.labels.copy()
    labels[data.train] = np.repeat(np.arange(8), [9, 1, 1, 1, 1, 1, 1, 1])
    layer = output_layer(start(data=replace(data, labels=labels)).model, pretrained.new)
    assert layer is not None
    shares = layer.bias.softmax(0).tolist()
    few = 8 * EXTRA_ROWS + 16
    assert shares == pytest.approx([(9 + EXTRA_ROWS) / few, *[(1 + EXTRA_ROWS) / few] * 7])
    assert output_layer(start().model, new=frozenset()) is None


@pytest.mark.parametrize("balance", ["Weights", "Oversample", "Undersample"])
def test_a_head_that_is_trained_on_balanced_classes_starts_with_equal_ones(
    balance: str, data: PreparedData, start: Callable[..., TrialRun], pretrained: Pretrained
) -> None:
    labels = data.labels.copy()
    labels[data.train] = np.repeat(np.arange(8), [9, 1, 1, 1, 1, 1, 1, 1])
    config = start().config.model_copy(update={"class_balance": balance})
    run = start(config, data=replace(data, labels=labels))
    layer = output_layer(run.model, pretrained.new)
    assert layer is not None
    assert not layer.bias.any()


def plain_loop(model: Any, config: Hyperparameters, data: PreparedData) -> None:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    every = list(model.parameters())
    optimizers: dict[str, Callable[[], Any]] = {
        "AdamW": lambda: torch.optim.Adam(every, lr=1e-3, eps=1e-4),
        "Adam": lambda: torch.optim.Adam(every, lr=1e-3, eps=1e-4),
        "SGD": lambda: torch.optim.SGD(every, lr=1e-3, momentum=0.9),
        "NesterovSGD": lambda: torch.optim.SGD(every, lr=1e-3, momentum=0.9, nesterov=True),
        "RMSprop": lambda: torch.optim.RMSprop(every, lr=1e-3, eps=1e-4, momentum=0.9),
    }
    optimizer = optimizers[config.optimizer]()
    lengths = data.lengths(data.train, 16)
    steps = training_steps(data.train, lengths, 4, config.gradient_accumulation, 5, 0)
    kind = {"Linear": "linear", "Cosine": "cosine", "Constant": "constant_with_warmup"}
    schedule = transformers.get_scheduler(
        kind[config.lr_schedule], optimizer, int(np.ceil(0.4 * len(steps))), len(steps)
    )
    batcher = Batcher(data, 16, torch.device("cpu"))
    for step in steps:
        # However many batches a step has, it is one step over all of their rows.
        batch = batcher(np.concatenate(step))
        logits = model(**batch.inputs).logits
        loss: Any = cross_entropy(logits, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        with torch.no_grad():
            for matrix in matrices:
                matrix.mul_(1 - optimizer.param_groups[0]["lr"] * 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def test_the_seed_decides_everything(
    start: Callable[..., TrialRun], unbroken: tuple[TrialRun, list[EpochResult]]
) -> None:
    run, results = unbroken
    again, other = start(), start(seed=6)
    torch.manual_seed(99)  # random numbers of others in the process are no matter
    assert outcome(train(again)) == outcome(results)
    assert_same(weights(again), weights(run))
    train(other)
    assert not torch.equal(weights(other)["classifier.weight"], weights(run)["classifier.weight"])


@pytest.mark.parametrize("call", [0, 2, 4, 5])
def test_a_paused_trial_goes_on_bit_for_bit(
    call: int,
    start: Callable[..., TrialRun],
    unbroken: tuple[TrialRun, list[EpochResult]],
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    """Before the first batch, in mid-epoch, and before and after the first of validation's batches."""
    first = start()
    result = first.train_to(9, PauseAt(call))
    assert (result is None) == (call < 5)
    first.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    rest = train(resumed)
    results = rest if result is None else [result, *rest]
    assert outcome(results) == outcome(unbroken[1])
    assert_same(weights(resumed), weights(unbroken[0]))


def test_a_pause_within_a_step_begins_the_step_anew(start: Callable[..., TrialRun]) -> None:
    config = CONFIG.model_copy(update={"gradient_accumulation": 3, "epochs": 1})
    reference, paused = start(config), start(config)
    expected = train(reference)
    assert paused.train_to(9, PauseAt(4)) is None
    assert outcome(train(paused)) == outcome(expected)
    assert_same(weights(paused), weights(reference))


RESUME = """
import sys, torch, pickle
from pathlib import Path
torch.set_num_threads(1)
from finetune_api.objective import Objective
from finetune_trainer.training import Pretrained, TrialRun
folder = Path(sys.argv[1])
data = pickle.loads((folder / "data").read_bytes())
pretrained = Pretrained.load(data.model, data.task, data.label_names)
objective = Objective(metric="f1_macro", additional_metrics=["accuracy"])
run = TrialRun.resume(folder / "paused", pretrained, data, objective)
while not run.finished:
    run.train_to(9)
run.save(folder / "finished")
"""


def test_a_fresh_process_goes_on_bit_for_bit(
    start: Callable[..., TrialRun],
    unbroken: tuple[TrialRun, list[EpochResult]],
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    first = start()
    assert first.train_to(9, PauseAt(2)) is None
    first.save(tmp_path / "paused")
    (tmp_path / "data").write_bytes(pickle.dumps(data))
    subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], check=True)
    finished = TrialRun.resume(tmp_path / "finished", pretrained, data, OBJECTIVE)
    assert finished.finished
    assert_same(weights(finished), weights(unbroken[0]))


def test_evaluations_in_mid_epoch_change_nothing(
    start: Callable[..., TrialRun],
    unbroken: tuple[TrialRun, list[EpochResult]],
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    run, seen = start(), []
    for position in (0.3, 0.5, 1.25):
        while run.position < position:
            result = run.train_to(position)
            assert result is not None
            seen.append(result)
        run.save(tmp_path)
        run = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    seen += train(run)
    whole = len(unbroken[1])
    assert [result.epoch for result in seen] == [0.3, 0.5, 1, 1.25, *range(2, whole + 1)]
    assert outcome([r for r in seen if r.epoch.is_integer()]) == outcome(unbroken[1])
    assert_same(weights(run), weights(unbroken[0]))
    assert seen[0].metrics != seen[2].metrics


def test_changed_hyperparameters_take_effect_from_the_checkpoint_on(
    start: Callable[..., TrialRun], tmp_path: Path, data: PreparedData, pretrained: Pretrained
) -> None:
    first = start()
    first.train_to(1)
    first.save(tmp_path)
    outcomes = {}
    updates: dict[str, dict[str, Any]] = {
        "same": {},
        "rate": {"learning_rate": 1e-3},
        "dropout": {"hidden_dropout": 0.5},
        "optimizer": {"optimizer": "SGD"},
        "batch": {"batch_size": 16},
    }
    for name, update in updates.items():
        changed = CONFIG.model_copy(update=update)
        run = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, changed=changed)
        assert run.position == 1
        run.train_to(2)
        outcomes[name] = weights(run)
    first.train_to(2)
    assert_same(outcomes.pop("same"), weights(first))
    for name, changed_weights in outcomes.items():
        different = [n for n, w in changed_weights.items() if not torch.equal(w, weights(first)[n])]
        assert different, name


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "RMSprop"])
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0)])
def test_momentum_can_begin_and_end_under_way(
    optimizer: str,
    before: float,
    after: float,
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    config = CONFIG.model_copy(update={"optimizer": optimizer, "momentum": before})
    TrialRun(pretrained, data, config, 1, OBJECTIVE).save(tmp_path)
    changed = config.model_copy(update={"momentum": after})
    run = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, changed=changed)
    run.train_to(0.2)
    run.reconfigure(config)
    result = run.train_to(1)
    assert result is not None
    assert math.isfinite(result.train_loss)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.3, "learning_rate": 1e-3}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_what_opens_under_way(
    optimizer: Any, changes: dict[str, Any], start: Callable[..., TrialRun], tmp_path: Path
) -> None:
    """Layers open one by one, also after a change as PBT makes it: each is trained from then on."""
    config = CONFIG.model_copy(
        update={"epochs": 4, "unfreeze_epochs": 1.0, "optimizer": optimizer, "warmup_ratio": 0.0}
    )
    run = start(config)
    begun = {name: one.clone() for name, one in weights(run).items()}
    for epoch in (1, 2):
        run.train_to(epoch)
    run.save(tmp_path)
    changed = config.model_copy(update=changes)
    data, pretrained = run.data, run.learner._pretrained
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, changed=changed)
    for epoch in (3, 4):
        assert resumed.train_to(epoch) is not None
    for layer in ("classifier", "layer.1.", "layer.0.", "word_embeddings"):
        moved = [
            not torch.equal(begun[n], one) for n, one in weights(resumed).items() if layer in n
        ]
        assert any(moved), layer


def test_momentum_of_a_layer_that_opens_later_begins_with_its_gradient() -> None:
    """The fused kernel does what torch's plain one does, whichever parameters have gradients when."""
    plain, fused = [[nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2)]
    one = SGD(plain, lr=0.1, momentum=0.9, fused=False, foreach=False)
    other = SGD(fused, lr=0.1, momentum=0.9, fused=True)
    for opened in (1, 1, 2, 2, 2):
        for parameters in (plain, fused):
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.full((3,), number + 0.5) if number < opened else None
        begin_momentum(other)
        one.step()
        other.step()
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(plain, fused, strict=True))


def test_an_average_that_is_to_begin_later_is_not_that_of_before(
    start: Callable[..., TrialRun], tmp_path: Path
) -> None:
    """A member of PBT may begin to average later than the one whose weights it takes over."""

    def raw(run: TrialRun) -> NDArray[np.float32]:
        logits: NDArray[np.float32] | None = run.learner.predict(run.data.validation)
        assert logits is not None
        return logits

    config = CONFIG.model_copy(update={"epochs": 4, "averaging_start": 0.0})
    parent = start(config)
    parent.train_to(1)
    parent.save(tmp_path)
    later = config.model_copy(update={"averaging_start": 0.75})
    data, pretrained = parent.data, parent.learner._pretrained
    child = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, changed=later)
    child.train_to(2)
    assert np.array_equal(child.predict(data.validation), raw(child))
    train(child)
    assert not np.array_equal(child.predict(data.validation), raw(child))


def test_batches_do_not_change_within_an_epoch(start: Callable[..., TrialRun]) -> None:
    run = start()
    run.train_to(0.4)
    run.reconfigure(CONFIG.model_copy(update={"learning_rate": 1e-3}))
    with pytest.raises(TrialFailure, match="batches may change only between epochs"):
        run.reconfigure(CONFIG.model_copy(update={"batch_size": 32}))


def test_trials_that_take_turns_do_not_disturb_each_other(
    start: Callable[..., TrialRun], unbroken: tuple[TrialRun, list[EpochResult]]
) -> None:
    one, other = start(), start(seed=6)
    assert one.train_to(9, PauseAt(2)) is None
    assert other.train_to(9, PauseAt(3)) is None
    assert outcome(train(one)) == outcome(unbroken[1])


def test_a_checkpoint_of_other_rows_is_refused(
    start: Callable[..., TrialRun], tmp_path: Path, data: PreparedData, pretrained: Pretrained
) -> None:
    start().save(tmp_path)
    with pytest.raises(TrialFailure, match="the data set has changed") as error:
        TrialRun.resume(tmp_path, pretrained, data.merged(), OBJECTIVE)
    assert error.value.failure_class == "UserError"


def test_a_half_written_checkpoint_is_none(
    start: Callable[..., TrialRun], tmp_path: Path, data: PreparedData, pretrained: Pretrained
) -> None:
    start().save(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(FileNotFoundError):
        TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)


def test_a_trial_stops_when_its_patience_is_spent(
    start: Callable[..., TrialRun], tmp_path: Path, data: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(
        update={"epochs": 9, "early_stopping_patience": 2, "learning_rate": 1e-12}
    )
    run = start(config)
    run.train_to(9)
    run.train_to(9)
    run.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    assert not resumed.finished
    assert [result.epoch for result in train(resumed)] == [3]


def test_final_fit_has_no_validation_and_ignores_patience(
    start: Callable[..., TrialRun], data: PreparedData
) -> None:
    config = CONFIG.model_copy(update={"early_stopping_patience": 1, "learning_rate": 1e-12})
    run = start(config, data=data.merged())
    results = train(run)
    assert [result.metrics for result in results] == [{}, {}]
    assert set(run.evaluate("test")) == {"f1_macro", "accuracy", "loss"}


def test_exported_model_predicts_the_same_without_this_project(
    unbroken: tuple[TrialRun, list[EpochResult]], data: PreparedData, tmp_path: Path
) -> None:
    run, _ = unbroken
    run.export(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tuple(model.config.id2label[n] for n in range(8)) == data.label_names
    texts = [tokenizer.decode(data.columns[0][row]) for row in data.test]
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] <= 16
    with torch.inference_mode():
        logits = model(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, run.predict(data.test), atol=1e-5)
    assert not list(tmp_path.glob("*.bin"))
    config = (tmp_path / "config.json").read_text() + (
        tmp_path / "tokenizer_config.json"
    ).read_text()
    assert str(Path(data.model.name).parent) not in config


def test_baselines_are_what_a_constant_reaches(data: PreparedData) -> None:
    labels = np.array([0, 0, 0, 1, 2, 0, 1])
    one = replace(
        data, label_names=("a", "b", "c"), labels=labels, train=np.arange(5), test=np.arange(5, 7)
    )
    found = baseline_metrics(one, ["accuracy", "f1_macro", "roc_auc", "loss"])
    loss = -(np.log(0.6) + np.log(0.2)) / 2
    expected = {"accuracy": 0.5, "f1_macro": 1 / 3, "roc_auc": 0.5, "loss": loss}
    assert found == pytest.approx(expected, rel=1e-5)

    many = replace(
        one, task="MultiLabel", label_names=("a", "b"), test=np.arange(4), train=np.arange(4),
        labels=np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.bool_),
    )  # fmt: skip
    assert baseline_metrics(many, ["f1_micro"]) == {"f1_micro": 0.75}

    number = replace(
        one, task="Regression", labels=np.array([1, 1, 4, 4, 5, 3, 5], dtype=np.float32)
    )
    assert baseline_metrics(number, ["mae", "r2"]) == {"mae": 1.0, "r2": -1.0}
