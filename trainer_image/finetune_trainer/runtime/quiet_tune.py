"""Ray Tune, which reads these settings when it is imported: no loggers, snapshots or tables of its own."""

import os

os.environ.update(
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000000",
    TUNE_PRINT_ALL_TRIAL_ERRORS="0",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_USAGE_STATS_ENABLED="0",
)

from ray import tune  # after its settings

__all__ = ["tune"]
