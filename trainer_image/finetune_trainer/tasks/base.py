"""What every task must say."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_api.tasks import Task
from finetune_trainer.tasks.calibration import Calibration
from finetune_trainer.tasks.mistakes import MOST, Mistake
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.report import Report
from finetune_trainer.tasks.tagging import Tagged

Label: TypeAlias = str | tuple[str, ...] | float | Tagged
"""A class (SingleLabel), any number of labels (MultiLabel), a number (Regression) or tagged words
(TokenClassification)."""

Stratum: TypeAlias = str | tuple[str, ...] | float
"""What rows are divided by: a class, any number of them, or a number, by which they are not divided."""

Labels: TypeAlias = Any
"""Encoded labels of rows, as the task's `encode` makes them: an array (rows,) or (rows, outputs), or a `Ragged` with
those of each row's words. Both have a length and take numbers of rows in brackets."""

Logits: TypeAlias = Any
"""What a model says of rows: float32 (rows, outputs), or what the task keeps of its answers for words (`Ragged`)."""


class TrainingTask(ABC):
    """All that is particular to one task.

    `outputs` is the number of outputs of the model: of `label_names`.
    """

    name: ClassVar[Task]
    problem_type: ClassVar[str | None]
    """The name that transformers has for the loss of its models; None where the model's class says it."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """The class of transformers that loads its models."""

    pipeline: ClassVar[str] = "text-classification"
    """The pipeline of transformers that predicts with them."""

    usual_labels: ClassVar[Mapping[str, str]] = {"labelColumn": "label"}
    """The field and the name of the column of labels where nothing says what it is called."""

    tags_words: ClassVar[bool] = False
    """Whether each word of a row has a label of its own (`Ragged`), and long rows are read in windows."""

    leaks_labels: ClassVar[bool] = True
    """Whether a text that contains its own label gives it away."""

    has_classes: ClassVar[bool] = True
    """Whether labels are names, of which there are finitely many: rows with others than the training rows' are left
    out, each is counted, and rows can be divided such that each part has its share of them."""

    has_thresholds: ClassVar[bool] = False
    """Whether outputs are predicted from a threshold on, which can be tuned."""

    samples_by_class: ClassVar[bool] = False
    """Whether a sample of training rows has its share of each class."""

    standardised: ClassVar[bool] = False
    """Whether a new head learns numbers with mean 0 and deviation 1 in the place of the labels."""

    means_over_labels: ClassVar[tuple[str, ...]] = ()
    """Metrics that are means over the labels that some rows have and others lack."""

    of_kinds: ClassVar[tuple[str, ...]] = ()
    """Metrics that need rows with some of `kinds`: without any they are undefined."""

    # -- labels

    def unpacked(self, cell: Any) -> Any:
        """A cell of the label column, where it is a list as text: the list. Raises WrongCell for one that is broken."""
        return cell

    def check_cells(self, cells: Sequence[Any]) -> None:
        """Raises DataError if the cells of all rows together show that they are something else than labels."""
        return

    @abstractmethod
    def label_of(self, cell: Any, separator: str | None = None) -> Label | None:
        """The label in a cell of the label column; None if it has none. Raises WrongCell.

        `separator` is `dataset.labelSeparator`.
        """

    def stratum(self, label: Label) -> Stratum:
        """What a row with this label is divided by."""
        assert not isinstance(label, Tagged)  # a task that tags words says what it is
        return label

    def kinds(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names in strata that outputs called `names` can tell apart."""
        return tuple(names)

    @abstractmethod
    def encode(self, labels: Sequence[Label], names: Sequence[str]) -> Labels:
        """Labels as an array; `names` are those of the outputs."""

    @abstractmethod
    def counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        """How many rows have each output, (outputs,)."""

    def kind_counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        """How many rows have each of `kinds`."""
        return self.counts(labels, outputs)

    @abstractmethod
    def having(self, labels: Labels, output: int) -> NDArray[np.bool_]:
        """Which rows have an output, (rows,)."""

    def strata(self, labels: Labels, outputs: int) -> NDArray[Any]:
        """What folds are stratified by: numbers of classes (rows,), or which outputs each row has (rows, outputs)."""
        found: NDArray[Any] = labels
        return found

    @abstractmethod
    def named(self, label: Any, names: Sequence[str]) -> str | list[str] | float:
        """One encoded label in words."""

    # -- learning

    @abstractmethod
    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
    ) -> Tensor:
        """The mean over rows of the loss of `logits` (rows, outputs).

        `weights` (outputs,) are those of `balancing_weights`; `smoothing` is `labelSmoothing`, `gamma` is
        `focalGamma`: the surer the model is of a label, the less its loss counts.
        """

    @abstractmethod
    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """How much two predictions of the same rows (rows, outputs) differ, in either order the same: a mean over rows."""

    @abstractmethod
    def balancing_weights(self, labels: Labels, outputs: int) -> NDArray[np.float32]:
        """Weights for `loss` that make rare classes count as much as frequent ones: (outputs,)."""

    @abstractmethod
    def priors(self, labels: Labels, outputs: int, extra: int = 0) -> NDArray[np.float64]:
        """Logits (outputs,) that predict, of any row, what `labels` of the training rows are on average.

        Each class counts `extra` rows more. Every share counts as at least half a row.
        """

    def head_bias(self, labels: Labels, outputs: int, extra: int) -> NDArray[np.float64]:
        """The bias (outputs,) of a new head that begins with `priors`."""
        return self.priors(labels, outputs, extra)

    # -- judging

    def kept(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is kept of the outputs for a batch, with as many rows, to judge the model by."""
        return logits

    def arranged(
        self,
        values: NDArray[np.float32],
        places: NDArray[np.int64],
        labels: Labels,
        whole: bool = False,
    ) -> Logits:
        """The `kept` values of all batches as logits of rows with these `labels`, or with `whole` all outputs; `places` has
        the row of each value, or the rows one after another whose words they are of.
        """
        found = np.empty_like(values)
        found[places] = values
        return found

    def alike(self, values: NDArray[np.float32], logits: Logits) -> Logits:
        """Other values as logits of the same rows as `logits`."""
        return values

    def tiled(self, row: NDArray[np.float64], labels: Labels) -> Logits:
        """The logits of a model that says the same, (outputs,), of everything."""
        return np.tile(row.astype(np.float32), (len(labels), 1))

    def value_of_loss(self, logits: Logits, labels: Labels) -> float:
        """The loss of answers, computed in float64."""
        return float(self.loss(torch.from_numpy(logits).double(), torch.from_numpy(labels)))

    @abstractmethod
    def predictions(self, logits: Logits, thresholds: NDArray[np.float64] | None = None) -> Labels:
        """What `logits` predict, as labels are encoded.

        `thresholds` (outputs,) are probabilities, of tasks that have them; None means one half for each.
        """

    @abstractmethod
    def metric(
        self, name: str, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> float:
        """A metric of the task but its loss; NaN where it is undefined. Raises ValueError for one that it does not have."""

    @abstractmethod
    def report(
        self,
        names: Sequence[str],
        logits: Logits,
        labels: Labels,
        thresholds: NDArray[np.float64] | None,
    ) -> Report:
        """What single metrics hide; `names` are those of the outputs. Tasks that have thresholds need them here."""

    @abstractmethod
    def in_words(
        self, names: Sequence[str], logits: Logits, thresholds: NDArray[np.float64] | None
    ) -> list[Prediction]:
        """What `logits` say of each row; `names` are those of the outputs."""

    def calibration(self, logits: Logits, labels: Labels) -> Calibration | None:
        """How often predictions are right, by their probability; None where there is none to go by."""
        return None

    @abstractmethod
    def wrongness(
        self, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """How wrong each row is predicted, (rows,): 0 where it is right, more where the model is surer of what is wrong."""

    def mistakes(
        self,
        names: Sequence[str],
        logits: Logits,
        labels: Labels,
        thresholds: NDArray[np.float64] | None,
        most: int = MOST,
    ) -> list[Mistake]:
        """At most so many of the rows that are predicted wrongly, the worst first."""
        most_wrong = np.finfo(np.float64).max  # also what is no number
        wrong = np.nan_to_num(
            self.wrongness(logits, labels, thresholds), nan=most_wrong, posinf=most_wrong
        )
        predicted = self.predictions(logits, thresholds)
        worst = np.argsort(-wrong, kind="stable")[:most]
        return [
            self.mistake(names, row, self.at(labels, row), self.at(predicted, row), logits)
            for row in worst.tolist()
            if wrong[row] > 0
        ]

    def at(self, labels: Labels, row: int) -> Any:
        """The encoded label of one row."""
        return labels[row]

    def mistake(
        self, names: Sequence[str], row: int, label: Any, predicted: Any, logits: Logits
    ) -> Mistake:
        """One row in words."""
        return Mistake(row, self.named(label, names), self.named(predicted, names))

    def constant(self, labels: Labels, outputs: int) -> NDArray[np.float64]:
        """Logits (outputs,) of the best prediction that is the same for all rows; `labels` are the training rows'."""
        return self.priors(labels, outputs)

    @abstractmethod
    def shares(self, logits: Logits) -> NDArray[np.float64]:
        """The probabilities (rows, outputs) that `logits` stand for, or numbers."""

    @abstractmethod
    def logits_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits that stand for `shares`; the inverse of `shares`, but for what does not matter to predictions."""

    @abstractmethod
    def explained(self, logits: Logits, predicted: Any) -> list[int]:
        """Which outputs say why `logits` (1, outputs) gave this prediction."""

    def probabilities_of(self, logits: Logits) -> NDArray[np.float64] | None:
        """The probabilities (outputs,) of `logits` (1, outputs); None if outputs are numbers."""
        found: NDArray[np.float64] = self.shares(logits)[0]
        return found

    # -- handing over, in the words of a model card

    purpose: ClassVar[str]
    """What the model predicts; `{count}` and `{name}` are the number of outputs and the first one's name."""

    constant_words: ClassVar[str]
    """What `constant` predicts, followed by `training rows`."""

    card_imports: ClassVar[tuple[str, ...]] = ()
    """Lines of Python that `card_answer` needs at the top."""

    card_answer: ClassVar[tuple[str, ...]] = ()
    """Lines of Python that make a prediction of `logits`."""

    card_pipeline: ClassVar[tuple[str, ...]] = ()
    """Lines of Python that load the model and predict, of tasks for which the usual ones with `card_answer` are not; in
    them `{given}` is a text, and `{overlap}` how many tokens two windows share."""

    card_call_together: ClassVar[str] = "outputs = ensemble.predict({given})"
    """A line of Python that asks an ensemble; `{given}` are texts."""

    card_answer_together: ClassVar[str] = ""
    """A line of Python that makes a prediction of the `outputs` of an ensemble."""

    card_limit: ClassVar[str] = ""
    """What it cannot do, as a sentence."""
