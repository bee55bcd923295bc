"""What a study hands over, and whom it tells."""

from typing import Literal, TypeAlias

from pydantic import Field

from finetune_api.locations import Location
from finetune_api.schema import Model, Name

EnsembleMethod: TypeAlias = Literal["Mean", "Weighted", "RankMean"]


class Ensemble(Model):
    """Several of the best trials that predict together. They become the final model only if they are better
    on the validation rows than the best of them alone, all trained on the training rows; otherwise only the
    winner is refitted."""

    size: int = Field(ge=2, le=10)
    """How many of the best trials; fewer if no more have a value."""

    method: EnsembleMethod = "Mean"
    """Mean of the members' probabilities (in TokenClassification those of each word), or of the numbers of Regression. Weighted: by how much
    better the objective of each member was than that of the worst trial of the search. RankMean: mean of the
    ranks of each label's probability among those of the validation rows; not for Regression and TokenClassification."""


class Artifacts(Model):
    """What is produced from the refitted winner (or ensemble) besides the model, its card and its table of results."""

    onnx: bool = False
    """Also export the model as ONNX, checked against the PyTorch outputs."""

    attributed_rows: int = Field(0, ge=0, le=1000)
    """Test rows whose predictions are attributed to their tokens (integrated gradients), spread evenly over all test
    rows; written to `results/attributions.jsonl`. With an ensemble the winner's model is used."""

    texts: bool | None = None
    """Whether reports show texts of test rows: those of the worst mistakes, and attributed tokens. Unset means true, unless
    the class says `withoutTexts`."""


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
