"""What every task must say."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune_api.tasks import Task
from finetune_trainer.tasks.report import Report

Label: TypeAlias = str | tuple[str, ...] | float
"""A class (SingleLabel), any number of labels (MultiLabel) or a number (Regression)."""

Labels: TypeAlias = NDArray[Any]
"""Encoded labels of rows: (rows,) or (rows, outputs), as the task's `encode` makes them."""

Logits: TypeAlias = NDArray[np.float32]
"""What a model says of rows: (rows, outputs)."""


class TrainingTask(ABC):
    """All that is particular to one task.

    `outputs` is the number of outputs of the model: of `label_names`.
    """

    name: ClassVar[Task]
    problem_type: ClassVar[str]
    """The name that transformers has for it."""

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

    @abstractmethod
    def encode(self, labels: Sequence[Label], names: Sequence[str]) -> Labels:
        """Labels as an array; `names` are those of the outputs."""

    @abstractmethod
    def counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        """How many rows have each output, (outputs,)."""

    @abstractmethod
    def having(self, labels: Labels, output: int) -> NDArray[np.bool_]:
        """Which rows have an output, (rows,)."""

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

    card_answer: ClassVar[tuple[str, ...]]
    """Lines of Python that make a prediction of `logits`."""

    card_answer_together: ClassVar[str]
    """A line of Python that makes a prediction of the `outputs` of an ensemble."""

    card_limit: ClassVar[str] = ""
    """What it cannot do, as a sentence."""
