"""The pretrained model: read from disk once a process, copied for each trial."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.metrics import Task
from finetune_trainer.errors import ModelError

_PROBLEM: dict[Task, str] = {
    "SingleLabel": "single_label_classification",
    "MultiLabel": "multi_label_classification",
    "Regression": "regression",
}
# What architectures call the same dropout.
_HIDDEN = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout", "embedding_dropout")
_ATTENTION = ("attention_probs_dropout_prob", "attention_dropout")
_CLASSIFIER = ("classifier_dropout", "seq_classif_dropout", "cls_dropout", "pooler_dropout")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Pretrained:
    """Weights and configuration of an encoder for sequence classification."""

    source: str
    task: Task
    config: Any
    weights: dict[str, torch.Tensor]

    @classmethod
    def load(
        cls, source: str, revision: str | None, task: Task, labels: tuple[str, ...]
    ) -> "Pretrained":
        """Read the model from a folder or the hub. Raises ModelError.

        Only safetensors weights are read, and remote code is never run.
        """
        names = dict(enumerate(labels or ("value",)))
        try:
            config = AutoConfig.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=False,
                num_labels=len(names),
                id2label=names,
                label2id={name: i for i, name in names.items()},
                problem_type=_PROBLEM[task],
            )
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                source,
                revision=revision,
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ModelError(
                "spec.model.name",
                f"must be an encoder for AutoModelForSequenceClassification with safetensors weights"
                f" (got {source!r}: {error})",
            ) from error
        fresh = set(loading["missing_keys"]) | {key for key, *_ in loading["mismatched_keys"]}
        weights = {
            name: tensor.float() for name, tensor in model.state_dict().items() if name not in fresh
        }
        return cls(source, task, config, weights)

    @property
    def has_types(self) -> bool:
        """Whether the model distinguishes the two texts of a pair."""
        return getattr(self.config, "type_vocab_size", 0) > 1

    @property
    def max_tokens(self) -> int:
        """Longest input the model can read."""
        return int(getattr(self.config, "max_position_embeddings", 8192))

    def build(
        self, hyperparameters: Hyperparameters, seed: int, device: torch.device
    ) -> torch.nn.Module:
        """A model for one trial: pretrained weights, a new head drawn from `seed`, the trial's dropouts."""
        config = _with_dropouts(self.config, hyperparameters)
        torch.manual_seed(seed)
        model: torch.nn.Module = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32
        )
        model.load_state_dict(self.weights, strict=False)
        return model.to(device)


def _with_dropouts(config: Any, hyperparameters: Hyperparameters) -> Any:
    copied = type(config).from_dict(config.to_dict())
    for names, value in (
        (_HIDDEN, hyperparameters.hidden_dropout),
        (_ATTENTION, hyperparameters.attention_dropout),
        (_CLASSIFIER, hyperparameters.classifier_dropout),
    ):
        for name in names:
            if hasattr(copied, name):
                setattr(copied, name, value)
    return copied


def export(model: Any, source: str, revision: str | None, folder: Path) -> None:
    """Write the model (safetensors, label names) and its tokenizer so that `from_pretrained(folder)` loads both."""
    from finetune_trainer.data.prepare import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    load_tokenizer(source, revision).save_pretrained(folder)
