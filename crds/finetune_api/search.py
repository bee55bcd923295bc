"""How a study searches, and what limits it."""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from finetune_api.fixed_and_searched import FixedHyperparameters
from finetune_api.locations import Location
from finetune_api.schema import Model, Rule
from finetune_api.spaces import (
    ATOMIC,
)

Algorithm: TypeAlias = Literal[
    "Auto", "Grid", "Random", "QuasiRandom", "TPE", "GP", "Evolution", "CMAES", "PBT"
]

Resource: TypeAlias = Literal["Epochs", "Samples", "Folds", "Seconds"]

SchedulerType: TypeAlias = Literal[
    "Auto", "None", "ASHA", "SuccessiveHalving", "Hyperband", "MedianStop", "PASHA"
]


class Scheduler(Model):
    """How training is spread over trials: which go on after each rung."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.brackets) || self.type == 'ASHA' || self.type == 'Hyperband'",
            message="brackets must go with type ASHA or Hyperband",
            holds=lambda self: self.brackets is None or self.type in ("ASHA", "Hyperband"),
            field=".brackets",
        ),
        Rule(
            cel="self.type != 'Hyperband' || has(self.brackets) || self.resource == 'Epochs' || self.resource == 'Folds'",
            message="brackets must be given with Hyperband over Samples or Seconds, whose maximum is not known in advance",
            holds=lambda self: (
                self.type != "Hyperband"
                or self.brackets is not None
                or self.resource in ("Epochs", "Folds")
            ),
        ),
        Rule(
            cel="self.resource == 'Epochs' || self.resource == 'Seconds' || self.minResource >= 1.0 && double(int(self.minResource)) == self.minResource",
            message="minResource must be a whole number of Samples or Folds",
            holds=lambda self: (
                self.resource in ("Epochs", "Seconds")
                or (self.min_resource >= 1 and self.min_resource == int(self.min_resource))
            ),
            field=".minResource",
        ),
        Rule(
            cel="self.type != 'MedianStop' || self.resource == 'Epochs' || self.resource == 'Folds'",
            message="MedianStop must have resource Epochs or Folds",
            holds=lambda self: self.type != "MedianStop" or self.resource in ("Epochs", "Folds"),
            field=".resource",
        ),
        Rule(  # each multiple of it is a rung
            cel="self.type != 'MedianStop' || self.minResource >= 0.1",
            message="minResource of MedianStop must be at least 0.1",
            holds=lambda self: self.type != "MedianStop" or self.min_resource >= 0.1,
            field=".minResource",
        ),
    )

    type: SchedulerType = "Auto"
    """Auto is chosen together with `algorithm: Auto`, and is None with every other algorithm. None trains every
    trial to its end. ASHA promotes the best 1/reductionFactor of each rung as soon as
    they qualify (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020).
    SuccessiveHalving first waits until all trials have reached the rung (Jamieson and Talwalkar, AISTATS
    2016): no promotion is premature, but slots may wait for the slowest trial. Hyperband runs successive
    halving in brackets, from many trials that start low to few that start high (Li et al., JMLR 2018);
    with algorithm TPE it is close to BOHB (Falkner et al., ICML 2018). MedianStop lets a trial go on while
    it is at least as good as the median of all trials that came as far (Golovin et al., "Google Vizier", KDD 2017);
    it compares at every multiple of minResource. PASHA is ASHA that adds a higher rung only when the ranking at the highest two
    differs (Bohdal et al., ICLR 2023)."""

    resource: Resource = "Epochs"
    """What a trial gets more of at each rung. Epochs: a trial goes on from its checkpoint. Samples: training rows; a
    trial starts again on more of them. Folds: of the cross-validation. Seconds: of training, so that an
    expensive configuration gets no more time than a cheap one."""

    min_resource: float = Field(1, gt=0, le=1000000000)
    """Resource of the first rung; fractions of an epoch are allowed. With type Auto, the least it may be."""

    reduction_factor: int = Field(3, ge=2, le=16)
    """Each rung has this many times the resource of the one below."""

    brackets: int | None = Field(None, ge=1, le=8)
    """ASHA: groups of trials that start at the first, the second, … rung (default 1). Hyperband: the same
    (default: one for each rung)."""


class WarmStart(Model):
    """A finished study to learn from."""

    uri: Location
    """Its folder, or the `resultsUri` of its status; in the same storage or readable with its credentials."""


class Search(Model):
    """How trials are proposed and scheduled."""

    algorithm: Algorithm = "Auto"
    """Auto is GP for one space without `when`, one objective and at most 200 trials (or a limit of time alone), and
    otherwise TPE, with rungs that suit the number of trials; `finetune plan` and `status.plan` show what was chosen.
    Grid tries every combination of finite domains; Random draws independently; QuasiRandom covers the
    space evenly (a scrambled Sobol sequence); TPE draws from a model of what did well (tree-structured
    Parzen estimators, after 5 trials at random); GP maximises the expected improvement under a Gaussian
    process (for tens of trials and a single space; hyperparameters with a `when` are drawn at random); Evolution
    crosses and mutates the best of each generation (NSGA-II, Deb et al., 2002); CMAES adapts the
    covariance of a normal distribution (Hansen and Ostermeier, 2001; one space of numbers); PBT trains
    a population whose worst members take over the weights and hyperparameters of the best every perturbationInterval
    epochs (Jaderberg et al., 2017)."""

    seed: int = Field(0, ge=0, le=4294967295)
    """Seed of proposals and of the trials' training."""

    points: list[FixedHyperparameters] = Field([], max_length=16, json_schema_extra=ATOMIC)
    """Trials to try first, for example values that worked well before. What a point does not set is drawn at random."""

    defaults: bool | None = None
    """Whether to try what the literature recommends for the model's family and size and the number of rows right after
    `points`. Hyperparameters without a recommendation are drawn at random. Default: true, unless algorithm is Grid."""

    constraints: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        [], max_length=16, json_schema_extra=ATOMIC
    )
    """CEL expressions over hyperparameters that every trial must satisfy, for example
    `batchSize * gradientAccumulation <= 128`. A hyperparameter that is not searched has its fixed value or default."""

    warm_start: list[WarmStart] = Field([], max_length=8, json_schema_extra=ATOMIC)
    """Finished studies of the same task and metric: their best trials are tried first, and TPE, GP,
    Evolution and CMAES learn from all of them."""

    population_size: int = Field(8, ge=2, le=256)
    """Members of a generation (Evolution, CMAES) or of the population (PBT)."""

    perturbation_interval: int = Field(1, ge=1, le=1000)
    """PBT: epochs between two steps of a member."""

    scheduler: Scheduler = Scheduler()

    @model_validator(mode="after")
    def _settle(self) -> Self:
        """With an algorithm of its own, a search whose scheduler is Auto has none."""
        if self.algorithm != "Auto" and self.scheduler.type == "Auto":
            settled = self.scheduler.model_copy(update={"type": "None"})
            object.__setattr__(self, "scheduler", settled)  # nobody has seen the frozen model yet
        return self


class Budget(Model):
    """Limits of the search; may be edited while it runs.

    At a limit the search drains: running trials go on to their next rung, and nothing new starts.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxPrice) || has(self.pricePerGpuHour)",
            message="maxPrice must go with pricePerGpuHour",
            holds=lambda self: self.max_price is None or self.price_per_gpu_hour is not None,
            field=".maxPrice",
        ),
    )

    max_trials: int | None = Field(None, ge=1, le=10000)
    """Trials to propose. Default: all combinations of a Grid."""

    max_parallel_trials: int | None = Field(None, ge=1, le=1024)
    """Trials that train at the same time. Default: one per slot."""

    max_failed_trials: int = Field(3, ge=0, le=10000)
    """The study fails when more trials than this have failed. A diverged trial is a result, not a failure."""

    max_duration_seconds: int | None = Field(None, ge=1, le=31536000)
    """Wall-clock seconds of searching, over all attempts, after which no new work starts."""

    max_gpu_hours: float | None = Field(None, gt=0, le=1000000)
    """GPU hours of training, over all trials and attempts, after which no new work starts."""

    price_per_gpu_hour: float | None = Field(None, gt=0, le=1000000)
    """Price of a GPU hour, in any currency; the status then shows what was spent."""

    max_price: float | None = Field(None, gt=0, le=1000000000)
    """Price of training, over all trials and attempts, after which no new work starts."""

    max_trials_without_improvement: int | None = Field(None, ge=1, le=10000)
    """The search ends when this many trials in a row have reached their first rung, or ended, without a
    new best value of the objective."""
