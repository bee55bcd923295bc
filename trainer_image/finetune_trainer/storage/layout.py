"""What is where in the folder of a study. Folders of earlier versions have it there too."""

from typing import Final

RECORDS: Final = "records"

STUDY: Final = "records/study.json"
"""Which study the folder is of: written before anything else, and never removed. Where it is not, the folder
is not what it was: a disk that was unmounted leaves an empty one behind."""

CHECKPOINTS: Final = "checkpoints"
"""Of trials that may go on, and of the refit; deleted at the end of the study."""

REFIT_CHECKPOINT: Final = "checkpoints/refit"

FINAL_MODEL: Final = "model"

ESTIMATOR: Final = "model/estimator.pkl"
"""What `refit` returned, where the study is one of a Python function."""

RESULTS: Final = "results"
TRIALS_CSV: Final = "results/trials.csv"
TRIALS_PARQUET: Final = "results/trials.parquet"

DATA_REPORT: Final = "results/data.json"
"""What was done to the rows."""

TEST_REPORT: Final = "results/test_report.json"
REPORT_DOCUMENT: Final = "results/report.json"
"""What the report is drawn from."""

REPORT_PAGE: Final = "results/report.html"
ATTRIBUTIONS: Final = "results/attributions.jsonl"
TENSORBOARD: Final = "tensorboard"

WANDB_RUNS: Final = "tracking/wandb"
"""An empty file for each run that has ended at Weights & Biases: looking into each again would take seconds."""

# On a laptop.

RUNS: Final = "runs"
"""Where `finetune run` puts studies, each into a folder of its name."""

RESULT: Final = "study.yaml"
"""The study with its status."""

TERM: Final = "term"
"""How many drivers have started; a lock on it admits one at a time."""

HOLDER: Final = "holder"
"""Which process has that lock."""

PROGRESS: Final = "progress.json"
"""Where the study stands, as in a cluster its progress ConfigMap says it: for `finetune ls` and the live page."""
