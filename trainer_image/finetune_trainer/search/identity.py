"""What makes a study the one whose records are in a folder."""

import json
from typing import Any

from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
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
        found = json.loads(storage.read(STUDY))
    except FileNotFoundError:
        storage.write(STUDY, json.dumps(parts, indent=1).encode())
        return
    for name, value in parts.items():
        if _lasting(name, found.get(name)) != value:
            raise SpecError(
                f"spec.{name}",
                f"must be what it was when the records in {storage.uri()} began; "
                "a changed study needs a folder of its own",
            )
