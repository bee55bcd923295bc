"""What a study will cost at most, before anything runs."""

from collections import Counter
from collections.abc import Callable
from itertools import islice

from finetune_api.auto import described, most_trials, settled
from finetune_api.combinations import values_of
from finetune_api.constraints import constraints_of
from finetune_api.feasibility import metric_constraints_of
from finetune_api.rungs import placements, promotions, resources_of
from finetune_api.status import ChosenSearch, PlannedRung, StudyPlan
from finetune_api.study import StudySpec


def make_plan(
    spec: StudySpec,
    rows: int | None = None,
    gpu_seconds_per_epoch: float | None = None,
    choice: ChosenSearch | None = None,
) -> StudyPlan:
    """The plan of a study.

    `rows`, the training rows, are needed for its epochs if rungs are Samples; GPU hours and price follow
    from `gpu_seconds_per_epoch`. `choice` is what was chosen for a study with algorithm Auto that has begun. Raises
    ExpressionError if a constraint cannot be evaluated.
    """
    metric_constraints_of(spec)
    spec = settled(spec, choice)
    trials = _trials(spec)
    if trials is None:
        return StudyPlan(search=described(spec.search))
    each = spec.validation.trainings
    plan = StudyPlan(search=described(spec.search), trials=trials, trainings=trials * each)
    if spec.search.algorithm == "PBT":
        rungs, epochs = _steps(spec, trials)
        whole = rungs[-1].trials if rungs and rungs[-1].resource == spec.max_epochs else 0
        planned = {"rungs": rungs[:32], "expected_epochs": epochs, "whole_trials": whole}
        plan = plan.model_copy(update=planned)
        return _worst(plan, spec, epochs, gpu_seconds_per_epoch)
    if any("epochs" in space.domains() for space in spec.spaces):  # never with several rungs
        plan = plan.model_copy(update={"whole_trials": trials})
        return _worst(plan, spec, trials * each * _longest(spec), gpu_seconds_per_epoch)
    expected, worst = _reaching(spec, trials)
    resources = resources_of(spec)
    if spec.search.scheduler.resource == "Samples" and spec.search.scheduler.type != "None":
        if rows is None:
            return plan
        top = next(level for level, resource in enumerate(resources) if resource >= rows)
        resources = (*resources[:top], rows)
    elif spec.search.scheduler.resource == "Seconds" and spec.search.scheduler.type != "None":
        # How many epochs the seconds allow is unknown, only that no trial needs more than all its epochs.
        return _worst(plan, spec, trials * each * spec.max_epochs, gpu_seconds_per_epoch)
    costs = _costs(spec, resources)
    shown = [
        PlannedRung(resource=resource, trials=count, epochs=round(cost * count, 3))
        for resource, cost, count in zip(resources, costs, expected, strict=False)
    ]
    planned = {
        "rungs": shown[:32],
        "expected_epochs": _sum(costs, expected),
        "whole_trials": shown[-1].trials,
    }
    plan = plan.model_copy(update=planned)
    return _worst(plan, spec, _sum(costs, worst), gpu_seconds_per_epoch)


def _steps(spec: StudySpec, trials: int) -> tuple[list[PlannedRung], float]:
    """The steps of a population, in each of which a trial continues one of the step before, and their epochs."""
    search, most = spec.search, spec.max_epochs
    rungs, epochs, before = [], 0, 0
    while trials > 0 and before < most:
        count, end = min(trials, search.population_size), before + search.perturbation_interval
        end = min(end, most)
        rungs.append(PlannedRung(resource=end, trials=count, epochs=count * (end - before)))
        epochs += count * (end - before)
        trials, before = trials - count, end
    return rungs, epochs


def why_none_whole(plan: StudyPlan, spec: StudySpec) -> str:
    """Why no trial will be trained to its end; empty if one may be.

    A limit of GPU hours or price is known to be too low only if the plan has hours.
    """
    if plan.whole_trials == 0:
        return (
            f"no trial will be trained to its end: the population needs "
            f"{-(-spec.max_epochs // spec.search.perturbation_interval)} steps of each member, "
            f"spec.budget.maxTrials leaves {plan.trials} steps in all"
        )
    if not plan.worst_case_epochs or plan.worst_case_gpu_hours is None:
        return ""
    whole = spec.validation.trainings * spec.max_epochs / plan.worst_case_epochs
    limits = (
        ("maxGpuHours", "GPU hours", plan.worst_case_gpu_hours, spec.budget.max_gpu_hours),
        ("maxPrice", "", plan.worst_case_price, spec.budget.max_price),
    )
    for field, unit, worst, limit in limits:
        if worst is not None and limit is not None and worst * whole > limit:
            needs = f"{worst * whole:.3g} {unit}".rstrip()
            return (
                f"no trial will be trained to its end: one alone needs {needs}, "
                f"spec.budget.{field} is {limit:g}"
            )
    return ""


def _trials(spec: StudySpec) -> int | None:
    spaces = [space.domains() for space in spec.spaces]
    trials = most_trials(spaces, spec.budget, constraints_of(spec))
    if spec.search.algorithm != "PBT":
        return trials
    size = spec.search.population_size * -(-spec.max_epochs // spec.search.perturbation_interval)
    return min(size, spec.budget.max_trials or size)


def _reaching(spec: StudySpec, trials: int) -> tuple[list[int], list[int]]:
    """Trials at each rung: if each promotes its share and no more, and at worst."""
    scheduler, levels = spec.search.scheduler, len(resources_of(spec))
    waits = scheduler.type in ("SuccessiveHalving", "Hyperband")

    def share(results: int) -> int:
        return max(min(results, 1), promotions(scheduler, results))

    def premature(results: int) -> int:
        """If each trial is better than all before it; no other order of results needs more.

        ASHA and PASHA count half of the results that are on their way, one for each of the other slots.
        """
        if scheduler.type == "MedianStop":
            return results
        others = min(spec.cluster.slots, spec.budget.max_parallel_trials or spec.cluster.slots) - 1
        first = next(
            (
                count
                for count in range(1, results + 1)
                if count + min(others, results - count) // 2 >= scheduler.reduction_factor
            ),
            results + 1,
        )
        return max(min(results, 1), results - first + 1)

    brackets = Counter(islice(placements(scheduler, levels), trials))
    expected, worst = [0] * levels, [0] * levels
    for placement, count in brackets.items():
        _climb(expected, placement.first, count, share)
        _climb(worst, placement.first, count, share if waits else premature)
        if scheduler.resource != "Samples":  # with Samples a trial begins anew at each rung
            for passed in range(placement.first):
                expected[passed] += count
                worst[passed] += count
    return expected, worst


def _climb(reaching: list[int], first: int, count: int, promoted: Callable[[int], int]) -> None:
    for level in range(first, len(reaching)):
        reaching[level] += count
        count = promoted(count)


def _costs(spec: StudySpec, resources: tuple[float, ...]) -> list[float]:
    """Epochs that a trial trains from each rung to the next, over its folds and repeats."""
    scheduler, validation = spec.search.scheduler, spec.validation
    if scheduler.type != "None" and scheduler.resource == "Samples":  # begins anew at each
        each = validation.trainings * spec.max_epochs
        return [each * resource / resources[-1] for resource in resources]
    if scheduler.type != "None" and scheduler.resource == "Folds":
        each = validation.repeats * spec.max_epochs
    else:
        each = validation.trainings
    return [
        each * (after - before) for before, after in zip((0, *resources), resources, strict=False)
    ]


def _sum(costs: list[float], reaching: list[int]) -> float:
    return round(sum(cost * trials for cost, trials in zip(costs, reaching, strict=False)), 3)


def _worst(
    plan: StudyPlan, spec: StudySpec, epochs: float, gpu_seconds_per_epoch: float | None
) -> StudyPlan:
    plan = plan.model_copy(update={"worst_case_epochs": epochs})
    return plan if gpu_seconds_per_epoch is None else priced(plan, spec, gpu_seconds_per_epoch)


def priced(plan: StudyPlan, spec: StudySpec, gpu_seconds_per_epoch: float) -> StudyPlan:
    """The plan with GPU hours and price, at so many GPU seconds per epoch, given or measured."""
    if plan.worst_case_epochs is None:
        return plan
    hours = plan.worst_case_epochs * gpu_seconds_per_epoch / 3600
    changes: dict[str, float] = {"worst_case_gpu_hours": hours}
    if spec.budget.price_per_gpu_hour is not None:
        changes["worst_case_price"] = hours * spec.budget.price_per_gpu_hour
    return plan.model_copy(update=changes)


def _longest(spec: StudySpec) -> int:
    """The most epochs that a trial can have."""
    domains = [space.domains().get("epochs") for space in spec.spaces]
    values = [values_of(domain) if domain else (spec.max_epochs,) for domain in domains]
    return max(int(max(found)) for found in values if found)
