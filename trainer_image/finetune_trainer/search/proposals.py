"""Proposes trials. Trial n follows from the spec and the trials before it, never from results or parallelism."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

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

Params: TypeAlias = dict[str, Scalar]
"""JSON name → value of every searched hyperparameter that is active."""

_DRAWS = 100
"""Draws that may repeat earlier trials before a finite space is walked for what it still has."""


class Proposer:
    """Proposes one trial after the other, without duplicates.

    What was proposed is told by `record`, live and on resume alike, so the records keep their word even
    if a later version of this module would draw differently.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._spaces = spec.spaces
        self._random = spec.search.algorithm == "Random"
        self._seed = spec.search.seed
        self._recorded = 0
        self._seen: set[str] = set()
        self._grid = grid(self._spaces)
        self._next: Params | None = None
        self._exhausted = False

    def propose(self) -> Params | None:
        """The parameters of the trial after the last one recorded; None if the space has no more."""
        if self._next is None and not self._exhausted:
            self._next = self._draw_new() if self._random else self._walk()
            self._exhausted = self._next is None
        return self._next

    def record(self, params: Params) -> None:
        """`params` is the next trial."""
        self._recorded += 1
        self._seen.add(_key(params))
        self._next = None

    def _draw_new(self) -> Params | None:
        for attempt in range(_DRAWS):
            rng = random.Random(f"{self._seed}/{self._recorded}/{attempt}")
            params = _draw_params(rng.choice(self._spaces), rng)
            if _key(params) not in self._seen:
                return params
        return self._walk() if all(is_finite(space) for space in self._spaces) else None

    def _walk(self) -> Params | None:
        return next((params for params in self._grid if _key(params) not in self._seen), None)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


def _draw_params(space: SearchSpaceBase, rng: random.Random) -> Params:
    params: Params = {}
    for name, domain in _conditions_last(space):
        if is_active(domain, params):
            params[name] = draw(domain, rng)
    return params


def grid(spaces: list[SearchSpaceBase]) -> Iterator[Params]:
    """Every combination of finite domains, space by space, the last hyperparameter changing fastest.

    Made one by one. Combinations that several spaces have come several times.
    """
    for space in spaces:
        yield from _combinations(_conditions_last(space), {})


def _combinations(domains: list[tuple[str, Domain]], chosen: Params) -> Iterator[Params]:
    if not domains:
        yield chosen
        return
    (name, domain), rest = domains[0], domains[1:]
    if not is_active(domain, chosen):
        yield from _combinations(rest, chosen)
        return
    values = values_of(domain)
    if values is None:  # Grid admits only finite domains, and Random walks only finite spaces
        raise ValueError(f"{name} must have finitely many values (got {domain})")
    for value in values:
        yield from _combinations(rest, {**chosen, name: value})


def grid_size(spaces: list[SearchSpaceBase]) -> int | None:
    """Distinct combinations; None if a domain is continuous or there are more than 10,000."""
    if not all(is_finite(space) for space in spaces):
        return None
    seen: set[str] = set()
    for params in grid(spaces):
        seen.add(_key(params))
        if len(seen) > MAX_GRID:
            return None
    return len(seen)


def values_of(domain: Domain) -> Sequence[Scalar] | None:
    """Every value that can be drawn from the domain, whole numbers on a log scale included; None if continuous."""
    if isinstance(domain, IntegerDomain) and domain.scale == "Log":
        return range(cast(int, domain.min), cast(int, domain.max) + 1)
    return domain.finite_values()


def is_finite(space: SearchSpaceBase) -> bool:
    """Whether every domain of the space has finitely many values."""
    return all(values_of(domain) is not None for domain in space.domains().values())


def is_active(domain: Domain, params: Params) -> bool:
    """Whether the domain's `when` holds for the parameters drawn so far."""
    return all(params.get(name) in words for name, words in (domain.when or {}).items())


def draw(domain: Domain, rng: random.Random) -> Scalar:
    """One value of the domain: uniform on its scale, on its steps, or among its values.

    Numbers of a continuous range have 6 significant digits.
    """
    if isinstance(domain, ChoiceDomain):
        return cast(Scalar, rng.choice(domain.values))
    numeric = cast(NumericDomain, domain)
    values = numeric.finite_values()
    if values is not None:
        return rng.choice(values)
    low, high = cast(Any, numeric.min), cast(Any, numeric.max)
    if isinstance(numeric, IntegerDomain):
        exact = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
        return int(min(high, max(low, int(exact))))
    if numeric.scale == "Log":
        exact = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        exact = rng.uniform(low, high)
    return float(min(high, max(low, float(f"{exact:.6g}"))))


def _conditions_last(space: SearchSpaceBase) -> list[tuple[str, Domain]]:
    # A `when` names only unconditional domains, so these are drawn first.
    return sorted(space.domains().items(), key=lambda item: item[1].when is not None)
