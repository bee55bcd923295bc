"""What a slot keeps from item to item, and the runs that it begins and resumes with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.study import StudySpec
from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.trial_values import trial_values
from finetune_trainer.provenance import setting
from finetune_trainer.records.claim import RULES, rules_of
from finetune_trainer.storage.folder import Storage
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Workbench:
    """The study, its rows, pretrained weights, a device and the storage."""

    spec: StudySpec
    data: PreparedData
    """As prepared: train, validation and test apart."""

    storage: Storage
    device: str
    name: str = ""
    """Of the study."""

    _loaded: dict[ModelSource, Pretrained] = field(default_factory=dict)
    """Weights are read from disk once."""

    @cached_property
    def setting(self) -> dict[str, str]:
        """What this process trains with."""
        return setting(self.device, self.spec.compute)

    @cached_property
    def out_of_fold(self) -> bool:
        """Whether metrics of the validation rows are means over folds; see `TrialRun`."""
        if "PerLabel" not in trial_values(self.spec, "thresholdTuning"):
            return False
        rules = self.storage.persist("read", lambda: rules_of(self.storage))
        return rules.get("thresholds") == RULES["thresholds"]

    def _pretrained(self, data: PreparedData) -> Pretrained:
        """The weights of the model that reads `data`."""
        if data.model not in self._loaded:
            load = partial(Pretrained.load, data.model, data.task, data.label_names)
            self._loaded[data.model] = self.storage.persist("read", load)
        return self._loaded[data.model]

    def begin(
        self, data: PreparedData, config: Hyperparameters, seed: int, history: Sequence[float] = ()
    ) -> TrialRun:
        """A run from the pretrained weights; the arguments are those of `TrialRun`."""
        data = data.read_by(config.pretrained_model)
        return TrialRun(
            self._pretrained(data),
            data,
            config,
            seed,
            self.spec.objective,
            self.device,
            self.spec.compute,
            history,
            self.out_of_fold,
        )

    def resume(
        self,
        path: str,
        data: PreparedData,
        history: Sequence[float] = (),
        changed: Hyperparameters | None = None,
    ) -> TrialRun:
        """The run whose checkpoint is at `path` in storage; the arguments are those of `TrialRun.resume`.

        Raises FileNotFoundError if there is no checkpoint.
        """

        def resumed() -> TrialRun:
            with self.storage.fetched(path) as folder:
                config = Hyperparameters.model_validate(Checkpoint(folder).state()["config"])
                rows = data.read_by(config.pretrained_model)
                return TrialRun.resume(
                    folder,
                    self._pretrained(rows),
                    rows,
                    self.spec.objective,
                    self.device,
                    self.spec.compute,
                    history,
                    changed,
                    self.out_of_fold,
                )

        return self.storage.persist("read", resumed)
