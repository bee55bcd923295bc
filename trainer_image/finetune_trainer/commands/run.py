"""`finetune run`: the study on this machine, or one of its trials again."""

import argparse
import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_api.auto import described
from finetune_api.conditions import status_of
from finetune_api.manifest import ManifestError, dump_yaml, read_study
from finetune_api.status import Findings, StudyProgress
from finetune_api.study import FineTuneStudy
from finetune_trainer.commands.manifests import add_manifest, study_of
from finetune_trainer.environment import SlotResources
from finetune_trainer.records.claim import has_begun, parts_of
from finetune_trainer.records.events import Event
from finetune_trainer.records.log import read_history
from finetune_trainer.search.decisions import has_failed, may_go_on
from finetune_trainer.search.problem import problem_of
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import REPORT_PAGE, RESULT, RUNS, TRIALS_CSV

if TYPE_CHECKING:  # Ray and torch are slow to import
    from finetune_trainer.console import StudyConsole
    from finetune_trainer.runtime.local_sink import LocalSink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune run`."""
    add_manifest(parser)
    parser.add_argument(
        "--into", type=Path, help="folder for records, results and model (default runs/<name>)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--slots",
        type=int,
        help="trials to run at once (default: as in the manifest, at most one per core)",
    )
    how.add_argument(
        "--trial",
        type=int,
        help="train this recorded trial again, alone, and compare (exit code 1 if it differs)",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Run the study, or train a trial again; 1 if it failed, or the trial did not come out the same."""
    study = study_of(parsed, console)
    into = parsed.into or Path(RUNS) / study.metadata.name
    if parsed.trial is not None:
        return _train_again(study, parsed.study.parent, into, parsed.trial, console)
    return _run(study, parsed.study.parent, into, parsed.slots, console)


def _run(study: FineTuneStudy, base: Path, into: Path, slots: int | None, console: Console) -> int:
    finished = _finished(study, into)
    if finished is not None:
        return _tell_finished(study, finished, into, console)
    has_begun(Storage.open(str(into)), parts_of(study.spec))  # a refused run changes nothing there
    from finetune_trainer.console import StudyConsole  # Ray and torch are slow to import
    from finetune_trainer.driver import Driver, Workplace
    from finetune_trainer.runtime.local_sink import LocalSink

    slots = slots or max(1, min(study.spec.cluster.slots, os.cpu_count() or 1))
    sink = LocalSink(into, about=about(study))
    started = datetime.now(UTC)
    state, _ = _replayed(study, into)
    retry = started.isoformat() if has_failed(state) else ""
    if retry:
        console.print("what failed is tried again; what was trained is kept", highlight=False)
    at_once = "one trial at a time" if slots == 1 else f"{slots} trials at a time"
    console.print(f"{study.metadata.name}: {at_once}, results in {into}", highlight=False)
    if study.spec.search.algorithm == "Auto":
        search = described(problem_of(study.spec, Storage.open(str(into))).search)
        rungs = "" if search.min_resource is None else f", first rung at {search.min_resource:g}"
        console.print(
            f"chosen search: {search.algorithm}, {search.scheduler}{rungs}", highlight=False
        )
    try:
        screen = StudyConsole(study, console)
        place = Workplace(
            study,
            base,
            str(into),
            sink,
            slots,
            _share(slots),
            retry=retry,
            watch=screen.watch,
            interrupted=screen.interrupted,
        )
        driver = Driver(place)
        with screen:
            watch = _Watch(sink, screen)
            watch.start()
            try:
                progress = driver.run()
            finally:
                watch.stop()
        if progress.findings != Findings() or not (into / RESULT).exists():  # else nothing was done
            ended = study.model_copy(update={"status": status_of(study, progress, started)})
            Storage.open(str(into)).write(RESULT, dump_yaml(ended.to_json()).encode())
    finally:
        sink.release()
    how = {
        "Drained": f"Stopped ({progress.message}); run the same command to go on",
        "Finished": f"Finished: {progress.message}",
    }.get(
        progress.phase,
        f"Failed ({progress.reason}): {progress.message}; the same command tries again once that is mended",
    )
    _report(study, how, progress.findings, into, console)
    return 0 if progress.phase == "Finished" else 1


def about(study: FineTuneStudy) -> dict[str, str]:
    """What `finetune ls` says of a study beside its progress."""
    spec = study.spec
    return {"name": study.metadata.name, "task": spec.task, "metric": spec.objective.metric}


def _finished(study: FineTuneStudy, into: Path) -> FineTuneStudy | None:
    """The same study with its result, if it has already ended in that folder and is over by its budget and target."""
    try:
        found = read_study(into / RESULT)
    except (FileNotFoundError, ManifestError):  # none, or of another version
        return None
    ended = found.status is not None and found.status.is_true("Complete")
    objective = study.spec.objective.model_copy(update={"target": found.spec.objective.target})
    same = found.spec == study.spec.model_copy(
        update={"budget": found.spec.budget, "objective": objective}
    )
    if not ended or not same:
        return None
    if found.spec == study.spec:
        return found
    goes_on = may_go_on(*_replayed(study, into), study.spec.budget, time.time())
    return None if goes_on else found


def _replayed(study: FineTuneStudy, into: Path) -> tuple[StudyState, Sequence[Event]]:
    """What the records of a study say, and the records."""
    storage = Storage.open(str(into))
    events = read_history(storage).events
    return StudyState.replayed(problem_of(study.spec, storage), events), events


def _tell_finished(
    study: FineTuneStudy, finished: FineTuneStudy, into: Path, console: Console
) -> int:
    """Print the result of a study that has ended."""
    status = finished.status
    complete = None if status is None else status.condition("Complete")
    assert status is not None
    assert complete is not None
    console.print(f"{study.metadata.name} has already ended; its result:", highlight=False)
    _report(study, f"Finished: {complete.message}", status, into, console)
    if finished.spec != study.spec:
        console.print(
            "It is over by the changed budget and target as well, so they have no effect. To search further, loosen "
            f"the limit that ended it ({complete.reason}), or run a study with search.warmStart: "
            f"[{{uri: {into.absolute()}}}] and a folder of its own (--into).",
            highlight=False,
        )
    return 0


def _train_again(study: FineTuneStudy, base: Path, into: Path, trial: int, console: Console) -> int:
    from finetune_trainer.console import comparison_lines  # Ray and torch are slow to import
    from finetune_trainer.reproduce import reproduce

    comparison = reproduce(study.spec, base, into, trial)
    for line in comparison_lines(comparison):
        console.print(line, highlight=False)
    return 0 if comparison.same else 1


def _share(slots: int) -> SlotResources:
    """An equal share of this machine for each slot."""
    import torch

    gpus = torch.cuda.device_count() if shutil.which("nvidia-smi") else 0
    return SlotResources(max(1, (os.cpu_count() or 1) // slots), min(1.0, gpus / slots))


class _Watch:
    """Shows the latest progress of the sink, four times a second."""

    def __init__(self, sink: "LocalSink", screen: "StudyConsole") -> None:
        self._sink, self._screen = sink, screen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        shown: StudyProgress | None = None
        at_work: object = None
        while not self._stop.wait(0.25):
            latest = self._sink.latest
            if latest is not None and (latest is not shown or self._screen.at_work is not at_work):
                at_work = self._screen.at_work
                self._screen.show(latest.phase, latest.findings)
                self._tell_wait(shown, latest)
                shown = latest

    def _tell_wait(self, before: "StudyProgress | None", latest: "StudyProgress") -> None:
        waited = before is not None and before.reason == "StorageUnavailable"
        if latest.reason == "StorageUnavailable":
            if before is None or before.message != latest.message:
                self._screen.say(latest.message)
        elif waited:
            self._screen.say("storage is back, the study goes on")


def _report(study: FineTuneStudy, how: str, found: Findings, into: Path, console: Console) -> None:
    """Print the result; `how` says how the study ended."""
    from finetune_trainer.console import counted, format_value, metrics_table, trials_table

    if found.top_trials:
        console.print(trials_table(study, found.top_trials, "Best trials", console.width))
    if found.best:
        params = ", ".join(
            f"{name}={format_value(value)}" for name, value in found.best.params.items()
        )
        so_far = " so far" if how.startswith("Stopped") else ""
        best = f"best parameters{so_far} (trial {found.best.trial}): {params}"
        console.print(best, highlight=False)
    if found.final:
        columns = {
            "final model": found.final.test_metrics,
            "constant prediction": found.final.baseline,
        }
        table = metrics_table("Test rows, which no trial has seen", columns)
        table.caption = (
            "constant prediction: the same answer for every row (most frequent class, mean)"
        )
        table.caption_justify = "left"
        console.print(table)
        if found.final.ensemble:
            console.print(f"ensemble {found.final.ensemble.message}", highlight=False)
        console.print(f"model:   {found.final.model_uri}", highlight=False)
    for warning in found.warnings:
        console.print(f"warning: {warning}", highlight=False)
    console.print(
        f"{how}: {counted(found.trials)}" if found.trials.planned else how, highlight=False
    )
    for name, path in (
        ("trials", into / TRIALS_CSV),
        ("study", into / RESULT),
        ("report", into / REPORT_PAGE),
    ):
        if path.exists():
            console.print(f"{name + ':':8} {path.absolute()}", highlight=False)
