"""`finetune run` and `finetune plan`: the same study on a laptop."""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune_api.auto import described
from finetune_api.class_rules import refusals, with_class
from finetune_api.conditions import status_of
from finetune_api.expressions import ExpressionError
from finetune_api.manifest import ManifestError, dump_yaml, read_class, read_study
from finetune_api.manifest import Problem as Wrong
from finetune_api.plan import make_plan, why_none_whole
from finetune_api.status import Findings, StudyPlan, StudyProgress
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_trainer.environment import SlotResources, WorkerResources
from finetune_trainer.errors import RayUnavailable, StudyError
from finetune_trainer.records.claim import has_begun, parts_of
from finetune_trainer.records.events import Event
from finetune_trainer.records.log import read_history
from finetune_trainer.search.decisions import has_failed, may_go_on
from finetune_trainer.search.points import recommended_point
from finetune_trainer.search.problem import Problem, Recommended, problem_of
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import RESULT, TRIALS_CSV

PACKAGE = "finetune-operator"
"""The distribution that this module belongs to."""

if TYPE_CHECKING:  # Ray and torch are slow to import
    from finetune_trainer.console import StudyConsole
    from finetune_trainer.runtime.progress import LocalSink


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if it succeeded, 1 if the study failed, 2 if the manifest is wrong.

    With `--trial`, 1 means that the trial did not come out the same.
    """
    parser = argparse.ArgumentParser(
        prog="finetune", description="Tunes the hyperparameters of a FineTuneStudy."
    )
    parser.add_argument("--version", action="version", version=f"finetune {version(PACKAGE)}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the study on this machine")
    run.add_argument("study", type=Path, help="manifest of the study (YAML or JSON)")
    run.add_argument(
        "--into", type=Path, help="folder for records, results and model (default runs/<name>)"
    )
    how = run.add_mutually_exclusive_group()
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
    plan = commands.add_parser("plan", help="check the study and say what it will cost")
    plan.add_argument("study", type=Path, help="manifest of the study (YAML or JSON)")
    plan.add_argument(
        "--manifest-only", action="store_true", help="do not check the data and the model"
    )
    plan.add_argument(
        "--seconds-per-epoch",
        type=float,
        help="duration of an epoch in a slot, to give worst-case GPU hours and price",
    )
    for command in (run, plan):
        command.add_argument(
            "--class",
            dest="given",
            metavar="FILE",
            type=Path,
            help="manifest of a FineTuneClass to apply, as a cluster would",
        )
    parsed = parser.parse_args(arguments)
    shown = sys.stdout.isatty()
    # A file has no width: its tables need not be cut to that of a terminal.
    wide = None if shown or "COLUMNS" in os.environ else 160
    console = Console(soft_wrap=not shown, width=wide)
    try:
        study = _with_class(read_study(parsed.study), parsed.given, console)
        if parsed.command == "plan":
            return _plan(study, parsed, console)
        into = parsed.into or Path("runs") / study.metadata.name
        if parsed.trial is not None:
            return _train_again(study, parsed.study.parent, into, parsed.trial, console)
        return _run(study, parsed.study.parent, into, parsed.slots, console)
    except (ManifestError, ExpressionError, StudyError) as error:
        print(f"finetune: {parsed.study}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"finetune: {_os_error(error)}", file=sys.stderr)
        return 2
    except RayUnavailable as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "finetune: stopped; run the same command to go on from what is saved", file=sys.stderr
        )
        return 130


def _with_class(study: FineTuneStudy, path: Path | None, console: Console) -> FineTuneStudy:
    """The study as the class in that file makes it. Raises ManifestError for what the class does not allow."""
    named = study.spec.class_name
    if path is None:
        if named is not None:
            said = f"className {named} is ignored here (--class FILE applies a class)"
            console.print(said, highlight=False)
        return study
    try:
        given = read_class(path)
    except ManifestError as error:
        raise ManifestError(
            [replace(each, field=_in(path, each)) for each in error.problems]
        ) from error
    name, namespace = given.metadata.name, study.metadata.namespace or "default"
    if named not in (None, name):
        message = f"must be {name}, the class in {path}, or be left out (got {named})"
        raise ManifestError([Wrong("spec.className", message)])
    refused = refusals(study.spec, namespace, name, given.spec)
    if refused:
        raise ManifestError([Wrong(field, message) for field, message in refused])
    return study.model_copy(update={"spec": with_class(study.spec, given.spec)})


def _in(path: Path, problem: Wrong) -> str:
    """The field of a problem that is in another file than the study."""
    return f"{path}: {problem.field}" if problem.field else str(path)


def _os_error(error: OSError) -> str:
    """What an error of the operating system says, without its number."""
    if isinstance(error, BlockingIOError) or not (error.filename and error.strerror):
        return str(error)
    return f"{Path(str(error.filename)).absolute()}: {error.strerror}"


def _plan(study: FineTuneStudy, parsed: argparse.Namespace, console: Console) -> int:
    spec = study.spec
    Proposer(Problem.of(spec)).check()
    warnings: tuple[str, ...] = ()
    rows: int | None = None
    first: Recommended | None = None
    if not parsed.manifest_only:
        from finetune_trainer.data.prepare import prepare  # slow to import
        from finetune_trainer.runtime.first_trial import first_trial

        data = prepare(spec, parsed.study.parent)
        first = _tried(spec, first_trial(spec, data))
        if spec.validation.cross_validation:
            folds = spec.validation.cross_validation
            data = data.fold(0, folds.folds, folds.stratify, folds.seed)
        rows, warnings = len(data.train), data.warnings
        sizes = f"{rows} train, {len(data.validation)} validation, {len(data.test)} test rows"
        console.print(f"data: {sizes}", highlight=False)
    seconds = parsed.seconds_per_epoch
    share = WorkerResources.of(spec.cluster).slot(spec.cluster.trials_per_worker)
    share.check()
    plan = make_plan(spec, rows, None if seconds is None else seconds * share.gpus)
    for line in _plan_lines(study, plan, first):
        console.print(line, highlight=False)
    if seconds is not None and not share.gpus and plan.worst_case_epochs is not None:
        hours, slots = plan.worst_case_epochs * seconds / 3600, spec.cluster.slots
        at_once = f", {slots} trials at a time" if slots > 1 else ""
        console.print(f"worst-case hours: {hours / slots:.3g}{at_once}", highlight=False)
    none_whole = why_none_whole(plan, spec)
    for warning in (*warnings, *([none_whole] if none_whole else [])):
        console.print(f"warning: {warning}", highlight=False)
    return 0


def _tried(spec: StudySpec, recommended: Recommended | None) -> Recommended | None:
    """What is recommended, if the study will try it: constraints and budget may keep it from that."""
    limit, problem = spec.budget.max_trials, Problem.of(spec)
    if limit is not None and limit <= len(problem.points):
        return None
    admitted = recommended_point(replace(problem, recommended=recommended))
    return None if admitted is None else recommended


def _plan_lines(
    study: FineTuneStudy, plan: StudyPlan, recommended: Recommended | None
) -> Iterator[str | Table]:
    spec = study.spec
    trials = "unlimited" if plan.trials is None else plan.trials
    search = plan.search
    assert search is not None  # every plan has it
    yield f"{study.metadata.name}: {search.algorithm}, {search.scheduler}, {trials} trials"
    if spec.search.algorithm == "Auto":
        named = spec.search.scheduler.type != "Auto"
        chosen = search.algorithm if named else f"{search.algorithm} and {search.scheduler}"
        yield f"{chosen} {'was' if named else 'were'} chosen for this space and budget (algorithm Auto)"
    if plan.trainings != plan.trials:
        validation = spec.validation
        yield (
            f"trainings: {plan.trials} trials x {validation.folds} folds"
            f" x {validation.repeats} repeats = {plan.trainings}"
        )
    if spec.search.points:
        yield f"first {len(spec.search.points)} named by spec.search.points"
    if recommended is not None:
        values = ", ".join(f"{name} {value}" for name, value in recommended.params.items())
        then = "then" if spec.search.points else "first"
        yield f"{then} what is recommended for such a model and data: {values}"
    if plan.rungs:
        unit = "Epochs" if search.scheduler == "None" else spec.search.scheduler.resource
        table = Table(unit.lower(), "trials that reach it", "epochs to reach it")
        for rung in plan.rungs:
            table.add_row(f"{rung.resource:g}", str(rung.trials), f"{rung.epochs:g}")
        yield table
    if plan.whole_trials is not None and plan.whole_trials != plan.trials:
        yield f"trained to the end: {plan.whole_trials} of {plan.trials} trials"
    figures = {
        "expected epochs": plan.expected_epochs,
        "worst-case epochs": plan.worst_case_epochs,
        "worst-case GPU hours": plan.worst_case_gpu_hours,
        "worst-case price": plan.worst_case_price,
    }
    yield from (f"{name}: {value:.10g}" for name, value in figures.items() if value is not None)


def _run(study: FineTuneStudy, base: Path, into: Path, slots: int | None, console: Console) -> int:
    finished = _finished(study, into)
    if finished is not None:
        return _tell_finished(study, finished, into, console)
    has_begun(Storage.open(str(into)), parts_of(study.spec))  # a refused run changes nothing there
    from finetune_trainer.console import StudyConsole  # Ray and torch are slow to import
    from finetune_trainer.driver import Driver, Workplace
    from finetune_trainer.runtime.progress import LocalSink

    slots = slots or max(1, min(study.spec.cluster.slots, os.cpu_count() or 1))
    sink = LocalSink(into)
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
    finally:
        sink.release()
    result = into / RESULT
    if progress.findings != Findings() or not result.exists():  # else nothing was done
        ended = study.model_copy(update={"status": status_of(study, progress, started)})
        result.write_text(dump_yaml(ended.to_json()))
    how = {
        "Drained": f"Stopped ({progress.message}); run the same command to go on",
        "Finished": f"Finished: {progress.message}",
    }.get(
        progress.phase,
        f"Failed ({progress.reason}): {progress.message}; the same command tries again once that is mended",
    )
    _report(study, how, progress.findings, into, console)
    return 0 if progress.phase == "Finished" else 1


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
    for name, path in (("trials", into / TRIALS_CSV), ("study", into / RESULT)):
        if path.exists():
            console.print(f"{name + ':':8} {path.absolute()}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
