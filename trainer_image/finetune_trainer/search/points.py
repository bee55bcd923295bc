"""The trials that a search begins with: those that a study names (`spec.search.points`), and what is recommended."""

import random
from collections.abc import Iterator, Sequence

from finetune_api.combinations import Params, Space, conditions_last, is_active
from finetune_api.spaces import Domain, NumericDomain
from finetune_trainer.errors import SpecError
from finetune_trainer.search.domains import draw, is_number, member
from finetune_trainer.search.problem import Problem

_FIELD = "spec.search.points"


_DRAWS = 1000
"""Draws of what a point leaves open, until the constraints hold."""


def named_points(problem: Problem) -> Iterator[Params]:
    """The points in order, each in the first space that has it, completed by draws from the study's seed.

    Raises SpecError with the field of a point that no space has, or that no completion makes admissible.
    """
    for index, given in enumerate(problem.points):
        space = _space_of(problem.spaces, index, given)
        rng = random.Random(f"{problem.search.seed}/point/{index}")
        completions = (_completed(space, given, rng) for _ in range(_DRAWS))
        params = next(filter(problem.admits, completions), None)
        if params is None:
            raise SpecError(
                f"{_FIELD}[{index}]", f"must fulfil spec.search.constraints (got {given})"
            )
        yield params


def recommended_point(problem: Problem) -> Params | None:
    """What is recommended, completed by draws from the study's seed; None if nothing is, or no completion is admissible."""
    given = problem.recommended
    if given is None:
        return None
    space = conditions_last(problem.spaces[given.space])
    rng = random.Random(f"{problem.search.seed}/recommended")
    completions = (_completed(space, given.params, rng) for _ in range(_DRAWS))
    return next(filter(problem.admits, completions), None)


def fitting(problem: Problem, config: Params) -> Params | None:
    """What one of the spaces would have drawn to train with `config`; None if none would."""
    for space in problem.spaces:
        params: Params = {}
        for name, domain in conditions_last(space):
            if is_active(domain, params):
                value = member(domain, config[name]) if name in config else None
                if value is None:
                    break
                params[name] = value
        else:
            others = {name: value for name, value in config.items() if name not in space}
            same = all(problem.defaults.get(name) == value for name, value in others.items())
            if same and problem.admits(params):
                return params
    return None


def _completed(space: list[tuple[str, Domain]], given: Params, rng: random.Random) -> Params:
    params: Params = {}
    for name, domain in space:
        if is_active(domain, params):
            drawn = draw(domain, rng)
            value = member(domain, given[name]) if name in given else None
            params[name] = drawn if value is None else value
    return params


def _space_of(spaces: Sequence[Space], index: int, given: Params) -> list[tuple[str, Domain]]:
    problems = []
    for space in map(conditions_last, spaces):
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
            numeric = isinstance(domains[name], NumericDomain)
            what = f"in its domain {domains[name].to_json()}"
            if numeric and not is_number(value):
                what = "a number"
            return name, f"must be {what} (got {value!r})"
        if not is_active(domains[name], given):
            return name, f"must go with {domains[name].when} (got {given})"
    return None
