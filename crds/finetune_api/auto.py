"""What `Auto` stands for: a search chosen once for each study, from its spaces, budget and length of training.

The rule, and the measurements behind it, are in docs/search.md. A study keeps what was chosen when it began
(`records/study.json` in its storage, `status.search` on a cluster), whatever becomes of its budget.
"""

import math
from collections.abc import Sequence

from finetune_api.combinations import Space, grid_size
from finetune_api.constraints import Constraints, constraints_of
from finetune_api.rungs import rung_resources
from finetune_api.search import Budget, Scheduler, Search
from finetune_api.spaces import MAX_GRID
from finetune_api.status import ChosenSearch
from finetune_api.study import StudySpec

_WHOLE = 2
"""Trials that the rungs leave to be trained whole, at least, if each rung promotes its share."""

_GP_TRIALS = 200
"""Most trials that GP is chosen for, where their number is known: its proposals take longer the more it knows."""


def choose(
    search: Search,
    spaces: Sequence[Space],
    budget: Budget,
    epochs: int,
    constraints: Constraints,
    objectives: int = 1,
) -> Search:
    """The search that `search` stands for in a study that begins now: nothing of it is Auto.

    `epochs` are those of a whole training, `objectives` are counted with the secondary ones. Raises
    ExpressionError if a constraint cannot be evaluated.
    """
    if search.algorithm != "Auto":
        return search
    trials = most_trials(spaces, budget, constraints)
    gaussian = (
        len(spaces) == 1
        and objectives == 1
        and (trials is None or trials <= _GP_TRIALS)
        and not any(domain.when for domain in spaces[0].values())
    )
    scheduler = search.scheduler
    if scheduler.type == "Auto":
        if objectives > 1 or any("epochs" in space for space in spaces):
            kind = "None"  # rungs compare one objective at the same epochs
        elif gaussian or scheduler.resource in ("Samples", "Seconds"):
            kind = "ASHA"  # GP uses a few results at once; Samples and Seconds have no maximum for brackets
        else:
            kind = "Hyperband"
        scheduler = _of_type(scheduler, kind)
        if kind != "None" and scheduler.resource == "Epochs":
            scheduler = _with_rungs(scheduler, trials, epochs)
    algorithm = "GP" if gaussian else "TPE"
    return search.model_copy(update={"algorithm": algorithm, "scheduler": scheduler})


def most_trials(spaces: Sequence[Space], budget: Budget, constraints: Constraints) -> int | None:
    """The most trials that there will be: of the budget, or all combinations; None if their number has no limit."""
    size = grid_size(spaces, constraints, budget.max_trials or MAX_GRID)
    return min((n for n in (size, budget.max_trials) if n is not None), default=None)


def _with_rungs(scheduler: Scheduler, trials: int | None, epochs: int) -> Scheduler:
    """The scheduler with a first rung that suits so many trials; None if there is no rung for them."""
    first = scheduler.min_resource if trials is None else _first_rung(scheduler, trials, epochs)
    changed = scheduler.model_copy(update={"min_resource": first})
    return changed if len(rung_resources(changed, epochs)) > 1 else _of_type(scheduler, "None")


def _first_rung(scheduler: Scheduler, trials: int, epochs: int) -> float:
    """The lowest first rung from which _WHOLE of so many trials are trained whole; all epochs if there is none."""
    factor, rungs = scheduler.reduction_factor, 0
    while _WHOLE * factor ** (rungs + 1) <= trials:
        rungs += 1
    for below in range(rungs, 0, -1):
        first: float = min(max(scheduler.min_resource, math.ceil(epochs / factor**below)), epochs)
        changed = scheduler.model_copy(update={"min_resource": first})
        if len(rung_resources(changed, epochs)) <= below + 1:  # rounding up makes room for one more
            return first
    return epochs


def _of_type(scheduler: Scheduler, kind: str) -> Scheduler:
    return scheduler.model_copy(update={"type": kind})


def described(search: Search) -> ChosenSearch:
    """The choice that a search without Auto is."""
    rungs = search.scheduler.type != "None"
    return ChosenSearch(
        algorithm=search.algorithm,
        scheduler=search.scheduler.type,
        min_resource=search.scheduler.min_resource if rungs else None,
    )


def restored(search: Search, choice: ChosenSearch) -> Search:
    """`search` with what was chosen for it before. Raises ValidationError if this version does not know it."""
    document = search.to_json()
    scheduler = {**document["scheduler"], "type": choice.scheduler}
    if choice.min_resource is not None:
        scheduler["minResource"] = choice.min_resource
    return Search.model_validate(
        {**document, "algorithm": choice.algorithm, "scheduler": scheduler}
    )


def settled(spec: StudySpec, choice: ChosenSearch | None = None) -> StudySpec:
    """The study with a search of which nothing is Auto: that of `choice` if it has begun, else as `choose`.

    Raises ExpressionError if a constraint cannot be evaluated that decides how many trials there are.
    """
    if spec.search.algorithm != "Auto":
        return spec
    if choice is not None:
        search = restored(spec.search, choice)
    else:
        spaces = [space.domains() for space in spec.spaces]
        objectives, constraints = 1 + len(spec.objective.secondary), constraints_of(spec)
        search = choose(spec.search, spaces, spec.budget, spec.max_epochs, constraints, objectives)
    return spec.model_copy(update={"search": search})
