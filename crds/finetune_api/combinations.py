"""The combinations that search spaces allow, and which of them a study admits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, cast

from finetune_api.constraints import Constraints
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import MAX_GRID, Domain, IntegerDomain

Params: TypeAlias = dict[str, Scalar]
"""JSON name → value of every searched hyperparameter that is active."""

Space: TypeAlias = Mapping[str, Domain]
"""The domains of one search space by JSON name."""


_WALK = 20 * MAX_GRID
"""How many combinations to try in a row where constraints admit few of them."""

_COUNT = 50_000
"""Evaluations of constraints that counting combinations may take: the operator does nothing else meanwhile."""


def key_of(params: Params) -> str:
    """Text that is equal for equal parameters."""
    return json.dumps(params, sort_keys=True)


def grid(spaces: Sequence[Space], constraints: Constraints) -> Iterator[Params]:
    """Every admitted combination of finite domains, space by space, the last hyperparameter changing fastest.

    They are made one by one. A combination that several spaces have comes several times. Ends when 200,000 in a
    row are not admitted.
    """
    for space in spaces:
        refused = 0
        for params in _combinations(space):
            if constraints.hold(params):
                refused = 0
                yield params
            else:
                refused += 1
                if refused > _WALK:
                    break


def _combinations(space: Space) -> Iterator[Params]:
    walked = [(name, domain, _finite(name, domain)) for name, domain in conditions_last(space)]

    def walk(place: int, chosen: Params) -> Iterator[Params]:
        if place == len(walked):
            yield chosen
            return
        name, domain, values = walked[place]
        if not is_active(domain, chosen):
            yield from walk(place + 1, chosen)
            return
        for value in values:
            yield from walk(place + 1, {**chosen, name: value})

    return walk(0, {})


def _finite(name: str, domain: Domain) -> Sequence[Scalar]:
    values = values_of(domain)
    if values is None:  # Grid admits only finite domains, and only finite spaces are walked
        raise ValueError(f"{name} must have finitely many values (got {domain})")
    return values


def grid_size(
    spaces: Sequence[Space], constraints: Constraints, most: int = MAX_GRID
) -> int | None:
    """Distinct admitted combinations; None if a domain is continuous, or there are too many to count.

    Too many means more than `most`, or more than can be counted with 50,000 evaluations of constraints.
    """
    if not all(is_finite(space) for space in spaces):
        return None
    seen: set[str] = set()
    found = looked_at = 0
    for space in spaces:
        for params in _combinations(space):
            looked_at += 1
            if constraints.hold(params):
                if len(spaces) > 1:  # within one space no combination comes twice
                    seen.add(key_of(params))
                found = len(seen) if seen else found + 1
            if found > most or looked_at * len(constraints) > _COUNT:
                return None
    return found


def values_of(domain: Domain) -> Sequence[Scalar] | None:
    """Every value that can be drawn from the domain, including whole numbers on a log scale; None if continuous."""
    if isinstance(domain, IntegerDomain) and domain.scale == "Log":
        return range(cast(int, domain.min), cast(int, domain.max) + 1)
    return domain.finite_values()


def is_finite(space: Space) -> bool:
    """Whether every domain of the space has finitely many values."""
    return all(values_of(domain) is not None for domain in space.values())


def is_active(domain: Domain, params: Params) -> bool:
    """Whether the domain's `when` holds for the parameters drawn so far."""
    return all(params.get(name) in words for name, words in (domain.when or {}).items())


def conditions_last(space: Space) -> list[tuple[str, Domain]]:
    """The domains by name; those with a `when` come after those that it may name."""
    # A `when` names only unconditional domains, so these are drawn first.
    return sorted(space.items(), key=lambda item: item[1].when is not None)
