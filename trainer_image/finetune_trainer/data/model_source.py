"""Where the pretrained encoder is found: a folder or the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants

from finetune_api.study import PretrainedModel
from finetune_trainer.data.hub import first_line, is_transient
from finetune_trainer.errors import ModelError

FIELD = "spec.model.name"


@dataclass(frozen=True)
class ModelSource:
    """A pretrained encoder: `name` is a folder or a hub id, `revision` a commit, tag or branch there."""

    name: str
    revision: str | None = None

    @classmethod
    def find(cls, model: PretrainedModel, base: Path) -> "ModelSource":
        """The folder below `base` that has the name of `model`, else the hub model of that name."""
        folder = base / model.name
        return cls(str(folder)) if folder.is_dir() else cls(model.name, model.revision)

    def pinned(self) -> "ModelSource":
        """The same model at the commit that its revision means now, so that every trial has the same."""
        commit = getattr(self.config(), "_commit_hash", None)
        return replace(self, revision=commit) if commit else self

    def config(self, **changes: Any) -> Any:
        """The model's configuration with `changes`. Raises ModelError if it cannot be loaded."""
        with self._explained("configuration"), quiet_transformers():
            return transformers.AutoConfig.from_pretrained(
                self.name, revision=self.revision, trust_remote_code=False, **changes
            )

    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises ModelError if it cannot be loaded."""
        with self._explained("tokenizer"), quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(
                self.name, revision=self.revision, trust_remote_code=False
            )

    def weights(self, config: Any) -> tuple[Any, dict[str, Any]]:
        """The model with a classification head for `config`, and transformers' account of the loading.

        Only safetensors are read. Raises ModelError if the weights cannot be loaded.
        """
        with self._explained("safetensors weights"), quiet_transformers():
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.name,
                revision=self.revision,
                config=config,
                dtype="float32",
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        return model, info

    def _not_a_folder(self) -> str:
        offline = ", and HF_HUB_OFFLINE keeps from asking the hub"
        return f"; no such folder{offline if constants.HF_HUB_OFFLINE else ''}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except ModelError:
            raise
        except Exception as error:  # whatever a broken folder makes transformers raise
            if is_transient(error):
                raise
            note = "" if Path(self.name).is_dir() else self._not_a_folder()
            raise ModelError(
                FIELD,
                f"must be a folder or hub id of a model whose {what} can be loaded without remote code "
                f"(got {self.name}: {first_line(error)}{note})",
            ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, loading reports and advice; errors still show."""
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
