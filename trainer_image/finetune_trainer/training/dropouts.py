"""Dropout under the names that each architecture's configuration gives it."""

from typing import Any

from finetune_api.hyperparameters import Hyperparameters

_HIDDEN = (
    "hidden_dropout_prob",  # BERT, RoBERTa, ELECTRA, ALBERT, DeBERTa, MPNet …
    "hidden_dropout",  # Funnel
    "dropout",  # DistilBERT, XLM, XLNet
    "embedding_dropout",  # ModernBERT
    "mlp_dropout",  # ModernBERT
    "pooler_dropout",  # DeBERTa
)
_ATTENTION = ("attention_probs_dropout_prob", "attention_dropout")
_CLASSIFIER = (
    "classifier_dropout",  # BERT, RoBERTa, ELECTRA, ModernBERT …
    "classifier_dropout_prob",  # ALBERT
    "seq_classif_dropout",  # DistilBERT
    "summary_last_dropout",  # XLM, XLNet
)


def set_dropouts(config: Any, hyperparameters: Hyperparameters) -> None:
    """Write the three dropouts into `config`, under every name for them that its architecture has."""
    for names, value in (
        (_HIDDEN, hyperparameters.hidden_dropout),
        (_ATTENTION, hyperparameters.attention_dropout),
        (_CLASSIFIER, hyperparameters.classifier_dropout),
    ):
        for name in names:
            if hasattr(config, name):
                setattr(config, name, value)
    if "deberta" in config.model_type:
        config.cls_dropout = hyperparameters.classifier_dropout  # read, though never declared
