"""The trials that a study names itself: `spec.search.points`."""

import random
from collections.abc import Iterator

from finetune_api.spaces import Domain
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.search.domains import Params, conditions_last, draw, is_active, member

_FIELD = "spec.search.points"


def named_points(spec: StudySpec) -> Iterator[Params]:
    """The points in order, each in the first space that has it, completed by draws from the study's seed.

    Raises SpecError with the field of a point that no space has.
    """
    for index, point in enumerate(spec.search.points):
        given: Params = point.to_json()
        space = _space_of(spec, index, given)
        rng = random.Random(f"{spec.search.seed}/point/{index}")
        params: Params = {}
        for name, domain in space:
            if is_active(domain, params):
                drawn = draw(domain, rng)
                value = member(domain, given[name]) if name in given else None
                params[name] = drawn if value is None else value
        yield params


def _space_of(spec: StudySpec, index: int, given: Params) -> list[tuple[str, Domain]]:
    problems = []
    for space in (conditions_last(space) for space in spec.spaces):
        problem = _problem(dict(space), given)
        if problem is None:
            return space
        problems.append(problem)
    # With several spaces, what keeps the point from the one that has most of its names.
    name, message = max(problems, key=lambda problem: list(given).index(problem[0]))
    raise SpecError(f"{_FIELD}[{index}].{name}", message)


def _problem(domains: dict[str, Domain], given: Params) -> tuple[str, str] | None:
    """The first name at fault, and what must hold; None if the space has the point."""
    for name, value in given.items():
        if name not in domains:
            searched = ", ".join(sorted(domains))
            return name, f"must be searched (the space has {searched})"
        if member(domains[name], value) is None:
            return name, f"must be in its domain {domains[name].to_json()} (got {value})"
        if not is_active(domains[name], given):
            return name, f"must go with {domains[name].when} (got {given})"
    return None
