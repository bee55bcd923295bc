"""What search spaces hold: their combinations, and values drawn from their domains."""

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

Params: TypeAlias = dict[str, Scalar]
"""JSON name → value of every searched hyperparameter that is active."""


def key_of(params: Params) -> str:
    """Text that is equal for equal parameters."""
    return json.dumps(params, sort_keys=True)


def draw_params(space: SearchSpaceBase, rng: random.Random) -> Params:
    """Independent draws from every domain whose `when` holds."""
    params: Params = {}
    for name, domain in conditions_last(space):
        if is_active(domain, params):
            params[name] = draw(domain, rng)
    return params


def grid(spaces: list[SearchSpaceBase]) -> Iterator[Params]:
    """Every combination of finite domains, space by space, the last hyperparameter changing fastest.

    Made one by one. Combinations that several spaces have come several times.
    """
    for space in spaces:
        yield from _combinations(conditions_last(space), {})


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
        seen.add(key_of(params))
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
    return _between(numeric, rng.random())


def place(domain: Domain, u: float) -> Scalar:
    """The value of the domain at `u` of [0, 1), in its order and on its scale."""
    if isinstance(domain, ChoiceDomain):
        return cast(Scalar, domain.values[int(u * len(domain.values))])
    numeric = cast(NumericDomain, domain)
    values = numeric.finite_values()
    return _between(numeric, u) if values is None else values[int(u * len(values))]


def _between(domain: NumericDomain, u: float) -> Scalar:
    low, high = cast(Any, domain.min), cast(Any, domain.max)
    if isinstance(domain, IntegerDomain):
        begin, end = math.log(low), math.log(high + 1)
        return int(min(high, max(low, int(math.exp(begin + (end - begin) * u)))))
    if domain.scale == "Log":
        begin, end = math.log(low), math.log(high)
        return rounded(domain, math.exp(begin + (end - begin) * u))
    return rounded(domain, low + (high - low) * u)


def member(domain: Domain, value: Scalar) -> Scalar | None:
    """`value` as a draw from the domain would give it (0 as 0.0); None if none would."""
    values = values_of(domain)
    if values is not None:
        return values[values.index(value)] if value in values else None
    numeric = cast(NumericDomain, domain)
    inside = cast(float, numeric.min) <= cast(float, value) <= cast(float, numeric.max)
    return float(value) if inside else None


def rounded(domain: NumericDomain, value: float) -> float:
    """The value with 6 significant digits, within the domain."""
    low, high = cast(Any, domain.min), cast(Any, domain.max)
    return float(min(high, max(low, float(f"{value:.6g}"))))


def conditions_last(space: SearchSpaceBase) -> list[tuple[str, Domain]]:
    """The domains by name, those with a `when` behind those it may name."""
    # A `when` names only unconditional domains, so these are drawn first.
    return sorted(space.domains().items(), key=lambda item: item[1].when is not None)
