"""Studies of an imaginary model that have run, and what they would have their trackers show."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune_api.study import FineTuneStudy
from finetune_trainer.records import events as ev
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.journal import Journal
from finetune_trainer.tracking.runs import TrackedRun
from tests.records import events_of
from tests.trainer.search_studies import ASHA, Driver, study_spec

UID = "0c9a2c5e-0000-4000-8000-000000000007"


def study(uid: str | None = UID, **changes: Any) -> FineTuneStudy:
    """ASHA over six trials of up to three epochs, unless `changes` say else."""
    spec = study_spec(**{"search": ASHA, "budget": {"maxTrials": 6}, **changes})
    return FineTuneStudy.model_validate(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneStudy",
            "metadata": {"name": "tickets", "namespace": "nlp", "uid": uid},
            "spec": spec.to_json(),
        }
    )


def finished(of: FineTuneStudy, folder: Path, term: int = 1) -> list[ev.Event]:
    """The records of the study, run to its end in `folder`."""
    Driver(of.spec, Storage.open(str(folder)), term).run()
    return events_of(folder)


def runs_of(of: FineTuneStudy, *pieces: Iterable[ev.Event]) -> dict[str, TrackedRun]:
    """Label → the run as it is after all pieces of the records."""
    journal = Journal(of, Problem.of(of.spec))
    return {run.label: run for piece in pieces for run in journal.take(piece)}
