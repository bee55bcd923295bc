"""Constraints over hyperparameters: CEL expressions that every trial must satisfy."""

from collections.abc import Iterable, Mapping, Sequence

from finetune_api.expressions import Expression, ExpressionError
from finetune_api.hyperparameters import Scalar, resolve
from finetune_api.study import StudySpec

FIELD = "spec.search.constraints"


class Constraints:
    """What every trial must satisfy; without expressions, any trial does."""

    def __init__(
        self,
        expressions: Sequence[str],
        defaults: Mapping[str, Scalar],
        searched: Iterable[str] = (),
    ) -> None:
        """`defaults` has the value of each hyperparameter that is not searched or not active.

        Names in `searched` without a default are null while they are not active. Raises ExpressionError
        for an expression that is not valid CEL, or that has names other than those of hyperparameters.
        """
        self._defaults = {**dict.fromkeys(searched, None), **defaults}
        self._expressions = [
            Expression(f"{FIELD}[{index}]", text) for index, text in enumerate(expressions)
        ]
        for each in self._expressions:
            unknown = sorted(set(each.names) - set(self._defaults))
            if unknown:
                raise ExpressionError(
                    each.field,
                    f"must name only hyperparameters (got {', '.join(unknown)} in {each.text!r})",
                )

    def __len__(self) -> int:
        return len(self._expressions)

    def hold(self, params: Mapping[str, Scalar]) -> bool:
        """Whether `params` satisfy all of them. Raises ExpressionError if CEL gives no answer."""
        # Only what an expression names: passing every hyperparameter costs far more than the answer.
        return all(
            each.holds({name: params.get(name, self._defaults[name]) for name in each.names})
            for each in self._expressions
        )


def constraints_of(spec: StudySpec) -> Constraints:
    """The constraints of a study. Raises ExpressionError if one cannot be evaluated."""
    defaults = resolve(spec.hyperparameters, {}).to_json()
    searched = (name for space in spec.spaces for name in space.domains())
    return Constraints(spec.search.constraints, defaults, searched)
