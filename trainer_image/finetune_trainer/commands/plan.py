"""`finetune plan`: is the study right, and what will it cost?"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from finetune_api.plan import make_plan, why_none_whole
from finetune_api.status import StudyPlan
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_trainer.commands.manifests import add_manifest, study_of
from finetune_trainer.environment import WorkerResources
from finetune_trainer.search.points import recommended_point
from finetune_trainer.search.problem import Problem, Recommended
from finetune_trainer.search.proposals import Proposer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune plan`."""
    add_manifest(parser)
    parser.add_argument(
        "--manifest-only", action="store_true", help="do not check the data and the model"
    )
    parser.add_argument(
        "--seconds-per-epoch",
        type=float,
        help="duration of an epoch in a slot, to give worst-case GPU hours and price",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Check the study and print its plan; 0, for whatever is wrong is raised."""
    study = study_of(parsed, console)
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
    for line in plan_lines(study, plan, first):
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


def plan_lines(
    study: FineTuneStudy, plan: StudyPlan, recommended: Recommended | None
) -> Iterator[str | Table]:
    """What the study will do and cost, in lines and tables."""
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
