"""How the trackers' clients are set, before they are imported."""

import os
from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment that the trackers' clients read when they are imported, and at each request: to send nothing to their
makers, and not to hang for minutes while a server is down, because the reporter tries again anyway. What a Secret sets
comes first.
"""


def settle() -> None:
    """Set the environment that the clients will read in this process."""
    os.environ.update({**SETTINGS, **os.environ})
