"""Constraints over hyperparameters: CEL expressions, as strict as the API server's own.

CEL is the language of Kubernetes' validation rules (https://cel.dev). Its types do not mix:
`batchSize * learningRate` must be written `double(batchSize) * learningRate`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import cel

from finetune_api.hyperparameters import Scalar, resolve
from finetune_api.study import StudySpec

FIELD = "spec.search.constraints"

_LOOP = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(")
"""Macros of CEL that are refused: a few of them, nested, take minutes, and there are no lists to loop over."""


class ConstraintError(ValueError):
    """A constraint that cannot be evaluated: `field` and what must hold."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class Constraints:
    """What every trial must satisfy; without expressions, any trial does."""

    def __init__(
        self,
        expressions: Sequence[str],
        defaults: Mapping[str, Scalar],
        searched: Iterable[str] = (),
    ) -> None:
        """`defaults` has the value of each hyperparameter that is not searched or not active.

        Names in `searched` without a default are null while they are not active. Raises ConstraintError
        for an expression that is not valid CEL, or that has names other than those of hyperparameters.
        """
        self._defaults = {**dict.fromkeys(searched, None), **defaults}
        self._programs = [
            self._compiled(f"{FIELD}[{index}]", text) for index, text in enumerate(expressions)
        ]
        self._names = [tuple(program.variables()) for program in self._programs]

    def __reduce__(self) -> tuple[object, ...]:
        """Compiled expressions stay in their process; another process compiles them again."""
        return type(self), ([program.source for program in self._programs], self._defaults)

    def _compiled(self, field: str, expression: str) -> "cel.Program":
        if _LOOP.search(expression):
            raise ConstraintError(
                field,
                f"must not use all, exists, exists_one, map or filter (got {expression!r})",
            )
        try:
            program = cel.compile(expression)
        except ValueError as error:
            reason = str(error).split("ERROR: ")[-1].splitlines()[0]
            raise ConstraintError(
                field, f"must be a CEL expression (got {expression!r}: {reason})"
            ) from error
        unknown = sorted(set(program.variables()) - set(self._defaults))
        if unknown:
            raise ConstraintError(
                field,
                f"must name only hyperparameters (got {', '.join(unknown)} in {expression!r})",
            )
        return program

    def __len__(self) -> int:
        return len(self._programs)

    def hold(self, params: Mapping[str, Scalar]) -> bool:
        """Whether `params` satisfy all of them. Raises ConstraintError if CEL gives no answer."""
        return all(self._holds(index, params) for index in range(len(self._programs)))

    def _holds(self, index: int, params: Mapping[str, Scalar]) -> bool:
        field, program = f"{FIELD}[{index}]", self._programs[index]
        # Only what the expression names: passing every hyperparameter costs far more than the answer.
        used = {name: params.get(name, self._defaults[name]) for name in self._names[index]}
        try:
            answer = program.execute(used)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise ConstraintError(
                field, f"must be defined for {used} (got {program.source!r}: {error})"
            ) from error
        if not isinstance(answer, bool):
            raise ConstraintError(
                field, f"must be true or false (got {answer!r} of {program.source!r})"
            )
        return answer


def constraints_of(spec: StudySpec) -> Constraints:
    """The constraints of a study. Raises ConstraintError if one cannot be evaluated."""
    defaults = resolve(spec.hyperparameters, {}).to_json()
    searched = (name for space in spec.spaces for name in space.domains())
    return Constraints(spec.search.constraints, defaults, searched)
