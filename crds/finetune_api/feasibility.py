"""Constraints over metrics: what a trial must fulfil to be better than any that does not.

Trials that fulfil them all come first, by their objective; the others by how far they break them (the order of Deb,
"An Efficient Constraint Handling Method for Genetic Algorithms", 2000).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from finetune_api.expressions import Expression, ExpressionError
from finetune_api.metrics import METRIC_WORDS, plain
from finetune_api.study import StudySpec
from finetune_api.tasks import TASKS

FIELD = "spec.objective.constraints"
UNDEFINED = 1e6
"""By how much a constraint is broken whose metrics are undefined."""

_NAMED = re.compile(r"""\bmetrics\s*(?:\[\s*(?:'([^']*)'|"([^"]*)")\s*\]|\.\s*(\w+))""")
_OPERATOR = re.compile(r"<=|>=|<|>")


class MetricConstraints:
    """CEL expressions over `metrics`, each true or false.

    Raises ExpressionError for one that is not valid CEL, names another variable, or no metric.
    """

    def __init__(self, expressions: Sequence[str]) -> None:
        self._metrics = metrics_in(expressions)
        self._known: dict[tuple[float | None, ...], tuple[float, ...]] = {}
        """The margins by metrics: rankings ask for the same ones often."""

        self._parts: list[_Part] = []
        for index, text in enumerate(expressions):
            field = f"{FIELD}[{index}]"
            others = set(Expression(field, text).names) - {"metrics"}
            if others:
                raise ExpressionError(
                    field,
                    f"must name only metrics, such as metrics['f1_macro'] (got {', '.join(sorted(others))} in {text!r})",
                )
            if not metrics_in([text]):
                raise ExpressionError(
                    field, f"must name a metric, such as metrics['f1_macro'] (got {text!r})"
                )
            self._parts += [_Part(field, part) for part in _conjuncts(text)]
        # It is better to learn now of one that has no answer.
        self.margins(dict.fromkeys(self._metrics, 0.5))

    def margins(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """One for each expression, or part of a conjunction: above 0 if `metrics` break it.

        Of a comparison it is the difference between its sides, of anything else 1 or -1. Raises ExpressionError if CEL
        gives no answer.
        """
        key = tuple(metrics.get(name) for name in self._metrics)
        if key not in self._known:
            self._known[key] = tuple(part.margin(metrics) for part in self._parts)
        return self._known[key]

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much `metrics` break them; 0 if they fulfil all. Raises ExpressionError if CEL gives no answer."""
        return broken(self.margins(metrics))


def broken(margins: Iterable[float]) -> float:
    """By how much constraints with these margins are broken: 0 if none is."""
    return sum(margin for margin in margins if margin > 0)


class _Part:
    """One of the expressions that must be true together."""

    def __init__(self, field: str, text: str) -> None:
        self._whole = Expression(field, text)
        self._metrics = metrics_in([text])
        self._sides: tuple[Expression, Expression] | None = None
        found = _comparison(text)
        if found is not None:
            less, more = found
            self._sides = Expression(field, less), Expression(field, more)

    def margin(self, metrics: Mapping[str, float]) -> float:
        if any(name not in metrics for name in self._metrics):
            return UNDEFINED
        given = {"metrics": {name: metrics[name] for name in self._metrics}}
        holds = self._whole.holds(given)
        if self._sides is None:
            return -1.0 if holds else 1.0
        less, more = (side.number(given) for side in self._sides)
        # Equal sides may have to differ.
        return min(less - more, 0.0) if holds else max(less - more, 1e-12)


def metrics_in(expressions: Sequence[str]) -> tuple[str, ...]:
    """The metrics that expressions name as `metrics['f1_macro@gap']` or `metrics.loss`, each once."""
    found = (next(filter(None, match)) for text in expressions for match in _NAMED.findall(text))
    return tuple(dict.fromkeys(found))


def metric_constraints_of(spec: StudySpec) -> MetricConstraints:
    """The constraints of a study over its metrics. Raises ExpressionError if one cannot be evaluated."""
    expressions = spec.objective.constraints or []
    known = TASKS[spec.task].metrics
    for index, text in enumerate(expressions):
        wrong = [
            name
            for name in metrics_in([text])
            if name not in METRIC_WORDS or plain(name) not in known
        ]
        if wrong:
            raise ExpressionError(
                f"{FIELD}[{index}]",
                f"must name metrics of {spec.task}: {', '.join(known)}, each also @worst or @gap of slices (got {', '.join(wrong)})",
            )
    return MetricConstraints(expressions)


def _conjuncts(text: str) -> Iterator[str]:
    """The parts of `a && b`; the whole where it is no conjunction."""
    begin, has_or = 0, False
    parts = []
    for at, token in _top_level(text):
        has_or = has_or or token == "||" or token == "?"
        if token == "&&":
            parts.append(text[begin:at])
            begin = at + 2
    yield from [text] if has_or or not parts else [*parts, text[begin:]]


def _comparison(text: str) -> tuple[str, str] | None:
    """The two sides of a single comparison, the one that must be less first; None for anything else."""
    tokens = list(_top_level(text))
    if len(tokens) != 1 or not _OPERATOR.fullmatch(tokens[0][1]):
        return None
    at, operator = tokens[0]
    left, right = text[:at], text[at + len(operator) :]
    return (left, right) if operator.startswith("<") else (right, left)


def _top_level(text: str) -> Iterator[tuple[int, str]]:
    """The places of operators between conditions and numbers that are in no brackets and no quotes."""
    depth, quote = 0, ""
    at = 0
    while at < len(text):
        letter, two = text[at], text[at : at + 2]
        if quote:
            at += 1 if letter == "\\" else 0
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif depth == 0 and two in ("&&", "||", "<=", ">=", "==", "!="):
            yield at, two
            at += 1
        elif depth == 0 and letter in "<>?!":
            yield at, letter
        at += 1
