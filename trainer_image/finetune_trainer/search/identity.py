"""What makes a study the one whose records are in a folder."""

import json
from typing import Any, cast, get_args

from finetune_api.rungs import RungRule
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.storage import STUDY, Storage

_PARTS = (
    "task",
    "model",
    "dataset",
    "objective",
    "hyperparameters",
    "searchSpaces",
    "validation",
    "search",
)

RULES = {"thresholds": "OutOfFold", "rungs": "SomeWhole"}
"""By which rules a study that begins now is judged: each goes on by those that it began with.

thresholds: tuned ones are judged by rows they were not tuned on; without it, by the same rows.
rungs: `finetune_api.rungs.RungRule`; without it, Share.
"""


def parts_of(spec: StudySpec) -> dict[str, Any]:
    """The parts of `spec` that make it the same study."""
    document = spec.to_json()
    return {name: _lasting(name, document.get(name)) for name in _PARTS}


def _lasting(name: str, value: Any) -> Any:
    """What of a part may never change."""
    return {**value, "target": None} if name == "objective" and value else value


def claim(storage: Storage, parts: dict[str, Any]) -> None:
    """Mark the folder as that of the study with these `parts` (JSON), or check that it is.

    The API server holds a study to what it was; on a laptop a manifest may have been edited between two
    runs. Raises SpecError with the first part that differs.
    """
    try:
        found = parts_in(storage)
    except FileNotFoundError:
        storage.write(STUDY, json.dumps({**parts, "rules": RULES}, indent=1).encode())
        return
    for name, value in parts.items():
        if _lasting(name, found.get(name)) != value:
            raise SpecError(
                f"spec.{name}",
                f"must be what it was when the records in {storage.uri()} began; "
                "a changed study needs a folder of its own",
            )


def parts_in(storage: Storage) -> dict[str, Any]:
    """The parts of the study in `storage`, as `parts_of`. Raises FileNotFoundError if none has begun there."""
    found: dict[str, Any] = json.loads(storage.read(STUDY))
    found.pop("rules", None)
    return found


def rules_of(storage: Storage) -> dict[str, str]:
    """The rules, as RULES, that the study in `storage` began with; those of a new one where none has begun."""
    try:
        found: dict[str, str] = json.loads(storage.read(STUDY)).get("rules", {})
    except FileNotFoundError:
        return RULES
    return found


def problem_of(spec: StudySpec, storage: Storage) -> Problem:
    """The search of a study by the rules that it began with in `storage`, those of a new one if it has not begun.

    Raises ValueError for a rule that a later version made.
    """
    return Problem.of(spec, rung_rule_of(storage))


def rung_rule_of(storage: Storage) -> RungRule:
    """The rule for promotions that the study in `storage` began with. Raises as `problem_of`."""
    found = rules_of(storage).get("rungs", "Share")
    if found in get_args(RungRule):
        return cast(RungRule, found)
    raise ValueError(f"{STUDY} has a rule for rungs that this version does not know: {found!r}")
