"""Finds the pretrained encoder: in a folder, an object store or the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants

from finetune_api.dataset import PretrainedModel
from finetune_trainer.data.hub import first_line, is_transient
from finetune_trainer.data.model_store import fetched
from finetune_trainer.errors import ModelError, StorageUnavailable
from finetune_trainer.modeling_finetune_pooled import (
    PooledConfig,
    PooledForSequenceClassification,
    PooledModel,
)
from finetune_trainer.storage.locations import shown

FIELD = "spec.model.name"
_POSITIONS_AFTER_PADDING = (
    "roberta",
    "camembert",
    "mpnet",
    "longformer",
    "xmod",
    "data2vec",
    "ibert",
    "luke",
    "esm",
    "markuplm",
)
"""Model types that number a row's positions from the padding token's id upwards."""

# Our models with a head over pooled states are loaded by these classes, never by the code beside them.
transformers.AutoConfig.register(PooledConfig.model_type, PooledConfig)
transformers.AutoModel.register(PooledConfig, PooledModel)


@dataclass(frozen=True)
class ModelSource:
    """A pretrained encoder: `name` is a folder, its URI or a hub id; `revision` is a commit, tag or branch there."""

    name: str
    revision: str | None = None
    absent: str = field(default="", compare=False, repr=False)
    """The full path of the folder that is not there, which a hub id might have meant."""

    @classmethod
    def find(cls, model: PretrainedModel, base: Path) -> "ModelSource":
        """What `model` names: a folder in an object store, one below `base`, or else a model of the hub.

        Raises ModelError for the path of a file, and for what can only be a path if there is no folder.
        """
        if "://" in model.name:
            return cls(model.name)
        folder = base / model.name
        if folder.is_dir():
            return cls(str(folder))
        full = os.path.abspath(folder)
        if folder.exists():
            remedy = f"; name its folder {Path(model.name).parent}" if folder.is_file() else ""
            raise ModelError(
                FIELD, f"must be a folder or hub id of a model (got {model.name}, a file){remedy}"
            )
        if _is_path(model.name, base):
            raise ModelError(
                FIELD,
                f"must be a folder or hub id of a model (got {model.name}; no such folder: {full})",
            )
        return cls(model.name, model.revision, full)

    @property
    def _place(self) -> str:
        """Where transformers finds it."""
        return str(fetched(self.name)) if "://" in self.name else self.name

    def pinned(self) -> "ModelSource":
        """The same model at the commit that its revision means now, so that all trials get the same."""
        commit = getattr(self.config(), "_commit_hash", None)
        return replace(self, revision=commit) if commit else self

    def config(self, **changes: Any) -> Any:
        """The model's configuration with `changes`; if the model has a head of ours, that of its encoder.

        Raises ModelError if it cannot be loaded.
        """
        with self._explained("configuration"), quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(
                self._place, revision=self.revision, trust_remote_code=False, **changes
            )
            return config.of_encoder(**changes) if isinstance(config, PooledConfig) else config

    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises ModelError if it cannot be loaded, has no vocabulary, or pads on the left."""
        with self._explained("tokenizer"), quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._place, revision=self.revision, trust_remote_code=False
            )
            # If its files are missing, transformers makes a tokenizer to which every word is unknown.
            if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}:
                files = " or ".join(tokenizer.vocab_files_names.values())
                raise ValueError(f"its vocabulary must be in {files} but is not there")
        if tokenizer.padding_side != "right":
            raise ModelError(
                FIELD,
                f"must be a model whose tokenizer pads on the right (got {self.name}: padding_side is "
                f"{tokenizer.padding_side})",
            )
        return tokenizer

    def weights(
        self, config: Any, auto_class: str = "AutoModelForSequenceClassification"
    ) -> tuple[Any, dict[str, Any]]:
        """The model with the head of `auto_class` for `config`, and transformers' report on loading it.

        Reads only safetensors. Raises ModelError if the weights cannot be loaded, or lack a tensor that the
        encoder should have by the model's configuration; a pooler may be new.
        """
        with self._explained("safetensors weights"), quiet_transformers():
            model, info = self._classifier(config, getattr(transformers, auto_class))
        self._check_encoder(model, new_tensors(info))
        return model, info

    def _classifier(self, config: Any, auto: Any) -> tuple[Any, dict[str, Any]]:
        options = {
            "revision": self.revision,
            "dtype": "float32",
            "trust_remote_code": False,
            "use_safetensors": True,
        }
        found = transformers.AutoConfig.from_pretrained(
            self._place, revision=self.revision, trust_remote_code=False
        )
        own: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        if not isinstance(found, PooledConfig):
            model, info = auto.from_pretrained(self._place, config=config, **options, **own)
            return model, info
        pooled = PooledForSequenceClassification.from_pretrained(self._place, **options)
        with torch.device("meta"):  # for its class only, without weights
            kind = type(auto.from_config(config))
        weights = pooled.encoder.state_dict(prefix=f"{kind.base_model_prefix}.")
        model, info = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype="float32", **own
        )
        return model, info

    def _check_encoder(self, model: Any, new: set[str]) -> None:
        prefix = f"{model.base_model_prefix}."
        encoder = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        pooler = f"{prefix}pooler."
        absent = [name for name in encoder if name in new and not name.startswith(pooler)]
        if absent:
            raise ModelError(
                FIELD,
                f"must be a model whose weights fit its configuration (got {self.name}: {len(absent)} of "
                f"{len(encoder)} encoder tensors are missing or of another shape, such as "
                f"{', '.join(absent[:3])})",
            )

    def encoder(self, precision: str) -> Any:
        """The encoder without a head, for evaluation, in `float32` or `float64`; reads only safetensors.

        Raises ModelError if it cannot be loaded, or not completely.
        """
        with self._explained("safetensors weights"), quiet_transformers():
            model, info = transformers.AutoModel.from_pretrained(
                self._place,
                revision=self.revision,
                dtype=precision,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            if isinstance(model, PooledModel):
                model = model.encoder
            missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
            if missing:
                raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
        return model.eval()

    def _not_a_folder(self) -> str:
        offline = ", and HF_HUB_OFFLINE forbids asking the hub" if constants.HF_HUB_OFFLINE else ""
        return f"; no such folder{f': {self.absent}' if self.absent else ''}{offline}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ModelError, StorageUnavailable):
            raise
        except Exception as error:  # whatever a broken folder makes transformers raise
            if is_transient(error):
                raise
            found = "://" in self.name or Path(self.name).is_dir()
            note = "" if found else self._not_a_folder()
            raise ModelError(
                FIELD,
                f"must be a folder or hub id of a model whose {what} can be loaded without remote code "
                f"(got {shown(self.name)}: {first_line(error)}{note})",
            ) from error


def _is_path(name: str, base: Path) -> bool:
    """Whether a name is a path and not a hub id: by its form, or because the folder that it begins with is there."""
    if name.startswith((".", "/", "~")) or name.endswith("/"):
        return True
    return name.count("/") > 1 or ("/" in name and (base / name).parent.is_dir())


def max_tokens(tokenizer: Any, config: Any) -> int:
    """The longest row that a model can read, including special tokens."""
    limits = [int(tokenizer.model_max_length)]  # a huge number if the tokenizer has no limit
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        shifted = any(name in config.model_type for name in _POSITIONS_AFTER_PADDING)
        limits.append(positions - (config.pad_token_id + 1 if shifted else 0))
    return min(limits)


def new_tensors(info: dict[str, Any]) -> set[str]:
    """The names of the tensors without weights to load, from the report that `weights` returns."""
    return set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars, loading reports and advice; errors still show."""
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
