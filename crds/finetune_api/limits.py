"""The limits of a study, as they are kept when it ends."""

from finetune_api.search import Budget
from finetune_api.status import Limits


def limits_of(budget: Budget, target: float | None) -> Limits:
    """The limits that `budget` and the objective's `target` set."""
    return Limits(**budget.__dict__, target=target)
