"""What `Auto` stands for: a search chosen once for each study, from its spaces, budget and length of training.

The rule, and the measurements behind it, are in docs/search.md. A study keeps what was chosen when it began
(`records/study.json` in its storage, `status.search` on a cluster), whatever becomes of its budget.
"""

import math
from collections.abc import Sequence

from finetune_api.combinations import Space, grid_size
from finetune_api.constraints import Constraints, constraints_of
from finetune_api.rungs import rung_resources
from finetune_api.spaces import MAX_GRID
from finetune_api.status import ChosenSearch
from finetune_api.study import Budget, Scheduler, Search, StudySpec

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
    ConstraintError if a constraint cannot be evaluated.
    """
    if search.algorithm != "Auto":
        return search
    trials = _trials(spaces, budget, constraints)
    gaussian = (
        len(spaces) == 1
        and objectives == 1
        and (trials is None or trials <= _GP_TRIALS)
        and not any(domain.when for domain in spaces[0].values())
    )
    scheduler = search.scheduler
    if scheduler.type == "Auto":
        if objectives > 1 or any("epochs" in space for space in spaces):
            scheduler = _of_type(
                scheduler, "None"
            )  # rungs compare one objective at the same epochs
        elif gaussian or scheduler.resource in ("Samples", "Seconds"):
            # GP makes use of a few results at once; Samples and Seconds have no maximum for brackets.
            scheduler = _of_type(scheduler, "ASHA")
        else:
            scheduler = _of_type(scheduler, "Hyperband")
        if scheduler.type != "None" and scheduler.resource == "Epochs":
            scheduler = _with_rungs(scheduler, trials, epochs)
    algorithm = "GP" if gaussian else "TPE"
    return search.model_copy(update={"algorithm": algorithm, "scheduler": scheduler})


def _trials(spaces: Sequence[Space], budget: Budget, constraints: Constraints) -> int | None:
    """The most trials that there will be; None if their number has no limit."""
    size = grid_size(spaces, constraints, budget.max_trials or MAX_GRID)
    return min((n for n in (size, budget.max_trials) if n is not None), default=None)


def _with_rungs(scheduler: Scheduler, trials: int | None, epochs: int) -> Scheduler:
    """The scheduler with as many rungs as leave _WHOLE of so many trials to be trained whole; None if no rung does."""
    least, factor = scheduler.min_resource, scheduler.reduction_factor
    rungs = 0
    while trials is not None and _WHOLE * factor ** (rungs + 1) <= trials:
        rungs += 1
    while True:
        first = least if trials is None else max(least, math.ceil(epochs / factor**rungs))
        changed = scheduler.model_copy(update={"min_resource": min(first, epochs)})
        levels = len(rung_resources(changed, epochs))
        if levels == 1:
            return _of_type(scheduler, "None")
        if trials is None or levels <= rungs + 1:
            return changed
        rungs -= 1  # rounding up has made room for one more


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

    Raises ConstraintError if a constraint cannot be evaluated that decides how many trials there are.
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
