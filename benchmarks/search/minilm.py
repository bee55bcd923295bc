"""How soon a search finds a result as good as the best of 24 full trials: MiniLM on docstrings, 9 epochs.

Four ways to tune the same model on the same rows with the same hyperparameters, two trials side by side:

- by hand: Ray Tune without early stopping, Hugging Face's Trainer at its defaults, 24 trials;
- a process per trial: the same 24 trials, each in a fresh process with our training loop: a lower
  bound of what a pod per trial would take (no scheduling, no image, no container);
- ours: `finetune run`'s driver under ASHA, stopped as soon as any trial is as good;
- Ray's ASHA by hand: Trainer with `group_by_length`, stopped as soon as any trial is as good, or after three
  times as long as ours took: its ratio is then "at least 3".

The target is the best validation accuracy of the 24 trials by hand. Wall time counts from nothing
to that result, including every start. The gain over the way by hand is then split into epochs (fewer trained),
the cost of an epoch (padding, and the loop itself) and the rest (starts, idle slots).

Exits 1 if ours is less than 5 times as fast as by hand or as a process per trial, or less than 2 times as
fast as Ray's ASHA; these bars are for 24 trials. `--brief` runs only the way by hand and ours.

    python -m benchmarks.search.minilm [--trials 24] [--brief]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from finetune_api.hyperparameters import resolve
from finetune_api.manifest import load_yaml, parse_study
from finetune_api.study import FineTuneStudy
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.storage.folder import Storage

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRIALS, EPOCHS, SLOTS = 24, 9, 2
MAX_LENGTH = 128
MOST = 10 * TRIALS
"""Trials after which a search stops trying to be as good."""

PATIENCE = 3.0
"""How many times as long as ours Ray's ASHA may take."""

BARS = {"by hand": 5.0, "a process per trial": 5.0, "Ray's ASHA by hand": 2.0}


@dataclass
class Way:
    """How one way went."""

    seconds: float
    best: float
    trials: int
    epochs: int
    epoch_seconds: float
    """Seconds of training and evaluation per epoch, over all slots."""


def study(trials: int, target: float | None = None) -> FineTuneStudy:
    """The library example with texts in their full length, nine epochs, ASHA."""
    manifest = load_yaml((EXAMPLES / "library.yaml").read_text())
    spec = manifest["spec"]
    spec["hyperparameters"] = {"epochs": EPOCHS, "maxLength": MAX_LENGTH, "lrSchedule": "Linear"}
    spec["searchSpaces"] = [
        {
            "learningRate": {"min": 1e-5, "max": 1e-3, "scale": "Log"},
            "batchSize": {"values": [8, 16, 32]},
            "weightDecay": {"min": 0.0, "max": 0.1},
        }
    ]
    spec["budget"] = {"maxTrials": trials}
    spec["refit"] = False
    if target is not None:
        spec["objective"]["target"] = target
    return parse_study(manifest)


def configurations(count: int) -> list[dict[str, Any]]:
    """What our study would try, in order."""
    proposer, found = Proposer(Problem.of(study(count).spec)), []
    for _ in range(count):
        proposal = proposer.propose()
        assert proposal is not None  # the space is continuous
        found.append(dict(proposal.params))
        proposer.record(proposal.params)
    return found


def as_rows(data: Any, part: Any) -> list[dict[str, Any]]:
    """Tokenised rows in the form that Trainer takes."""
    room, frame = MAX_LENGTH - data.frame.special, data.frame
    return [
        {
            "input_ids": [*frame.before, *data.columns[0][row][:room].tolist(), *frame.after],
            "labels": int(data.labels[row]),
        }
        for row in part
    ]


def train_by_hand(config: dict[str, Any], rows: Any, model: str, grouped: bool) -> None:
    """The trainable of a user who puts Trainer into Ray Tune."""
    import numpy as np
    import torch
    from ray import tune
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(1)
    config = config["trial"]
    train, validation, labels = rows

    class Report(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
            tune.report({"accuracy": metrics["eval_accuracy"], "epoch": round(state.epoch)})

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(found.predictions.argmax(axis=1) == found.label_ids))}

    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=labels),
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=EPOCHS,
                learning_rate=config["learningRate"],
                per_device_train_batch_size=config["batchSize"],
                weight_decay=config["weightDecay"],
                eval_strategy="epoch",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                train_sampling_strategy="group_by_length" if grouped else "random",
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(model)),
            compute_metrics=accuracy,
            callbacks=[Report()],
        ).train()


def by_hand(asha: bool, trials: int, target: float | None, limit: float | None = None) -> Way:
    """Ray Tune and Trainer, wired by hand; ended after `limit` seconds."""
    started = time.time()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from finetune_trainer.data import prepare

    data = prepare(study(trials).spec, EXAMPLES)
    rows = as_rows(data, data.train), as_rows(data, data.validation), len(data.label_names)
    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    model = str((EXAMPLES / "models" / "all-MiniLM-L6-v2").resolve())
    trainable = tune.with_parameters(train_by_hand, rows=rows, model=model, grouped=asha)

    seen: list[tuple[str, dict[str, Any]]] = []

    class Enough(tune.Stopper):  # type: ignore[misc]  # Ray ships no types
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            # A trial that a time limit ends has no table of results; the last result of a trial comes twice.
            if (trial_id, result["epoch"]) not in {(one, told["epoch"]) for one, told in seen}:
                seen.append((trial_id, result))
            return False

        def stop_all(self) -> bool:
            return target is not None and any(one["accuracy"] >= target for _, one in seen)

    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"trial": tune.grid_search(configurations(trials))},
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                time_budget_s=limit,
                scheduler=ASHAScheduler(
                    time_attr="epoch", max_t=EPOCHS, grace_period=1, reduction_factor=3
                )
                if asha
                else None,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, stop=Enough()),
        ).fit()
    ray.shutdown()
    best = max(one["accuracy"] for _, one in seen)
    later = [one["time_this_iter_s"] for _, one in seen if one["training_iteration"] > 1]
    trials = len({trial for trial, _ in seen})
    return Way(time.time() - started, best, trials, len(seen), sum(later) / max(1, len(later)))


def one_process(number: int) -> dict[str, Any]:
    """One full trial with our training loop, run in a fresh process."""
    import torch

    from finetune_trainer.data import prepare
    from finetune_trainer.training import Pretrained, TrialRun

    torch.set_num_threads(1)
    spec = study(TRIALS).spec
    data = prepare(spec, EXAMPLES)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = resolve(spec.hyperparameters, configurations(number + 1)[number])
    run = TrialRun(pretrained, data, config, number, spec.objective)
    values, seconds = [], 0.0
    while not run.finished:
        result = run.train_to(EPOCHS)
        assert result is not None  # nobody asks it to pause
        values.append(result.metrics[spec.objective.metric])
        seconds += result.seconds
    return {"best": max(values), "seconds": seconds}


def by_processes(trials: int) -> Way:
    """A fresh process for each trial, two at a time."""
    started = time.time()

    def trial(number: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.search.minilm", "--trial", str(number)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return found

    with ThreadPoolExecutor(SLOTS) as pool:
        found = list(pool.map(trial, range(trials)))
    epochs = trials * EPOCHS
    seconds = sum(trial["seconds"] for trial in found) / epochs
    best = max(trial["best"] for trial in found)
    return Way(time.time() - started, best, trials, epochs, seconds)


def by_ours(target: float) -> Way:
    """The driver, as `finetune run` starts it."""
    started = time.time()
    from finetune_trainer.driver import Driver, Workplace
    from finetune_trainer.environment import SlotResources
    from finetune_trainer.runtime.local_sink import LocalSink

    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(
            study(MOST, target),
            EXAMPLES,
            folder,
            LocalSink(Path(folder)),
            SLOTS,
            SlotResources(1, 0),
        )
        Driver(place).run()
        events = read_history(Storage.open(folder)).events
    done = [event for event in events if isinstance(event, ev.EpochDone)]
    return Way(
        time.time() - started,
        max(event.value for event in done),
        len({event.trial for event in done}),
        len(done),
        sum(event.seconds for event in done) / len(done),
    )


def shown(name: str, way: Way) -> Way:
    """Print the way as soon as it is known, and return it."""
    print(
        f"{name:20} {way.seconds:>8.1f} {way.best:>7.4f} {way.trials:>7} {way.epochs:>7}"
        f" {way.epoch_seconds:>8.2f}",
        flush=True,
    )
    return way


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trial", type=int, help="only train this trial and print its result")
    parser.add_argument(
        "--trials", type=int, default=TRIALS, help="trials trained to their end by hand"
    )
    parser.add_argument("--brief", action="store_true", help="leave out processes and Ray's ASHA")
    parsed = parser.parse_args()
    trials: int = parsed.trials
    if parsed.trial is not None:
        print(json.dumps(one_process(parsed.trial)))
        return 0
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    print(describe())
    print(
        f"{'':20} {'wall, s':>8} {'best':>7} {'trials':>7} {'epochs':>7} {'s/epoch':>8}", flush=True
    )
    hand = shown("by hand", by_hand(asha=False, trials=trials, target=None))
    target = hand.best
    print(
        f"to be reached: accuracy {target:.4f}, the best of {trials} full trials by hand",
        flush=True,
    )
    ways = {"by hand": hand}
    if not parsed.brief:
        ways["a process per trial"] = shown("a process per trial", by_processes(trials))
    ours = shown("ours", by_ours(target))
    if not parsed.brief:
        limit = PATIENCE * ours.seconds
        asha = by_hand(asha=True, trials=MOST, target=target, limit=limit)
        ways["Ray's ASHA by hand"] = shown("Ray's ASHA by hand", asha)
    missed = []
    for name, way in ways.items():
        ratio = way.seconds / ours.seconds
        ended = name == "Ray's ASHA by hand" and way.best < target
        print(
            f"ours is {'at least ' * ended}{ratio:.1f} times as fast as {name}, must be {BARS[name]:g}"
        )
        if ratio < BARS[name] and trials == TRIALS:
            missed.append(f"{ratio:.1f} times as fast as {name}")
    if ours.best < target:
        missed.append("ours was not as good")
    epochs, cost = hand.epochs / ours.epochs, hand.epoch_seconds / ours.epoch_seconds
    rest = hand.seconds / ours.seconds / epochs / cost
    print(
        f"against by hand: {epochs:.1f} x by fewer epochs, {cost:.2f} x by cheaper epochs (padding, loop),"
        f" {rest:.2f} x by starts and idle slots"
    )
    print("MISSED: " + "; ".join(missed) if missed else "as fast as it must be")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
