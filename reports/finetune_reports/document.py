"""What a report is drawn from: all that people want to see of a study, as one JSON document."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

Scalar: TypeAlias = bool | int | float | str

FORMAT = 1
"""Of the document. Later versions add fields, which earlier readers leave out."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number: TypeAlias = Annotated[float | None, BeforeValidator(_finite)]
"""None where it is undefined: JSON has no word for it."""


def _defined(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {name: value for name, value in values.items() if _finite(value) is not None}


Metrics: TypeAlias = Annotated[dict[str, float], BeforeValidator(_defined)]
"""By name; what is undefined is left out."""


class Part(BaseModel):
    """A part of the document."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Objective(Part):
    """What is optimised; the first objective ranks trials."""

    metric: str
    goal: Literal["Maximize", "Minimize"]
    target: Number = None

    @property
    def sign(self) -> int:
        """1 if larger is better, else -1."""
        return 1 if self.goal == "Maximize" else -1


class Parameter(Part):
    """A hyperparameter that is searched, over all spaces that have it."""

    name: str
    low: Number = None
    """Bounds of a number; None where it is chosen from values."""

    high: Number = None
    log: bool = False
    integer: bool = False
    values: list[Scalar] | None = None
    """What it is chosen from, in the order of the manifest; numbers ascending."""


class Trial(Part):
    """One trial."""

    number: int
    state: str
    """As in the table of trials: Completed, Stopped, Diverged, Failed, Running, Paused or Pending."""

    params: dict[str, Scalar]
    value: Number = None
    """Of the objective, at its best evaluation."""

    standard_error: Number = None
    """Of the value, where it is a mean over folds or repeats."""

    epoch: Number = None
    """Of its best evaluation."""

    place: int | None = None
    """Among all candidates, from 1."""

    metrics: Metrics = {}
    """At its best evaluation, without those of single slices."""

    curve: list[tuple[float, Number]] = []
    """(epoch, value) of every evaluation."""

    rungs: list[tuple[float, Number]] = []
    """(resource, value) of every rung it has reached."""

    epochs: float = 0.0
    """Trained, over all of its runs."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    violation: float = 0.0
    """By how much it breaks the conditions of the objective."""

    pareto: bool = False
    """Whether it is on the Pareto front."""

    parent: int | None = None
    member: int | None = None
    message: str = ""
    """Why it failed."""


How: TypeAlias = Literal["reached", "requeued", "lost", "failed", "running", "refit"]
"""How a slot came to the end of a piece of work."""


class Span(Part):
    """What a slot did from `start` to `end`, in seconds since the study began."""

    slot: str
    trial: int
    run: int
    start: float
    end: float
    how: How


class Improvement(Part):
    """From here on this trial was the best."""

    seconds: float
    """Of searching, without waits for storage and the time between attempts."""

    trials: int
    """Trials proposed by then."""

    epochs: float
    """Trained by then, over all trials."""

    gpu_seconds: float
    trial: int
    value: Number


class Limit(Part):
    """A limit of the budget, and how much of it was spent."""

    name: str
    """As in `spec.budget`."""

    unit: str
    spent: float
    most: float


class Spending(Part):
    """What the study has cost."""

    trials: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    price: Number = None
    epochs_saved: Number = None
    """That training all trials to the end would have taken in addition."""

    limits: list[Limit] = []


class Final(Part):
    """The final model."""

    trial: int
    params: dict[str, Scalar]
    model_uri: str
    test: Metrics
    """On rows that no trial has seen."""

    baseline: Metrics = {}
    """Of the best constant prediction."""

    ensemble: str = ""


class Split(Part):
    """What the best trial showed on one fold or repeat."""

    fold: int
    repeat: int
    metrics: Metrics


class Report(Part):
    """A study as its report shows it."""

    format: int = FORMAT
    name: str
    task: str
    """Function for a study of a Python function."""

    model: str
    objectives: list[Objective]
    constraints: list[str] = []
    algorithm: str
    scheduler: str
    resource: str = "Epochs"
    """What rungs give more of."""

    rungs: list[float] = []
    folds: int = 1
    repeats: int = 1
    manifest: str = ""
    """YAML."""

    made: float
    """When this was written, in seconds since the epoch; so are the next two."""

    began: float | None = None
    ended: float | None = None
    reason: str = ""
    """Why the search ended, in one word; empty while it goes on."""

    message: str = ""
    parameters: list[Parameter] = []
    defaults: dict[str, Scalar] = {}
    """Hyperparameters that the manifest fixes."""

    trials: list[Trial] = []
    spans: list[Span] = []
    waits: list[tuple[float, float]] = []
    """(start, end) of standstills because of storage, in seconds since the study began."""

    improvements: list[Improvement] = []
    spending: Spending = Spending()
    splits: list[Split] = []
    final: Final | None = None
    data: dict[str, Any] | None = None
    """What was done to the rows: `results/data.json`."""

    test: dict[str, Any] | None = None
    """How the final model does on the test rows, in detail: `results/test_report.json`."""

    attributions: list[dict[str, Any]] = []
    """Some lines of `results/attributions.jsonl`."""

    setting: dict[str, str] = {}
    """Versions and machine."""

    warnings: list[str] = []
    missing: str = ""
    """What this document lacks of the study, and where that is."""

    @property
    def objective(self) -> Objective:
        """The objective that ranks trials."""
        return self.objectives[0]

    @property
    def search(self) -> str:
        """Algorithm and scheduler, if there is one, in words."""
        return self.algorithm + ("" if self.scheduler == "None" else f", {self.scheduler}")

    def test_interval(self, metric: str) -> tuple[float, float] | None:
        """Where a metric of the test lies in 95 % of samples of as many rows; None if that is not known."""
        found = ((self.test or {}).get("intervals") or {}).get(metric)
        return None if found is None else (found[0], found[1])

    @property
    def begun(self) -> int:
        """Trials that were begun, also those that are not here."""
        return max(len(self.trials), self.spending.trials)

    @property
    def best(self) -> Trial | None:
        """The best trial."""
        return next((trial for trial in self.trials if trial.place == 1), None)

    @property
    def ranked(self) -> list[Trial]:
        """Trials that may win, best first."""
        placed = [trial for trial in self.trials if trial.place is not None]
        return sorted(placed, key=lambda trial: (trial.place, trial.number))

    def to_json(self) -> str:
        """The document, without what has its default value."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


class NoReport(ValueError):
    """A file that should be a report document is none."""


def read_report(text: str | bytes) -> Report:
    """The document that `Report.to_json` wrote. Raises NoReport."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise NoReport(f"not the document of a report: {where}: {first['msg']}") from error
