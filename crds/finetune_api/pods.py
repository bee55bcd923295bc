"""What the operator and the pods of a study agree on. Pods of other versions know these words: none may change."""

from typing import Final

# Environment variables of every pod.

STUDY_FILE: Final = "FINETUNE_STUDY_FILE"
"""The mounted study; edits of its budget arrive there."""

STORAGE: Final = "FINETUNE_STORAGE"
"""Location of the study's records and results."""

BASE: Final = "FINETUNE_BASE"
"""What relative paths of the study start from; the root if unset."""

PROGRESS: Final = "FINETUNE_PROGRESS"
"""Name of the ConfigMap that the driver writes."""

NAMESPACE: Final = "FINETUNE_NAMESPACE"
STUDY_UID: Final = "FINETUNE_STUDY_UID"

JOB_UID: Final = "FINETUNE_JOB_UID"
"""What the attempt is known by in the progress document."""

RETRY: Final = "FINETUNE_RETRY"
"""The study's annotation `finetune.dev/retry` when the attempt began; unset if it has none."""

IMAGE: Final = "FINETUNE_IMAGE"
"""The image of the container, for the records."""

HEAD: Final = "FINETUNE_HEAD"
"""Host of the Ray head, for pods of a Job."""

DRAIN_FILE: Final = "FINETUNE_DRAIN_FILE"
"""Names a file that exists once the pod has been told to end: its slots then save and stop."""

# Programs that pods run, by module.

SUPERVISOR: Final = "finetune_trainer.supervisor"
DRIVER: Final = "finetune_trainer.driver"
DRAIN: Final = "finetune_trainer.drain"

# Exit codes of driver and supervisor.

EXIT_FINISHED: Final = 0
"""The study is finished."""

EXIT_USER_ERROR: Final = 42
"""Only its user can mend the study: it has failed."""

EXIT_DRAINED: Final = 143
"""The pod was told to end."""

# Keys of ConfigMaps.

STUDY_KEY: Final = "study.json"
"""In the study's spec ConfigMap: the manifest that the driver runs."""

PROGRESS_KEY: Final = "progress"
"""In the progress ConfigMap: the driver's last document."""

TERM_KEY: Final = "term"
"""In the progress ConfigMap: how many drivers have started; only the last may write."""

LIMITS_KEY: Final = "limits"
"""In the progress ConfigMap: the limits with which a driver ended the search."""
