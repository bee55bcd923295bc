"""The FineTuneStudy resource: what a user writes (`spec`) and what the operator answers (`status`)."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.functional_validators import BeforeValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.hyperparameters import (
    STRUCTURAL,
    Hyperparameters,
    json_name,
)
from finetune_api.locations import Location
from finetune_api.metrics import METRIC_WORDS, Goal, natural_goal, plain
from finetune_api.quantities import QUANTITY_PATTERN, is_quantity
from finetune_api.schema import Model, Name, Rule
from finetune_api.spaces import (
    ATOMIC,
    DOMAINS,
    MAX_SPACES,
    WHEN_RULE,
    IntegerDomain,
    NumericDomain,
    SearchSpaceBase,
)
from finetune_api.status import StudyStatus
from finetune_api.stores import Storage
from finetune_api.tasks import TASKS, Task, by_metrics, metrics_in_cel

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneStudy"
PLURAL = "finetunestudies"
MAX_NAME = 40

Metric: TypeAlias = Literal[METRIC_WORDS]  # type: ignore[valid-type]  # the words are declared once, in metrics
ClassName: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class PretrainedModel(Model):
    """The pretrained encoder every trial starts from. Remote code is never run."""

    name: Location
    """Hugging Face hub id, the path of a model in a mounted volume, or its folder in an object store
    (`s3://bucket/models/minilm`), which is read with the credentials of the storage."""

    revision: str | None = Field(None, min_length=1, max_length=64)
    """Commit, tag or branch on the hub. Default: its main branch."""


class HubDataset(Model):
    """A data set of the Hugging Face hub."""

    path: Name
    """Data set id, for example `org/tickets`."""

    name: Name | None = None
    """Configuration of the data set, where it has several."""

    revision: str | None = Field(None, min_length=1, max_length=64)
    """Commit, tag or branch. Default: the main branch."""


class DatasetFiles(Model):
    """CSV, TSV, JSON (one object per line, or an array of objects) or Parquet files, recognised by suffix and optionally
    compressed (.gz); local paths or URIs that `pyarrow.fs` opens."""

    train: Location
    """Training rows."""

    validation: Location | None = None
    """Validation rows. Default: split off the training rows."""

    test: Location | None = None
    """Held-out test rows. Default: split off the training rows."""

    encoding: str | None = Field(None, min_length=1, max_length=32)
    """Encoding of texts, such as UTF-16, ISO-8859-1 or GB18030. Default: UTF-8."""

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """CSV and TSV: the character between fields. Default: a comma, or a tab for .tsv."""

    column_names: list[Name] | None = Field(
        None, min_length=1, max_length=256, json_schema_extra=ATOMIC
    )
    """CSV and TSV without a header row: the names of their columns, in order."""

    max_unreadable: float | None = Field(None, ge=0, le=1)
    """Share of the rows of a file that may be left out because they cannot be read. Default 0.01."""


class Split(Model):
    """How rows are set aside where the source has no split of its own."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.validation + self.test < 1.0",
            message="validation and test must leave rows for training (their sum must be below 1)",
            holds=lambda self: self.validation + self.test < 1,
        ),
    )

    validation: float = Field(0.1, gt=0, lt=1)
    """Share of rows for validation."""

    test: float = Field(0.1, gt=0, lt=1)
    """Share of rows for the held-out test set."""

    stratify: bool = True
    """Keep the share of each class equal in every split. Ignored for Regression."""

    seed: int = Field(0, ge=0, le=4294967295)
    """Seed of the split."""


class Cleaning(Model):
    """How texts are cleaned, in this order and before anything else, and which rows are left out.
    `results/data.json` counts what each step did."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.minCharacters) || !has(self.maxCharacters) || self.minCharacters <= self.maxCharacters",
            message="minCharacters must be at most maxCharacters",
            holds=lambda self: (
                self.min_characters is None
                or self.max_characters is None
                or self.min_characters <= self.max_characters
            ),
            field=".minCharacters",
        ),
    )

    strip_html: bool = False
    """Replace HTML by the text that it shows; scripts and styles show none."""

    normalize_unicode: bool = False
    """Apply Unicode normalisation form NFKC, so that each character is written in one way."""

    normalize_whitespace: bool = False
    """Replace each run of white space by one space, and remove it at both ends."""

    lowercase: bool = False
    """Convert texts to lower case. Uncased models do this by themselves."""

    min_characters: int | None = Field(None, ge=1, le=1000000)
    """Leave out rows with a shorter text."""

    max_characters: int | None = Field(None, ge=1, le=1000000)
    """Leave out rows with a longer text."""

    duplicates: Literal["Keep", "Drop"] = "Keep"
    """Drop rows with the same texts and label as an earlier row of their split. Also drop training rows with the
    same texts as a validation or test row, and validation rows with the same texts as a test row: they would leak."""

    conflicts: Literal["Keep", "Report", "Drop"] = "Report"
    """Training rows (with cross-validation also validation rows) with the same texts but different labels:
    keep them silently, keep them and warn, or leave all of them out."""

    duplicate_encoder: PretrainedModel | None = None
    """The sentence encoder (mean of the last hidden states) that `duplicateThreshold` compares by.
    Default: the study's model."""


class Dataset(Model):
    """The labelled rows."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.hub) != has(self.files)",
            message="must have exactly one of hub and files",
            holds=lambda self: (self.hub is None) != (self.files is None),
        ),
        Rule(
            cel="self.textColumns.all(c, self.textColumns.exists_one(d, d == c))",
            message="textColumns must be unique",
            holds=lambda self: len(set(self.text_columns)) == len(self.text_columns),
            field=".textColumns",
        ),
        Rule(
            cel="self.textColumns.size() <= 2 || self.joinTextColumns",
            message="more than two textColumns must go with joinTextColumns",
            holds=lambda self: len(self.text_columns) <= 2 or self.join_text_columns,
            field=".textColumns",
        ),
        Rule(
            cel="has(self.labelColumn) != has(self.labelColumns)",
            message="must have exactly one of labelColumn and labelColumns",
            holds=lambda self: (self.label_column is None) != (self.label_columns is None),
        ),
        Rule(
            cel="!has(self.labelColumns) || self.labelColumns.all(c, self.labelColumns.exists_one(d, d == c))",
            message="labelColumns must be unique",
            holds=lambda self: (
                self.label_columns is None
                or len(set(self.label_columns)) == len(self.label_columns)
            ),
            field=".labelColumns",
        ),
        Rule(
            cel="!has(self.labelColumn) || !(self.labelColumn in self.textColumns)",
            message="labelColumn must not be one of textColumns: a text cannot be its own label",
            holds=lambda self: self.label_column not in self.text_columns,
            field=".labelColumn",
        ),
        Rule(
            cel="!has(self.labelNames) || !has(self.labelNamesFile)",
            message="must have at most one of labelNames and labelNamesFile",
            holds=lambda self: self.label_names is None or self.label_names_file is None,
            field=".labelNames",
        ),
        Rule(
            cel="!has(self.labelColumns) || !(has(self.labelNames) || has(self.labelNamesFile))",
            message="labelNames must go with labelColumn",
            holds=lambda self: (
                self.label_columns is None
                or (self.label_names is None and self.label_names_file is None)
            ),
            field=".labelNames",
        ),
        Rule(
            cel="!has(self.labelColumns) || !has(self.labelSeparator)",
            message="labelSeparator must go with labelColumn",
            holds=lambda self: self.label_columns is None or self.label_separator is None,
            field=".labelSeparator",
        ),
    )

    hub: HubDataset | None = None
    files: DatasetFiles | None = None
    text_columns: list[Name] = Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)
    """The column of texts, two columns of sentence pairs, or, with joinTextColumns, several columns."""

    join_text_columns: bool = False
    """Join the columns of a row into one text, with the model's separator between them."""

    label_column: Name | None = None
    """The column of labels: a class, a list of labels (MultiLabel) or a number (Regression)."""

    label_columns: list[Name] | None = Field(
        None, min_length=2, max_length=64, json_schema_extra=ATOMIC
    )
    """MultiLabel: one column per label, each holding yes or no (1, true, yes; 0, false, no, empty)."""

    label_separator: str | None = Field(None, min_length=1, max_length=8)
    """MultiLabel: what separates labels where the column holds text instead of lists."""

    label_names: list[Name] | None = Field(
        None, min_length=1, max_length=1024, json_schema_extra=ATOMIC
    )
    """What the labels are called where the column has their numbers: the name of 0, of 1 and so on."""

    label_names_file: Location | None = None
    """The same, as a text file with one name per line."""

    group_column: Name | None = None
    """Rows with the same value in this column stay together in one split and in one fold; a row without a
    value is a group of its own."""

    cleaning: Cleaning = Cleaning()

    synonyms: Location | None = None
    """A file for `augmentation`. Each line is a word, a tab, and synonyms separated by commas. Default: WordNet."""

    allow_label_in_text: bool = False
    """Accept data in which most rows contain their own label word for word. That is a leak, unless it is the task."""

    split: Split = Split()


class SecondaryObjective(Model):
    """A further objective: trials are compared by Pareto dominance."""

    metric: Metric
    goal: Goal | None = None
    """Default: the direction in which the metric improves."""

    @property
    def direction(self) -> Goal:
        """The goal, resolved."""
        return self.goal or natural_goal(self.metric)


class Objective(Model):
    """What the search optimises, measured on the validation rows after each epoch."""

    metric: Metric
    """The metric that ranks trials."""

    goal: Goal | None = None
    """Default: the direction in which the metric improves."""

    best_of: Literal["Max", "Last"] = "Max"
    """Which of a trial's epochs gives its value: the one with the best objective, or the last."""

    target: float | None = None
    """The search ends as soon as a trial reaches this value. It may be edited while the study runs."""

    secondary: list[SecondaryObjective] = Field([], max_length=3, json_schema_extra=ATOMIC)
    """Further objectives. The status has the Pareto front; the trial on it with the best
    `metric` is the winner and is refitted."""

    additional_metrics: list[Metric] = Field([], max_length=16, json_schema_extra=ATOMIC)
    """Further metrics to record."""

    constraints: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(
        None, min_length=1, max_length=8, json_schema_extra=ATOMIC
    )
    """What the metrics of a trial must fulfil: CEL expressions over `metrics`, such as
    `metrics['accuracy@gap'] <= 0.05`. Trials, and epochs of a trial, that fulfil all of them rank before any
    other; the others rank by how far they break them. What is named is measured too."""

    early_stopping_metric: Metric | None = None
    """What `earlyStoppingPatience` watches. Default: the objective's metric."""

    @property
    def direction(self) -> Goal:
        """The goal, resolved."""
        return self.goal or natural_goal(self.metric)

    @property
    def named(self) -> tuple[str, ...]:
        """The metrics that it names, each once, but for those in constraints."""
        others = (*self.additional_metrics, *(one.metric for one in self.secondary))
        return tuple(dict.fromkeys((self.metric, *others, self.stopping_metric)))

    @property
    def stopping_metric(self) -> str:
        """What early stopping watches."""
        metric: str = self.early_stopping_metric or self.metric
        return metric

    @property
    def stopping_direction(self) -> Goal:
        """The direction in which that improves."""
        own = self.stopping_metric == self.metric
        return self.direction if own else natural_goal(self.stopping_metric)


class CrossValidation(Model):
    """Each trial trains once for each fold; its value is the mean over the folds."""

    folds: int = Field(ge=2, le=20)
    """Number of folds of the pooled training and validation rows; each fold is validated on once."""

    stratify: bool = True
    """Keep the share of each class equal in every fold. Ignored for Regression."""

    seed: int = Field(0, ge=0, le=4294967295)
    """Seed of the folds."""


class Slice(Model):
    """One way to divide the rows into slices, each of which is measured by itself: by the values of a column, or by
    whether an expression is true."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.column) != has(self.expression)",
            message="exactly one of column and expression must be given",
            holds=lambda self: (self.column is None) != (self.expression is None),
        ),
        Rule(
            cel="has(self.name) || (has(self.column) && !self.column.contains('=') && !self.column.contains('@'))",
            message="name must be given with expression, and for a column with = or @ in its name",
            holds=lambda self: (
                self.name is not None
                or (self.column is not None and not {"=", "@"} & set(self.column))
            ),
            field=".name",
        ),
    )

    name: str | None = Field(
        None, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
    )
    """What the division is called in metrics, such as `f1_macro@language=de`. Default: the name of the column."""

    column: Name | None = None
    """A column of the data: each of its values, at most 32, is a slice."""

    expression: str | None = Field(None, min_length=1, max_length=1024)
    """A CEL expression over columns of the data, such as `double(stars) >= 4.0 || source == "mail"`: the rows for which
    it is true are one slice, the others another. In CSV files all values are texts; a missing value is null."""

    @property
    def division(self) -> str:
        """The name, resolved."""
        return self.name or self.column or ""


class Validation(Model):
    """How many trainings make up the value of a trial, and which rows are also measured by themselves."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.slices) || self.slices.all(a, self.slices.exists_one(b,"
            " (has(a.name) ? a.name : a.column) == (has(b.name) ? b.name : b.column)))",
            message="slices must have different names",
            holds=lambda self: (
                len({one.division for one in self.slices or ()}) == len(self.slices or ())
            ),
            field=".slices",
        ),
    )

    cross_validation: CrossValidation | None = None
    """Default: one training on the training rows, measured on the validation rows."""

    repeats: int = Field(1, ge=1, le=16)
    """Trainings of each trial, or of each of its folds, with different seeds; the value is their mean."""

    slices: list[Slice] | None = Field(None, min_length=1, max_length=8, json_schema_extra=ATOMIC)
    """Ways to divide the validation and test rows. Every metric is then recorded for each slice too, and
    `objective` can name the worst (`f1_macro@worst`) and the largest difference between two slices of one division
    (`f1_macro@gap`). They change nothing about training."""

    @property
    def folds(self) -> int:
        """Folds, or 1 without cross-validation."""
        return self.cross_validation.folds if self.cross_validation else 1

    @property
    def trainings(self) -> int:
        """Trainings of a trial: folds by repeats."""
        return self.folds * self.repeats


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


class Compute(Model):
    """How trials use the hardware: affects speed and memory, not what is learnt."""

    precision: Literal["FP32", "TF32", "BF16", "FP16"] = "FP32"
    """FP32 throughout; or matrix products in TF32 (on a CPU the same as FP32), in BF16, or in FP16 with loss
    scaling (not on a CPU). Weights and optimizer state are always FP32."""

    compile: bool = False
    """Compile the model with `torch.compile`: this takes minutes for the first trial of a worker; later steps are
    faster. The trainer's image needs a C++ compiler; this project's image has none."""

    gradient_checkpointing: bool = False
    """Compute the layers' activations a second time in the backward pass instead of keeping them: about a
    third slower, with far less memory."""


EnsembleMethod: TypeAlias = Literal["Mean", "Weighted", "RankMean"]


class Ensemble(Model):
    """Several of the best trials that predict together. They become the final model only if they are better
    on the validation rows than the best of them alone, all trained on the training rows; otherwise only the
    winner is refitted."""

    size: int = Field(ge=2, le=10)
    """How many of the best trials; fewer if no more have a value."""

    method: EnsembleMethod = "Mean"
    """Mean of the members' probabilities, or of the numbers of Regression. Weighted: by how much
    better the objective of each member was than that of the worst trial of the search. RankMean: mean of the
    ranks of each label's probability among those of the validation rows; not for Regression."""


class Artifacts(Model):
    """What is produced from the refitted winner (or ensemble) besides the model, its card and its table of results."""

    onnx: bool = False
    """Also export the model as ONNX, checked against the PyTorch outputs."""

    attributed_rows: int = Field(0, ge=0, le=1000)
    """Test rows whose predictions are attributed to their tokens (integrated gradients), spread evenly over all test
    rows; written to `results/attributions.jsonl`. With an ensemble the winner's model is used."""


class WandbTracking(Model):
    """A project of Weights & Biases."""

    project: Name
    entity: Name | None = None


class MlflowTracking(Model):
    """An MLflow server."""

    tracking_uri: Location
    """For example `http://mlflow.ml:5000`."""

    experiment: Name
    """Name of the experiment; created if it does not exist."""


class Tracking(Model):
    """Trackers that show the trials too, one run each, written from the records. Run ids stay the same after a restart."""

    wandb: WandbTracking | None = None
    mlflow: MlflowTracking | None = None
    tensorboard: bool = False
    """Write event files to `tensorboard/` in the study's storage."""

    secret_name: Name | None = None
    """Secret whose keys become environment variables of the study's pods (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN …)."""


def _quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or not is_quantity(value):
        raise PydanticCustomError(
            "quantity", "must be a Kubernetes quantity such as 2, 500m or 16Gi"
        )
    return value


class _QuantitySchema:
    """The JSON schema of a quantity, as Kubernetes' own types publish it."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "minimum": 0,
            "maxLength": 32,
        }


Quantity: TypeAlias = Annotated[Any, BeforeValidator(_quantity), _QuantitySchema]


class Toleration(Model):
    """A toleration of the study's pods, as in `pod.spec.tolerations`."""

    key: str | None = Field(None, max_length=317)
    """Key of the taints that are tolerated. Default: any."""

    operator: Literal["Exists", "Equal"] | None = None
    """Equal: the taint must have `value`. Exists: it may have any. Default Equal."""

    value: str | None = Field(None, max_length=63)
    """Value of the taints that are tolerated."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taints that are tolerated. Default: all."""

    toleration_seconds: int | None = Field(None, ge=0, le=9223372036854775807)
    """NoExecute: seconds for which a pod stays. Default: for ever."""


class ClusterSpec(Model):
    """The Ray cluster of the study. On a laptop only the number of slots counts."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.minWorkers) || self.minWorkers <= self.workers",
            message="minWorkers must be at most workers",
            holds=lambda self: self.min_workers is None or self.min_workers <= self.workers,
            field=".minWorkers",
        ),
    )

    workers: int = Field(1, ge=1, le=64)
    """Pods that train."""

    min_workers: int | None = Field(None, ge=0, le=64)
    """Pods that stay when there is no work for them; the others come and go with the work. Only where KubeRay
    runs the cluster. Default: all of them stay."""

    resources_per_worker: dict[str, Quantity] = Field({}, max_length=16)
    """Resources of each worker pod. Default: the operator's. A trial uses one GPU, or a share of one."""

    trials_per_worker: int = Field(1, ge=1, le=16)
    """Trials that share one worker at the same time."""

    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Queue that decides when the pods may run: a LocalQueue of Kueue in the study's namespace, or a queue of
    Volcano, depending on how the operator is set up. Default: none; pods run as soon as there is room."""

    priority_class_name: Name | None = None
    """PriorityClass of the pods; Kueue and Volcano use it as well."""

    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field({}, max_length=32)
    tolerations: list[Toleration] = Field([], max_length=32, json_schema_extra=ATOMIC)
    pod_template: dict[str, Any] | None = Field(
        None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """A PodTemplateSpec merged over the operator's; its container is named `trainer`. Anyone who may create
    a study with a podTemplate can create pods."""

    start_deadline_seconds: int | None = Field(None, ge=60, le=604_800)
    """Seconds after which a pod that has a node, and with it its GPUs, and does not run there (an image, a volume, an
    init container) ends its attempt. The study is then Stalled until it is edited, suspended and resumed, or has a new
    value of the annotation `finetune.dev/retry`. Default: an hour. Pods that wait for a node hold nothing and may wait
    for ever."""

    @property
    def slots(self) -> int:
        """Trials that can train at the same time."""
        return self.workers * self.trials_per_worker

    @property
    def scales(self) -> bool:
        """Whether workers come and go with the work, where KubeRay runs the cluster."""
        return self.min_workers is not None and self.min_workers < self.workers


def _finite(domain: str, name: str) -> str:
    # An integer range without a step counts in ones; on a log scale it is drawn, so not finite.
    field = f"{domain}.{json_name(name)}"
    finite = f"has({field}.values) || has({field}.step)"
    if issubclass(DOMAINS[name], IntegerDomain):
        finite += f" || !has({field}.scale) || {field}.scale != 'Log'"
    return f"(!has({field}) || {finite})"


_NUMERIC = [name for name, domain in DOMAINS.items() if issubclass(domain, NumericDomain)]


def _continuous(spec: Any) -> list[tuple[str, str]]:
    """Where a Grid has a hyperparameter with any number of values."""
    return [
        (
            f".searchSpaces[{number}].{name}",
            "must have values or step with algorithm Grid, which tries every combination",
        )
        for number, space in enumerate(spec.search_spaces)
        for name, domain in space.domains().items()
        if domain.finite_values() is None
    ]


def _epochs(spec: Any) -> int:
    fixed = spec.hyperparameters.epochs if spec.hyperparameters else None
    return int(fixed if fixed is not None else Hyperparameters.model_fields["epochs"].default)


def _fixed_and_searched(spec: Any) -> list[str]:
    fixed = set(spec.hyperparameters.to_json()) if spec.hyperparameters else set()
    return sorted(fixed & {name for space in spec.search_spaces for name in space.domains()})


def _of_task(spec: Any, metrics: Iterable[str]) -> bool:
    """Whether the task has all these metrics."""
    return {plain(metric) for metric in metrics} <= set(TASKS[spec.task].metrics)


def _without_slices(spec: Any) -> list[str]:
    """The metrics over slices that the objective of a study without any names, and constraints that name some."""
    named = [*spec.objective.named, *(spec.objective.constraints or ())]
    return [] if spec.validation.slices else [one for one in named if "@" in one]


_CEL_EPOCHS = "(has(self.hyperparameters) && has(self.hyperparameters.epochs) ? self.hyperparameters.epochs : {})"


def _named(spec: Any) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Where a study fixes, searches or sets in a point which hyperparameter (JSON name), with its listed values."""
    points = {f".search.points[{n}]": point for n, point in enumerate(spec.search.points)}
    for place, fixed in {".hyperparameters": spec.hyperparameters, **points}.items():
        if fixed is not None:
            for name, value in fixed.to_json().items():
                yield f"{place}.{name}", name, (value,)
    for number, space in enumerate(spec.search_spaces):
        for name, domain in space.domains().items():
            yield f".searchSpaces[{number}].{name}", name, tuple(domain.values or ())


def _everywhere(hyperparameter: str, fixed: str, searched: str) -> str:
    """CEL: `fixed` for a value v and `searched` for a space s, wherever the hyperparameter has one."""
    own = f"self.hyperparameters.{hyperparameter}"
    return (
        f"(!has(self.hyperparameters) || !has({own}) || [{own}].all(v, {fixed}))"
        f" && self.search.points.all(p, !has(p.{hyperparameter}) || [p.{hyperparameter}].all(v, {fixed}))"
        f" && self.searchSpaces.all(s, !has(s.{hyperparameter}) || {searched})"
    )


def _unsuited(spec: Any) -> list[tuple[str, str]]:
    """Where a hyperparameter means nothing for the task."""
    names = {json_name(name) for name in TASKS[spec.task].without}
    message = f"must not be given with task {spec.task}, for which it means nothing"
    return [(place, message) for place, name, _ in _named(spec) if name in names]


def _unsuited_values(spec: Any) -> list[tuple[str, str]]:
    """Where a hyperparameter has a value that means nothing for the task."""
    refused = {json_name(name): name for name in TASKS[spec.task].without_values}
    return [
        (place, f"must be {_suited_values(spec.task, refused[name])} with task {spec.task}")
        for place, name, values in _named(spec)
        if name in refused and set(values) & set(TASKS[spec.task].without_values[refused[name]])
    ]


def _suited_values(task: Task, name: str) -> str:
    refused = TASKS[task].without_values[name]
    values = get_args(Hyperparameters.model_fields[name].annotation)
    return " or ".join(str(value) for value in values if value not in refused)


def _rules_of(task: Task) -> Iterator[Rule]:
    """What follows for the task's studies from its contract, but for metrics."""
    contract = TASKS[task]
    if contract.without:
        names = [json_name(name) for name in contract.without]
        yield Rule(
            cel=f"self.task != '{task}' || "
            + " && ".join(_everywhere(name, "false", "false") for name in names),
            message=f"with task {task} there must be no {', '.join(names)}",
            holds=lambda self: self.task != task or not _unsuited(self),
            each=_unsuited,
            field=".hyperparameters",
        )
    for name, refused in contract.without_values.items():
        words, listed = json_name(name), list(refused)
        yield Rule(
            cel=f"self.task != '{task}' || "
            + _everywhere(
                words, f"!(v in {listed!r})", f"s.{words}.values.all(v, !(v in {listed!r}))"
            ),
            message=f"with task {task} {words} must be {_suited_values(task, name)}",
            holds=lambda self: self.task != task or not _unsuited_values(self),
            each=_unsuited_values,
            field=".hyperparameters",
        )
    for name in contract.own_fields:
        word = str(Dataset.model_fields[name].alias)
        yield Rule(
            cel=f"self.task == '{task}' || !has(self.dataset.{word})",
            message=f"{word} must only be given with task {task}",
            holds=lambda self, name=name: (  # type: ignore[misc]  # the field of this rule
                self.task == task or getattr(self.dataset, name) is None
            ),
            field=f".dataset.{word}",
        )
    if contract.no_ranks:
        yield Rule(
            cel=f"!has(self.ensemble) || self.ensemble.method != 'RankMean' || self.task != '{task}'",
            message=f"with task {task} method must be Mean or Weighted: {contract.no_ranks}",
            holds=lambda self: (
                self.ensemble is None or self.ensemble.method != "RankMean" or self.task != task
            ),
            field=".ensemble",
        )


_METRICS_OF_TASKS = "; ".join(
    f"{', '.join(metrics)} for {' and '.join(tasks)}" for metrics, tasks in by_metrics().items()
)

_TASK_RULES = (
    *(rule for task in TASKS for rule in _rules_of(task)),
    Rule(
        cel=f"[self.objective.metric].all(m, {metrics_in_cel('m')})",
        message=f"metric must suit the task: {_METRICS_OF_TASKS}",
        holds=lambda self: _of_task(self, [self.objective.metric]),
        field=".objective.metric",
    ),
    Rule(
        cel=f"self.objective.additionalMetrics.all(m, {metrics_in_cel('m')})",
        message="additionalMetrics must suit the task",
        holds=lambda self: _of_task(self, self.objective.additional_metrics),
        field=".objective.additionalMetrics",
    ),
    Rule(
        cel="!has(self.hyperparameters) || self.searchSpaces.all(s, "
        + " && ".join(
            f"!(has(self.hyperparameters.{json_name(n)}) && has(s.{json_name(n)}))" for n in DOMAINS
        )
        + ")",
        message="a hyperparameter must be either fixed in hyperparameters or searched",
        holds=lambda self: not _fixed_and_searched(self),
        field=".hyperparameters",
        detail=lambda self: f"got both for {', '.join(_fixed_and_searched(self))}",
    ),
    Rule(
        cel="!has(self.objective.earlyStoppingMetric)"
        f" || [self.objective.earlyStoppingMetric].all(m, {metrics_in_cel('m')})",
        message="earlyStoppingMetric must suit the task",
        holds=lambda self: _of_task(self, filter(None, [self.objective.early_stopping_metric])),
        field=".objective.earlyStoppingMetric",
    ),
    Rule(
        cel=f"self.objective.secondary.all(o, [o.metric].all(m, {metrics_in_cel('m')}))",
        message="secondary metrics must suit the task",
        holds=lambda self: _of_task(self, [one.metric for one in self.objective.secondary]),
        field=".objective.secondary",
    ),
    Rule(
        cel="has(self.validation.slices) || !([self.objective.metric] + self.objective.additionalMetrics"
        " + self.objective.secondary.map(o, o.metric)"
        " + (has(self.objective.constraints) ? self.objective.constraints : [])"
        " + (has(self.objective.earlyStoppingMetric) ? [self.objective.earlyStoppingMetric] : []))"
        ".exists(m, m.contains('@'))",
        message="metrics over slices must go with validation.slices",
        holds=lambda self: not _without_slices(self),
        field=".validation.slices",
        detail=lambda self: f"got none for {', '.join(_without_slices(self))}",
    ),
    Rule(
        cel="!has(self.ensemble) || self.refit",
        message="ensemble must go with refit",
        holds=lambda self: self.ensemble is None or self.refit,
        field=".ensemble",
    ),
    Rule(
        cel="self.refitRows != 'Train' || (self.refit && !has(self.validation.crossValidation)"
        " && self.validation.repeats == 1)",
        message="refitRows Train must go with refit and one training a trial: no crossValidation, repeats 1",
        holds=lambda self: (
            self.refit_rows != "Train" or (self.refit and self.validation.trainings == 1)
        ),
        field=".refitRows",
    ),
    Rule(
        cel="self.search.algorithm != 'PBT' || self.searchSpaces.all(s, "
        + " && ".join(f"!has(s.{json_name(name)})" for name in STRUCTURAL)
        + ")",
        message="algorithm PBT must not search hyperparameters that decide the structure of the model: "
        + ", ".join(map(json_name, STRUCTURAL)),
        holds=lambda self: (
            self.search.algorithm != "PBT"
            or not any(
                json_name(name) in space.domains()
                for space in self.search_spaces
                for name in STRUCTURAL
            )
        ),
        field=".searchSpaces",
    ),
)

_NONE = ("None", "Auto")
"""Schedulers that may have no rungs: where rungs are impossible, Auto has none."""

_NO_RUNGS = (
    "(self.search.scheduler.type == 'None'"
    " || self.search.scheduler.type == 'Auto' && self.search.algorithm != 'Auto')"
)

SEARCH_RULES = (
    Rule(
        cel="self.search.algorithm != 'Grid' || self.searchSpaces.all(s, "
        + " && ".join(_finite("s", name) for name in _NUMERIC)
        + ")",
        message="with algorithm Grid every hyperparameter must have values or step",
        holds=lambda self: self.search.algorithm != "Grid" or not _continuous(self),
        each=_continuous,
        field=".searchSpaces",
    ),
    Rule(
        cel="self.search.scheduler.type in ['None', 'Auto'] || self.searchSpaces.all(s, !has(s.epochs))",
        message="with a scheduler epochs must be fixed, not searched",
        holds=lambda self: (
            self.search.scheduler.type in _NONE
            or all("epochs" not in space.domains() for space in self.search_spaces)
        ),
        field=".searchSpaces",
    ),
    Rule(
        cel=f"{_NO_RUNGS} || self.search.scheduler.resource != 'Epochs'"
        " || self.search.scheduler.minResource <= double("
        + _CEL_EPOCHS.format(Hyperparameters.model_fields["epochs"].default)
        + ")",
        message="minResource must be at most hyperparameters.epochs",
        holds=lambda self: (
            self.search.scheduler.type == "None"
            or self.search.scheduler.resource != "Epochs"
            or self.search.scheduler.min_resource <= _epochs(self)
        ),
        field=".search.scheduler.minResource",
        detail=lambda self: f"got {self.search.scheduler.min_resource:g}, {_epochs(self)}",
    ),
    Rule(
        cel=f"{_NO_RUNGS} || self.search.scheduler.resource != 'Folds'"
        " || has(self.validation.crossValidation)"
        " && self.search.scheduler.minResource <= double(self.validation.crossValidation.folds)",
        message="resource Folds must go with validation.crossValidation, minResource at most its folds",
        holds=lambda self: (
            self.search.scheduler.type == "None"
            or self.search.scheduler.resource != "Folds"
            or (
                self.validation.cross_validation is not None
                and self.search.scheduler.min_resource <= self.validation.folds
            )
        ),
        field=".search.scheduler.resource",
    ),
    Rule(
        cel="self.search.algorithm != 'PBT' || self.search.scheduler.type in ['None', 'Auto']"
        " && !has(self.validation.crossValidation) && self.validation.repeats == 1"
        " && self.searchSpaces.all(s, !has(s.epochs))",
        message="algorithm PBT must have scheduler None, no cross-validation or repeats, and fixed epochs",
        holds=lambda self: (
            self.search.algorithm != "PBT"
            or (
                self.search.scheduler.type in _NONE
                and self.validation.cross_validation is None
                and self.validation.repeats == 1
                and all("epochs" not in space.domains() for space in self.search_spaces)
            )
        ),
        field=".search.algorithm",
    ),
    Rule(
        cel="self.search.algorithm != 'CMAES' || self.searchSpaces.size() == 1 && self.searchSpaces.all(s, "
        + " && ".join(f"!has(s.{json_name(name)})" for name in DOMAINS if name not in _NUMERIC)
        + ")",
        message="algorithm CMAES must have one space, of numbers only",
        holds=lambda self: (
            self.search.algorithm != "CMAES"
            or (
                len(self.search_spaces) == 1
                and all(
                    isinstance(domain, NumericDomain)
                    for domain in self.search_spaces[0].domains().values()
                )
            )
        ),
        field=".searchSpaces",
    ),
    Rule(
        cel="self.objective.secondary.size() == 0 || self.search.scheduler.type in ['None', 'Auto'] && "
        "self.search.algorithm != 'CMAES' && self.search.algorithm != 'PBT'",
        message="with secondary objectives the scheduler must be None, the algorithm not CMAES or PBT: "
        "rungs, CMAES and PBT compare by one objective",
        holds=lambda self: (
            not self.objective.secondary
            or (
                self.search.scheduler.type in _NONE
                and self.search.algorithm not in ("CMAES", "PBT")
            )
        ),
        field=".objective.secondary",
    ),
)
"""Rules for a search, whatever is trained."""

BUDGET_RULES = (
    Rule(
        cel="self.search.algorithm == 'Grid' || self.search.algorithm == 'PBT'"
        " || has(self.budget.maxTrials) || has(self.budget.maxDurationSeconds)",
        message="unless algorithm is Grid or PBT the budget must have maxTrials or maxDurationSeconds",
        holds=lambda self: (
            self.search.algorithm in ("Grid", "PBT")
            or self.budget.max_trials is not None
            or self.budget.max_duration_seconds is not None
        ),
        field=".budget",
    ),
    Rule(
        cel="self.search.scheduler.type != 'SuccessiveHalving' || self.search.algorithm == 'Grid' || has(self.budget.maxTrials)",
        message="with scheduler SuccessiveHalving the budget must have maxTrials, unless algorithm is Grid",
        holds=lambda self: (
            self.search.scheduler.type != "SuccessiveHalving"
            or self.search.algorithm == "Grid"
            or self.budget.max_trials is not None
        ),
        field=".budget",
    ),
)
"""Rules for a search and its budget, which may be edited."""


class StudySpec(Model):
    """The study. After creation only suspend, budget, objective.target and ttlSecondsAfterFinished may change; cluster
    and compute while it is suspended; storage and className before its first attempt."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *(rule.at_creation() for rule in (*_TASK_RULES, *SEARCH_RULES, WHEN_RULE)),
        *BUDGET_RULES,
    )

    class_name: ClassName | None = None
    """The FineTuneClass of the cluster that gives the study its image, resources and storage, and limits it. Default: the
    class that the namespace names (label `finetune.dev/class`), else the one that is marked as the default, else none."""

    task: Task
    """SingleLabel: one class per row. MultiLabel: any number of labels per row. Regression: a number per row."""

    model: PretrainedModel
    dataset: Dataset
    objective: Objective
    hyperparameters: FixedHyperparameters | None = None
    search_spaces: list[SearchSpace] = Field(
        min_length=1, max_length=MAX_SPACES, json_schema_extra=ATOMIC
    )
    """One space, or alternatives: Grid goes through them one after another, other algorithms choose one for each trial."""

    validation: Validation = Validation()
    compute: Compute = Compute()
    search: Search = Search()
    budget: Budget = Budget()
    refit: bool = True
    """Train the winner again, and test it once on the held-out test rows."""

    refit_rows: Literal["TrainAndValidation", "Train"] = "TrainAndValidation"
    """Rows on which the winner is trained again. With Train it gets the weights from its best point on the
    validation rows, if it was trained on all train rows then."""

    ensemble: Ensemble | None = None
    """Default: the winner alone."""

    artifacts: Artifacts = Artifacts()
    tracking: Tracking | None = None

    cluster: ClusterSpec = ClusterSpec()
    storage: Storage | None = None
    """Default: the operator's default storage."""

    on_existing: Literal["Fresh", "Adopt"] = "Fresh"
    """What happens to records that an earlier study of this name left in the storage. Fresh: nothing; each study
    has a folder of its own. Adopt: the folder belongs to the name, so a study that was deleted and created again
    resumes from its records; one that asks for something else fails."""

    suspend: bool = False
    """Stop the study's pods and keep its records; set it back to false to resume."""

    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=31536000)
    """Delete the study this many seconds after it finished. Default: keep it. GitOps would create a deleted study again."""

    @property
    def max_epochs(self) -> int:
        """Epochs of a full trial where `epochs` is fixed or has its default."""
        return _epochs(self)

    @property
    def spaces(self) -> list[SearchSpaceBase]:
        """The search spaces with their static type."""
        return list(self.search_spaces)


class ObjectMeta(Model):
    """The part of Kubernetes' ObjectMeta that a study's readers use."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str | None = None
    labels: dict[str, str] = Field({})
    annotations: dict[str, str] = Field({})
    uid: str | None = None
    resource_version: str | None = None
    generation: int = 1
    creation_timestamp: datetime | None = Field(None, strict=False)
    deletion_timestamp: datetime | None = Field(None, strict=False)


_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_NAMES = (
    f"lower-case letters, digits and hyphens, begin with a letter, at most {MAX_NAME} characters"
)


def name_problem(name: object) -> str | None:
    """What must hold for the name of a study, if `name` cannot be one."""
    if isinstance(name, str) and len(name) <= MAX_NAME and re.fullmatch(_NAME[1:-1], name):
        return None
    end = ", not end with a hyphen" if isinstance(name, str) and name.endswith("-") else ""
    shown = repr(name)
    return f"must be {_NAMES}{end} (got {shown if len(shown) <= 80 else f'{shown[:77]}...'})"


def _wrong_name(study: Any) -> list[tuple[str, str]]:
    problem = name_problem(study.metadata.name)
    return [] if problem is None else [(".metadata.name", problem)]


_EDITABLE = ("suspend", "budget", "ttl_seconds_after_finished", "objective")


def _same(field: str, optional: bool) -> str:
    same = f"self.spec.{field} == oldSelf.spec.{field}"
    if optional:
        has, had = f"has(self.spec.{field})", f"has(oldSelf.spec.{field})"
        same = f"{has} == {had} && (!{has} || {same})"
    return f"({same})"


_SAME = {
    str(field.alias): _same(str(field.alias), field.default is None)
    for name, field in StudySpec.model_fields.items()
    if name not in _EDITABLE
} | {
    f"objective.{field.alias}": _same(f"objective.{field.alias}", field.default is None)
    for name, field in Objective.model_fields.items()
    if name != "target"
}
"""CEL for each field that must not change: whether it is as it was."""

_NO_ATTEMPT = (
    "(!has(oldSelf.status) || !has(oldSelf.status.attempts) || oldSelf.status.attempts == 0)"
)

_UNTIL: dict[str, tuple[str, str]] = {
    "cluster": ("oldSelf.spec.suspend", "may change only while suspend is true"),
    "compute": ("oldSelf.spec.suspend", "may change only while suspend is true"),
    "storage": (
        _NO_ATTEMPT,
        "may change only before the first attempt; docs/operations.md says how to move a study",
    ),
    "className": (_NO_ATTEMPT, "may change only before the first attempt"),
}
"""Fields that may change while something holds: its CEL, and what to say while it does not.

What an attempt is made of follows the study at the next attempt, and a study that was suspended when it was edited has
one. Until the first attempt, nothing is stored.
"""


def _kept(field: str) -> str:
    """CEL for whether the field is as it has to be."""
    until = _UNTIL.get(field)
    return f"({_SAME[field]} || {until[0]})" if until else _SAME[field]


def _told(field: str) -> str:
    """How the field is told."""
    until = _UNTIL.get(field)
    return f" {field} ({until[1]})" if until else f" {field}"


_NEW_MESSAGE = (
    "has(self.status.message) && has(oldSelf.status.message)"
    " && self.status.message != oldSelf.status.message"
)
"""True for most writes of the status, and for no others: a write of the status cannot change the spec, nor vice
versa. Comparing a whole spec takes the API server about as long as the rest of such a write."""

_UNCHANGED = Rule(
    cel=f"{_NEW_MESSAGE} || {' && '.join(map(_kept, _SAME))}",
    message="only suspend, budget, objective.target and ttlSecondsAfterFinished may change after creation; cluster and "
    "compute while suspend is true; storage and className before the first attempt",
    message_cel="'must not change after creation:'"
    + "".join(f" + ({_kept(field)} ? '' : '{_told(field)}')" for field in _SAME),
    holds=lambda _: True,
    field=".spec",
)


class FineTuneStudy(Model):
    """A search for the best hyperparameters of a fine-tuned model."""

    UPDATE_RULES: ClassVar[tuple[Rule, ...]] = (_UNCHANGED,)

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{_NAME}')",
            message=f"metadata.name must be {_NAMES}",
            holds=lambda self: not _wrong_name(self),
            each=_wrong_name,
            field=".metadata",
        ),
    )

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["FineTuneStudy"]
    metadata: ObjectMeta
    spec: StudySpec
    status: StudyStatus = StudyStatus()
