"""Studies of imaginary models, whose records are real."""

from pathlib import Path
from typing import Any

from finetune_reports.document import Report
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.report import Subject, report_of
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import ASHA, Clock, Driver, study_spec


def searched(
    folder: Path, items: int | None = None, term: int = 1, works: int = 0, **changes: Any
) -> Path:
    """A study with ASHA, which has ended in `folder`.

    With `items` or `works`, one in which this term has done so many `works`, and then made so many decisions more.
    """
    spec, storage = (
        study_spec(refit=False, **{"search": ASHA, **changes}),
        Storage.open(str(folder)),
    )
    claim(storage, parts_of(spec))
    driver = Driver(spec, storage, term, Clock(1000.0 * term), fails=frozenset({3}))
    if items is None and not works:
        driver.run()
    for _ in range(works):
        driver.step()
    for _ in range(items or 0):
        driver.decide()
    return folder


def report(folder: Path, **changes: Any) -> Report:
    """The document of the study in a folder."""
    spec, storage = (
        study_spec(refit=False, **{"search": ASHA, **changes}),
        Storage.open(str(folder)),
    )
    return report_of(Subject.named(folder.name, spec, storage), storage, now=0.0)
