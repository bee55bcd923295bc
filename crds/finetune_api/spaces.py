"""Search spaces: the domain of each hyperparameter, typed by the hyperparameter itself.

The schema stays within what the API server can check at its cost limits: a `when` is a map of string
lists, so one rule checks all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args, overload

from pydantic import Field, create_model
from pydantic.config import JsonDict

from finetune_api.hints import nearest
from finetune_api.hyperparameters import (
    CATEGORICAL,
    JSON_NAMES,
    Hyperparameters,
    Scalar,
    described,
    json_name,
    kind_of,
)
from finetune_api.schema import Model, Rule

MAX_VALUES = 64
MAX_NAMES = 16
MAX_SPACES = 8
MAX_GRID = 10_000

ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}

When: TypeAlias = dict[
    str,
    Annotated[
        list[Annotated[str, Field(max_length=32)]],
        Field(min_length=1, max_length=16, json_schema_extra=ATOMIC),
    ],
]

_UNIQUE = Rule(
    cel="!has(self.values) || self.values.all(v, self.values.exists_one(w, w == v))",
    message="values must be unique",
    holds=lambda self: self.values is None or len(set(self.values)) == len(self.values),
    field=".values",
)


class Steps(Sequence[Scalar]):
    """The numbers from `low` up to at most `high` in steps, computed on demand: there may be billions."""

    def __init__(self, low: float, high: float, step: float, integer: bool) -> None:
        self._low, self._high, self._step, self._integer = low, high, step, integer
        self._count = int(min((high - low) / step + 1e-9, 2.0**53)) + 1

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: object) -> bool:
        index = self._nearest(value)
        return index is not None and 0 <= index < self._count and self[index] == value

    def index(self, value: Scalar, start: int = 0, stop: int | None = None) -> int:
        """The position of `value`, computed without a scan. Raises ValueError if it is not there."""
        index = self._nearest(value) if value in self else None
        if index is None or not start <= index < (self._count if stop is None else stop):
            raise ValueError(f"{value!r} is not in {self._low}, {self._low + self._step}, …")
        return index

    def _nearest(self, value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return round((value - self._low) / self._step)

    @overload
    def __getitem__(self, index: int) -> Scalar: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Scalar]: ...
    def __getitem__(self, index: int | slice) -> Scalar | Sequence[Scalar]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        value = self._low + range(self._count)[index] * self._step
        if self._integer:
            return int(value)
        return min(max(float(f"{value:.12g}"), self._low), self._high)


class Domain(Model):
    """The values one hyperparameter can take in a search space."""

    when: When | None = Field(None, min_length=1, max_length=8)
    """Search this hyperparameter only in trials where each named hyperparameter has one of the listed
    values; in other trials it has its fixed value or default."""

    def finite_values(self) -> Sequence[Scalar] | None:
        """Every value of the domain in ascending or written order; None if it is continuous."""
        raise NotImplementedError


class ChoiceDomain(Domain):
    """A domain of words or names."""

    RULES: ClassVar[tuple[Rule, ...]] = (_UNIQUE,)

    values: list[Any]

    def finite_values(self) -> Sequence[Scalar]:
        """The listed values, in the order written."""
        return tuple(self.values)


def _has_all(self: Any) -> bool:
    return self.min is not None and self.max is not None


def _number_rules(zero: str) -> tuple[Rule, ...]:
    return (
        _UNIQUE,
        Rule(
            cel="has(self.values) ? !has(self.min) && !has(self.max) && !has(self.step) && !has(self.scale)"
            " : has(self.min) && has(self.max)",
            message="must have either values, or min and max",
            holds=lambda self: (
                (self.min, self.max, self.step, self.scale) == (None, None, None, None)
                if self.values is not None
                else _has_all(self)
            ),
        ),
        Rule(
            cel="!has(self.min) || !has(self.max) || self.min < self.max",
            message="min must be below max",
            holds=lambda self: not _has_all(self) or self.min < self.max,
            field=".min",
            message_cel="'min must be below max (got %s, %s)'.format([self.min, self.max])",
            detail=lambda self: f"got {self.min:g}, {self.max:g}",
        ),
        Rule(
            cel="!has(self.scale) || self.scale != 'Log' || "
            f"(!has(self.step) && (!has(self.min) || self.min > {zero}))",
            message="scale Log must have min above 0 and no step",
            holds=lambda self: (
                self.scale != "Log" or (self.step is None and (self.min is None or self.min > 0))
            ),
            field=".scale",
        ),
        Rule(
            cel="!has(self.step) || !has(self.min) || !has(self.max) || self.step <= self.max - self.min",
            message="step must be at most max - min",
            holds=lambda self: (
                self.step is None or not _has_all(self) or self.step <= self.max - self.min
            ),
            field=".step",
        ),
    )


class NumericDomain(Domain):
    """A domain of numbers: listed `values`, or a range from `min` to `max`."""

    values: list[Any] | None = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    scale: Literal["Linear", "Log"] | None = None
    """Scale on which values are drawn. Default Linear."""

    integer: ClassVar[bool] = False

    def finite_values(self) -> Sequence[Scalar] | None:
        """Listed values, or the steps from `min` up to at most `max`; None for a continuous range."""
        if self.values is not None:
            return tuple(self.values)
        step = self.step
        if step is None and self.integer and self.scale != "Log":
            step = 1
        if step is None or self.min is None or self.max is None:
            return None
        return Steps(self.min, self.max, step, self.integer)


class FloatDomain(NumericDomain):
    """A domain of real numbers."""

    RULES: ClassVar[tuple[Rule, ...]] = _number_rules("0.0")

    values: list[float] | None = None


class IntegerDomain(NumericDomain):
    """A domain of whole numbers; without `scale: Log` it has a step of 1 unless another is given."""

    RULES: ClassVar[tuple[Rule, ...]] = _number_rules("0")
    integer: ClassVar[bool] = True

    values: list[int] | None = None
    min: int | None = None
    max: int | None = None
    step: int | None = None


def _values(item: Any, size: int) -> Any:
    return Annotated[
        list[item],
        Field(min_length=1, max_length=size, description="Candidates.", json_schema_extra=ATOMIC),
    ]


def _domain(name: str) -> type[Domain]:
    field = Hyperparameters.model_fields[name]
    title = json_name(name)[0].upper() + json_name(name)[1:] + "Domain"
    doc = f"Domain of {json_name(name)}. {described(name)}"
    if name in CATEGORICAL:
        words = get_args(field.annotation)
        values = _values(field.annotation, len(words))
        return create_model(title, __base__=ChoiceDomain, __doc__=doc, values=(values, ...))
    kind = kind_of(name)
    if kind is str:
        names = _values(Annotated[(str, Field(min_length=1), *field.metadata)], MAX_NAMES)
        return create_model(title, __base__=ChoiceDomain, __doc__=doc, values=(names, ...))
    scalar = Annotated[(kind, *field.metadata)]  # type: ignore[valid-type]  # the type is made here
    fields: dict[str, Any] = {
        "values": (_values(scalar, MAX_VALUES) | None, None),
        "min": (scalar | None, Field(None, description="Smallest value.")),
        "max": (scalar | None, Field(None, description="Largest value.")),
        "step": (
            Annotated[kind, Field(gt=0)] | None,
            Field(None, description="Distance between neighbouring values."),
        ),
    }
    base = IntegerDomain if kind is int else FloatDomain
    return create_model(title, __base__=base, __doc__=doc, **fields)


DOMAINS: dict[str, type[Domain]] = {name: _domain(name) for name in Hyperparameters.model_fields}
"""The domain model of each hyperparameter, by Python name."""


def _when_cel(space: str) -> str:
    conditions = ", ".join(f"{space}.?{json_name(n)}.?when.orValue({{}})" for n in DOMAINS)
    arms = " : ".join(
        f"k == '{json_name(k)}' ? has({space}.{json_name(k)}) && !has({space}.{json_name(k)}.when)"
        f" && w[k].all(v, v in {space}.{json_name(k)}.values)"
        for k in CATEGORICAL
    )
    return f"[{conditions}].all(w, w.all(k, {arms} : false))"


_WORDS = {json_name(name): DOMAINS[name] for name in CATEGORICAL}
"""Hyperparameters (JSON names) whose values are words."""


def when_may_not_name(name: str) -> str | None:
    """Why a `when` of a manifest cannot name this hyperparameter (JSON name) in any space; None if it can."""
    if name in _WORDS:
        return None
    only = f"when may only name hyperparameters whose values are words ({', '.join(_WORDS)})"
    if name not in JSON_NAMES:
        meant = nearest(name, list(_WORDS))
        guess = f"; did you mean {meant}?" if meant else ""
        return f"{only}; {name} is no hyperparameter{guess}"
    kinds = {str: "the name of a model", int: "a number", float: "a number"}
    return f"{only}; {name} is {kinds[kind_of(JSON_NAMES[name])]}"


def _wrong_whens(spec: Any) -> list[tuple[str, str]]:
    """Where (`.searchSpaces[0].momentum.when.optimizer`) a `when` names what its space does not have, and what must hold."""
    return [
        (f".searchSpaces[{number}].{name}.when.{key}", problem)
        for number, space in enumerate(spec.search_spaces)
        for name, domain in space.domains().items()
        for key, words in (domain.when or {}).items()
        if (problem := _wrong_when(key, words, space.domains())) is not None
    ]


def _wrong_when(key: str, words: Sequence[str], domains: Mapping[str, Domain]) -> str | None:
    refused = when_may_not_name(key)
    if refused is not None:
        return refused
    target = domains.get(key)
    if not isinstance(target, ChoiceDomain):
        return f"{key} must be searched in the same space (which has {', '.join(domains)})"
    if target.when is not None:
        return f"{key} must have no when of its own"
    unknown = next((word for word in words if word not in target.values), None)
    if unknown is None:
        return None
    known = [str(value) for value in target.values]
    meant = nearest(unknown, known)
    guess = f"; did you mean {meant}?" if meant else ""
    return f"must be values of {key} in the same space: {', '.join(known)} (got {unknown!r}{guess})"


def can_hold(when: When, domains: Mapping[str, Domain]) -> bool:
    """Whether a `when` names only choice domains among these that have no `when` themselves, and only their values."""
    for key, words in when.items():
        target = domains.get(key)
        if not isinstance(target, ChoiceDomain) or target.when is not None:
            return False
        if not all(word in target.values for word in words):
            return False
    return True


WHEN_RULE = Rule(
    cel=f"self.searchSpaces.all(s, {_when_cel('s')})",
    message="when must name hyperparameters whose values are words, which are searched in the same space and have no "
    "when of their own, and some of these values",
    holds=lambda self: not _wrong_whens(self),
    each=_wrong_whens,
    field=".searchSpaces",
)
"""A rule of the spec, which can be checked only at creation; a rule of a space could not."""


class SearchSpaceBase(Model):
    """Hyperparameters to search, each with its domain."""

    def domains(self) -> dict[str, Domain]:
        """The searched hyperparameters by JSON name, in the order of their declaration."""
        return dict(self._searched())

    def _searched(self) -> Iterator[tuple[str, Domain]]:
        for name in DOMAINS:
            domain = getattr(self, name)
            if domain is not None:
                yield json_name(name), domain

    @classmethod
    def of(cls, **domains: dict[str, Any]) -> Self:
        """A space from plain JSON domains, as a manifest would write them."""
        return cls.model_validate(domains)
