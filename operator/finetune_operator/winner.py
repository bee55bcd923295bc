"""What a finished study leaves for pipelines to pick up: one ConfigMap that never changes."""

import json

from finetune_api.status import Findings
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.children import Manifest, spec_digest


def winner_config_map(study: FineTuneStudy, findings: Findings, image: str) -> Manifest | None:
    """The winner of `findings`, trained with `image`; None if no trial has a value.

    It has another name than that of the study's last end, which cannot change. All values are text, those under `*.json` JSON; what does not exist (a model without `refit`) is empty.
    """
    best, final = findings.best, findings.final
    if best is None:
        return None
    data = {
        "trial": str(best.trial),
        "params.json": json.dumps(final.params if final else best.params, sort_keys=True),
        "metric": study.spec.objective.metric,
        "value": repr(best.value),
        "metrics.json": json.dumps(best.metrics, sort_keys=True),
        "testMetrics.json": json.dumps(final.test_metrics, sort_keys=True) if final else "",
        "modelUri": final.model_uri if final else "",
        "resultsUri": findings.results_uri or "",
        "image": image,
        "specHash": spec_digest(study),
    }
    metadata = names.metadata(study, names.winner_config(study.metadata.name, study.status.winner))
    metadata["labels"][names.WINNER_LABEL] = "true"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": data,
        "immutable": True,
    }
