"""Trains the winner again, or the ensemble of the best trials if it is better: the final model."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from finetune_api.hyperparameters import Hyperparameters, resolve
from finetune_trainer.artifacts.about import ModelAbout
from finetune_trainer.artifacts.ensemble import (
    MEMBERS,
    EnsembleAbout,
    EnsembleMember,
    ensemble_files,
)
from finetune_trainer.artifacts.model_card import CARD
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem
from finetune_trainer.storage.layout import FINAL_MODEL, REFIT_CHECKPOINT
from finetune_trainer.tasks.ragged import arrays_of, made_of
from finetune_trainer.tasks.thresholds import trial_thresholds
from finetune_trainer.training import TrialRun, baseline_metrics
from finetune_trainer.training.ensemble import Answers, Combination, Verdict, judge
from finetune_trainer.training.out_of_fold import validation_folds
from finetune_trainer.training.pooling import is_pooled
from finetune_trainer.worker.final_model import attribute, card, evaluate_test, export
from finetune_trainer.worker.runs import Workbench

log = logging.getLogger("finetune.trainer")

SAVE_SECONDS = 30.0
"""A refit saves at the end of the first epoch this long after its last save."""


_LOGITS = ("logits", "offsets")
"""The names of what logits consist of, in a file of answers."""


class _Paused(Exception):
    """The refit was told to pause, and has saved its progress."""


class Refit:
    """One refit, which resumes what an earlier attempt left in the checkpoint folder."""

    def __init__(
        self, bench: Workbench, item: RefitItem, should_pause: Callable[[], bool], gpus: float
    ) -> None:
        self._bench = bench
        self._item = item
        self._should_pause = should_pause
        self._gpus = gpus
        alone = bench.spec.refit_rows == "Train"
        self._rows = bench.data if alone else bench.data.merged()

    def run(self) -> list[ev.Event]:
        """Do it, or as much as possible until told to pause; returns the events that report how it ended."""
        started = time.monotonic()
        try:
            told, tested = self._together() if self._item.members else ([], None)
            if tested is None:
                tested = self._alone()
        except _Paused:
            return [ev.RefitRequeued(time.time())]
        constant = baseline_metrics(self._bench.data, tested)
        spent = (time.monotonic() - started) * self._gpus
        done = ev.RefitDone(
            time.time(),
            trial=self._item.trial,
            path=FINAL_MODEL,
            test_metrics=tested,
            baseline=constant,
            gpu_seconds=spent,
        )
        return [*told, done]

    def _alone(self) -> dict[str, float]:
        """Make the winner the final model; returns its metrics on the test rows."""
        bench, item, wanted = self._bench, self._item, self._bench.spec.artifacts
        checkpoint = _checkpoint(item, self._rows)
        run = self._train(item, self._rows, checkpoint)
        if wanted.onnx or wanted.attributed_rows:
            self._save(run, checkpoint)  # ONNX and attributions take long, and may fail
        answers = Answers(run.predict(bench.data.test), run.thresholds)
        tested = evaluate_test(bench, answers)

        def write(folder: Path) -> None:
            difference = export(bench, run, folder)
            text = card(bench, item, run.config, tested, difference, is_pooled(folder)).text()
            (folder / CARD).write_text(text, encoding="utf-8")

        bench.storage.store(FINAL_MODEL, write)
        self._attribute(FINAL_MODEL, run.config, answers)
        return tested.metrics

    def _together(self) -> tuple[list[ev.Event], dict[str, float] | None]:
        """Compare the ensemble with its members, and make it the final model if it is better.

        Returns the events of the comparison, and the ensemble's metrics on the test rows; None if it is not better.
        """
        data, wanted = self._bench.data, self._bench.spec.ensemble
        assert wanted is not None  # or the item would have no members
        members = self._item.members
        known = [self._answers("validation", member, data) for member in members]
        logits = [answers.logits for answers in known]
        leads = [member.lead for member in members]
        combination = Combination.of(data.task, wanted.method, leads, logits)
        labels = data.labels[data.validation]
        folds = validation_folds(data) if self._bench.out_of_fold else []
        tunes = [
            partial(trial_thresholds, config=self._config(member), out_of_fold=True)
            for member in members
        ]
        objective = self._bench.spec.objective
        slices = data.slices_at(data.validation)
        verdict = judge(combination, known, labels, objective, folds, tunes, slices)
        told = ev.EnsembleJudged(
            time.time(),
            trials=[member.trial for member in members],
            method=wanted.method,
            value=verdict.value,
            best_single=verdict.best_single,
            kept=verdict.kept,
        )
        return [told], self._refit_together(combination, verdict) if verdict.kept else None

    def _refit_together(self, combination: Combination, verdict: Verdict) -> dict[str, float]:
        """Make the ensemble the final model; returns its metrics on the test rows."""
        bench, members = self._bench, self._item.members
        known = [self._answers("test", member, self._rows, self._export) for member in members]
        together = combination(known)
        tested = evaluate_test(bench, together)
        about = self._about(combination, verdict, together)
        config = self._config(self._item)
        text = card(bench, self._item, config, tested, ensemble=about).text()
        known_by, content = ModelAbout.of(bench.spec).file
        files = {CARD: text.encode(), known_by: content, **ensemble_files(about, combination)}
        for name, content in files.items():
            bench.storage.write(f"{FINAL_MODEL}/{name}", content)
        self._attribute(_folder(self._item), config, known[0])
        return tested.metrics

    def _about(
        self, combination: Combination, verdict: Verdict, together: Answers
    ) -> EnsembleAbout:
        spec, data, item = self._bench.spec, self._bench.data, self._item
        assert spec.ensemble is not None
        members = [
            EnsembleMember(
                trial=member.trial,
                weight=float(weight),
                value=value,
                pooling=self._config(member).pooling,
            )
            for member, weight, value in zip(
                item.members, combination.weights, verdict.singles, strict=True
            )
        ]
        return EnsembleAbout(
            task=data.task,
            method=spec.ensemble.method,
            labels=list(data.label_names),
            members=members,
            metric=spec.objective.metric,
            value=verdict.value,
            thresholds=None if together.thresholds is None else together.thresholds.tolist(),
        )

    def _answers(
        self,
        part: str,
        member: RefitItem,
        data: PreparedData,
        finish: Callable[[RefitItem, TrialRun], None] | None = None,
    ) -> Answers:
        """What `member`, trained on the training rows of `data`, predicts for `part`; `finish` is called before that.

        The answers are stored, so that each member is trained only once, whatever happens to the others.
        """
        storage = self._bench.storage
        checkpoint = _checkpoint(member, data)
        path = f"{checkpoint}-{part}.safetensors"
        known = self._read(path)
        if known is not None:
            return known
        run = self._train(member, data, checkpoint)
        if finish is not None:
            finish(member, run)
        answers = Answers(run.predict(data.part(part), whole=True), run.thresholds)
        logits = arrays_of(answers.logits)
        tensors = {**dict(zip(_LOGITS, logits, strict=False)), "thresholds": answers.thresholds}
        written = {name: array for name, array in tensors.items() if array is not None}
        if part == "validation" and data is self._rows:
            self._save(run, checkpoint)  # the same training makes the final model
        storage.write(path, bytes(save(written)))
        if part == "test" or data is not self._rows:
            storage.delete(checkpoint)
        return answers

    def _read(self, path: str) -> Answers | None:
        try:
            found = load(self._bench.storage.read(path))
        except FileNotFoundError:
            return None
        arrays = [found[name] for name in _LOGITS if name in found]
        return Answers(made_of(arrays), found.get("thresholds"))

    def _export(self, member: RefitItem, run: TrialRun) -> None:
        self._bench.storage.store(_folder(member), lambda folder: export(self._bench, run, folder))

    def _attribute(self, path: str, config: Hyperparameters, answers: Answers) -> None:
        if not self._bench.spec.artifacts.attributed_rows:
            return
        if not attribute(self._bench, path, config, answers.thresholds, self._should_pause):
            raise _Paused

    def _train(self, item: RefitItem, data: PreparedData, checkpoint: str) -> TrialRun:
        """The training of `item` on `data`, for the epochs that served it best.

        Raises _Paused, with the run in `checkpoint`.
        """
        run, saved = self._begin(item, data, checkpoint), time.monotonic()
        for params, to_epoch in item.segments:
            config = resolve(self._bench.spec.hyperparameters, params)
            if run.position < to_epoch and config != run.config:
                run.reconfigure(config)
            while run.position < to_epoch:
                if run.train_to(to_epoch, self._should_pause) is None:
                    self._save(run, checkpoint)
                    raise _Paused
                if run.position < item.epochs and time.monotonic() - saved > SAVE_SECONDS:
                    self._save(run, checkpoint)
                    saved = time.monotonic()
        run.tuned = None if item.thresholds is None else np.array(item.thresholds)
        return run

    def _begin(self, item: RefitItem, data: PreparedData, checkpoint: str) -> TrialRun:
        for number in self._saves(checkpoint):
            try:
                return self._bench.resume(f"{checkpoint}/{number}", data, item.values)
            except FileNotFoundError as error:  # its upload was cut off
                log.warning("the refit cannot go on from its save %s: %s", number, error)
        config = resolve(self._bench.spec.hyperparameters, item.segments[0][0])
        return self._bench.begin(data, config, item.seed, item.values)

    def _save(self, run: TrialRun, checkpoint: str) -> None:
        """Save `run` in a folder of its own: an upload that is cut off leaves the previous save intact."""
        before = self._saves(checkpoint)
        self._bench.storage.store(f"{checkpoint}/{max(before, default=0) + 1}", run.save)
        for number in before:
            self._bench.storage.delete(f"{checkpoint}/{number}")

    def _saves(self, checkpoint: str) -> list[int]:
        """The numbers of the saves in `checkpoint`, the newest first."""
        folders = {path.split("/")[-2] for path in self._bench.storage.files(checkpoint)}
        return sorted((int(name) for name in folders if name.isdecimal()), reverse=True)

    def _config(self, item: RefitItem) -> Hyperparameters:
        """The hyperparameters at the end of the training of `item`."""
        return resolve(self._bench.spec.hyperparameters, item.segments[-1][0])


def _checkpoint(item: RefitItem, data: PreparedData) -> str:
    """Where the saves of the training of `item` on `data` are in storage."""
    return f"{REFIT_CHECKPOINT}/{item.trial}-{data.fingerprint}"


def _folder(member: RefitItem) -> str:
    """Where the model of a member is in storage."""
    return f"{FINAL_MODEL}/{MEMBERS}/{member.trial}"
