"""A study as its folder tells it, on a laptop or in a cluster's storage, running or over."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.manifest import ManifestError, problems, read_study
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.records.claim import parts_in
from finetune_trainer.records.events import Event
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import problem_of
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import RESULT, STUDY

_ANY = 10_000
"""A limit, because a study must have one: the highest."""


@dataclass(frozen=True)
class Recorded:
    """What the records of a study say."""

    name: str
    """Of the study or, where only its records are there, of their folder."""

    events: Sequence[Event]
    state: StudyState


def recorded(folder: Path) -> Recorded:
    """The study in a folder. Raises SpecError if there is none, or one of a Python function."""
    spec, storage = recorded_spec(folder), Storage.open(str(folder))
    events = read_history(storage).events
    state = StudyState.replayed(problem_of(spec, storage), events)
    return Recorded(_name(folder), events, state)


def recorded_spec(folder: Path) -> StudySpec:
    """The study in a folder, as far as it can never change: its budget is not the one that it has. Raises SpecError."""
    if not (folder / STUDY).is_file():
        raise SpecError(
            "STUDY", f"must be the folder of a study, with {STUDY} in it (got {folder})"
        )
    parts = parts_in(Storage.open(str(folder)))
    try:
        return StudySpec.model_validate({"budget": {"maxTrials": _ANY}, **parts})
    except ValidationError as error:
        first = next(iter(problems(error)))
        raise SpecError(
            "STUDY",
            f"must be the folder of a FineTuneStudy (got {folder}, in whose {STUDY} {first.field} {first.message})",
        ) from error


def _name(folder: Path) -> str:
    try:
        return read_study(folder / RESULT).metadata.name
    except (FileNotFoundError, ManifestError):  # it has not ended here, or is of another version
        return folder.absolute().name
