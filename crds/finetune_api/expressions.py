"""CEL expressions of a study, as strict as the API server's own.

CEL is the language of Kubernetes' validation rules (https://cel.dev). Its types do not mix:
`batchSize * learningRate` must be written `double(batchSize) * learningRate`.
"""

import re
from collections.abc import Mapping
from typing import Any

_LOOP = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(")
"""Macros of CEL that are refused: a few of them, nested, take minutes, and there are no lists to loop over."""


class ExpressionError(ValueError):
    """An expression that cannot be evaluated: `field` and what must hold."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class Expression:
    """The compiled expression `text` of `field`. Raises ExpressionError if it is not valid CEL."""

    def __init__(self, field: str, text: str) -> None:
        if _LOOP.search(text):
            raise ExpressionError(
                field, f"must not use all, exists, exists_one, map or filter (got {text!r})"
            )
        import cel  # brings the half second of a command line of its own

        try:
            self._program = cel.compile(text)
        except ValueError as error:
            reason = str(error).split("ERROR: ")[-1].splitlines()[0]
            raise ExpressionError(
                field, f"must be a CEL expression (got {text!r}: {reason})"
            ) from error
        self.field, self.text = field, text
        self.names = tuple(self._program.variables())
        """The variables that it names."""

    def __reduce__(self) -> tuple[object, ...]:
        """What is compiled stays in its process; another process compiles it again."""
        return type(self), (self.field, self.text)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true of these values of its variables. Raises ExpressionError if CEL gives no answer."""
        answer = self._answer(values)
        if not isinstance(answer, bool):
            raise ExpressionError(
                self.field, f"must be true or false (got {answer!r} of {self.text!r})"
            )
        return answer

    def number(self, values: Mapping[str, Any]) -> float:
        """Its number for these values of its variables. Raises ExpressionError if it has none."""
        answer = self._answer(values)
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise ExpressionError(self.field, f"must be a number (got {answer!r} of {self.text!r})")
        return float(answer)

    def _answer(self, values: Mapping[str, Any]) -> Any:
        try:
            return self._program.execute(dict(values))
        except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
            raise ExpressionError(
                self.field, f"must be defined for {values} (got {self.text!r}: {error})"
            ) from error
