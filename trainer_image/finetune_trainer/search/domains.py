"""Values drawn from the domains of search spaces."""

import math
import random
from collections.abc import Sequence
from typing import Any, cast

from finetune_api.combinations import Params, Space, conditions_last, is_active, values_of
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain, IntegerDomain, NumericDomain


def draw_params(space: Space, rng: random.Random) -> Params:
    """Independent draws from every domain whose `when` holds."""
    params: Params = {}
    for name, domain in conditions_last(space):
        if is_active(domain, params):
            params[name] = draw(domain, rng)
    return params


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


def coordinate(domain: Domain, value: float) -> float:
    """Where in [0, 1) `place` has `value` of a domain of numbers."""
    numeric = cast(NumericDomain, domain)
    values = numeric.finite_values()
    if values is not None:
        return (values.index(value) + 0.5) / len(values)
    low, high = cast(Any, numeric.min), cast(Any, numeric.max)
    if isinstance(numeric, IntegerDomain):
        low, high, value = low, high + 1, value + 0.5
    if numeric.scale == "Log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


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
    if not is_number(value):
        return None
    numeric = cast(NumericDomain, domain)
    inside = cast(float, numeric.min) <= cast(float, value) <= cast(float, numeric.max)
    return float(value) if inside else None


def is_number(value: object) -> bool:
    """Whether `value` is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def space_of(spaces: Sequence[Space], params: Params) -> Space | None:
    """The first space that has these values; None if none has."""
    for space in spaces:
        if all(n in space and member(space[n], value) is not None for n, value in params.items()):
            return space
    return None


def rounded(domain: NumericDomain, value: float) -> float:
    """The value with 6 significant digits, within the domain."""
    low, high = cast(Any, domain.min), cast(Any, domain.max)
    return float(min(high, max(low, float(f"{value:.6g}"))))
