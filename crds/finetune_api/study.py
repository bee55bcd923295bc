"""The FineTuneStudy resource: what a user writes (`spec`) and what the operator answers (`status`)."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field

from finetune_api.cluster import ClusterSpec, Compute
from finetune_api.dataset import Dataset, PretrainedModel
from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.objective import Objective, Validation
from finetune_api.outputs import Artifacts, Ensemble, Tracking
from finetune_api.schema import Model, Rule
from finetune_api.search import Budget, Search
from finetune_api.search_rules import BUDGET_RULES, SEARCH_RULES, fixed_epochs
from finetune_api.spaces import (
    ATOMIC,
    MAX_SPACES,
    WHEN_RULE,
    SearchSpaceBase,
)
from finetune_api.status import StudyStatus
from finetune_api.stores import Storage
from finetune_api.task_rules import TASK_RULES
from finetune_api.tasks import Task

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneStudy"
PLURAL = "finetunestudies"
MAX_NAME = 40

ClassName: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class StudySpec(Model):
    """The study. After creation only suspend, budget, objective.target and ttlSecondsAfterFinished may change; cluster
    and compute while it is suspended; storage and className before its first attempt."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *(rule.at_creation() for rule in (*TASK_RULES, *SEARCH_RULES, WHEN_RULE)),
        *BUDGET_RULES,
    )

    class_name: ClassName | None = None
    """The FineTuneClass of the cluster that gives the study its image, resources and storage, and limits it. Default: the
    class that the namespace names (label `finetune.dev/class`), else the one that is marked as the default, else none."""

    task: Task
    """SingleLabel: one class per row. MultiLabel: any number of labels per row. Regression: a number per row.
    TokenClassification: entities in the text of each row (names, places, amounts, …), or a tag for each word."""

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
        return fixed_epochs(self)

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


NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""What the name of a study must match."""

_NAMES = (
    f"lower-case letters, digits and hyphens, begin with a letter, at most {MAX_NAME} characters"
)


def name_problem(name: object) -> str | None:
    """What must hold for the name of a study, if `name` cannot be one."""
    if isinstance(name, str) and len(name) <= MAX_NAME and re.fullmatch(NAME_PATTERN[1:-1], name):
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
            cel=f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{NAME_PATTERN}')",
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
