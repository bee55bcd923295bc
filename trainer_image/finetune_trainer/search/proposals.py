"""Proposes trials. Trial n is a function of the spec and n alone, never of results or parallelism."""

import itertools
import json
import math
import random
from collections.abc import Iterator
from typing import Any, cast

from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import (
    MAX_GRID,
    ChoiceDomain,
    Domain,
    IntegerDomain,
    NumericDomain,
    SearchSpaceBase,
)
from finetune_api.study import StudySpec

Params = dict[str, Scalar]

_DRAWS = 100
"""Draws after which a random search looks for an untried combination systematically."""


class Proposer:
    """The study's proposals, in order, without duplicates."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._made: list[Params] = []
        self._seen: set[str] = set()
        self._grid: Iterator[Params] = grid(spec.spaces)
        self._exhausted = False

    def propose(self, number: int) -> Params | None:
        """The parameters of trial `number` (JSON names); None if the space has no such trial."""
        while len(self._made) <= number and not self._exhausted:
            params = self._next()
            if params is None:
                self._exhausted = True
            else:
                self._made.append(params)
        return self._made[number] if number < len(self._made) else None

    def _next(self) -> Params | None:
        if self._spec.search.algorithm == "Random":
            for attempt in range(_DRAWS):
                params = self._draw(len(self._made), attempt)
                if self._is_new(params):
                    return params
            if not all(is_finite(space) for space in self._spec.spaces):
                return None
        return next((params for params in self._grid if self._is_new(params)), None)

    def _is_new(self, params: Params) -> bool:
        key = json.dumps(params, sort_keys=True)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _draw(self, number: int, attempt: int) -> Params:
        rng = random.Random(f"{self._spec.search.seed}/{number}/{attempt}")
        space = rng.choice(self._spec.spaces)
        params: Params = {}
        for name, domain in _conditions_last(space):
            if is_active(domain, params):
                params[name] = draw(domain, rng)
        return params


def grid(spaces: list[SearchSpaceBase]) -> Iterator[Params]:
    """Every combination of finite domains, space by space, in the order of declaration; may repeat itself."""
    for space in spaces:
        domains = dict(_conditions_last(space))
        free = {name: domain for name, domain in domains.items() if domain.when is None}
        bound = {name: domain for name, domain in domains.items() if domain.when is not None}
        for values in itertools.product(*(_finite(domain) for domain in free.values())):
            params = dict(zip(free, values, strict=True))
            active = {name: domain for name, domain in bound.items() if is_active(domain, params)}
            for more in itertools.product(*(_finite(domain) for domain in active.values())):
                yield {**params, **dict(zip(active, more, strict=True))}


def grid_size(spaces: list[SearchSpaceBase]) -> int | None:
    """Distinct combinations; None if a domain is continuous or there are more than 10,000."""
    if not all(is_finite(space) for space in spaces):
        return None
    seen: set[str] = set()
    for count, params in enumerate(grid(spaces)):
        seen.add(json.dumps(params, sort_keys=True))
        if len(seen) > MAX_GRID or count > 10 * MAX_GRID:
            return None
    return len(seen)


def is_finite(space: SearchSpaceBase) -> bool:
    """Whether every domain of the space has finitely many values."""
    return all(domain.finite_values() is not None for domain in space.domains().values())


def is_active(domain: Domain, params: Params) -> bool:
    """Whether the domain's `when` holds for the parameters drawn so far."""
    return all(params.get(name) in words for name, words in (domain.when or {}).items())


def draw(domain: Domain, rng: random.Random) -> Scalar:
    """One value of the domain: uniform on its scale, on its steps, or among its values."""
    if isinstance(domain, ChoiceDomain):
        return cast(Scalar, rng.choice(domain.values))
    numeric = cast(NumericDomain, domain)
    if numeric.values is not None:
        return cast(Scalar, rng.choice(numeric.values))
    low, high = cast(Any, numeric.min), cast(Any, numeric.max)
    if numeric.step is not None:
        return rng.choice(_finite(numeric))
    if isinstance(numeric, IntegerDomain):
        if numeric.scale != "Log":
            return rng.randint(low, high)
        exact = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
        return int(min(high, max(low, int(exact))))
    if numeric.scale == "Log":
        exact = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        exact = rng.uniform(low, high)
    rounded = float(f"{exact:.6g}")
    return float(min(high, max(low, rounded)))


def _finite(domain: Domain) -> tuple[Scalar, ...]:
    values = domain.finite_values()
    if values is None:  # the contract admits Grid only over finite domains
        raise ValueError(f"domain must be finite (got {domain})")
    return values


def _conditions_last(space: SearchSpaceBase) -> list[tuple[str, Domain]]:
    # A `when` names only unconditional domains, so these are drawn first.
    return sorted(space.domains().items(), key=lambda item: item[1].when is not None)
