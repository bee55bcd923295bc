"""What makes a study the one whose records are in a folder."""

import json
from collections.abc import Callable
from typing import Any, cast, get_args

from finetune_api.rungs import RungRule
from finetune_api.status import ChosenSearch
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import STUDY

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

RULES = {"thresholds": "OutOfFold", "rungs": "SomeWhole", "defaults": "First"}
"""By which rules a study that begins now is judged: each goes on by those that it began with.

thresholds: tuned ones are judged by rows they were not tuned on; without it, by the same rows.
rungs: `finetune_api.rungs.RungRule`; without it, Share.
defaults: what is recommended is tried first; without it, never.
"""


def parts_of(spec: StudySpec) -> dict[str, Any]:
    """The parts of `spec` that make it the same study."""
    document = spec.to_json()
    return {name: _lasting(name, document.get(name)) for name in _PARTS}


def _lasting(name: str, value: Any) -> Any:
    """What of a part may never change."""
    return {**value, "target": None} if name == "objective" and value else value


def spec_field(path: str) -> str:
    """A path in the parts of a manifest's study, as people know it."""
    return f"spec.{path}"


def claim(
    storage: Storage,
    parts: dict[str, Any],
    field: Callable[[str], str] = spec_field,
    choice: ChosenSearch | None = None,
) -> None:
    """Mark the folder as that of the study with these `parts` (JSON), or check that it is.

    The API server keeps a study as it was; on a laptop, a manifest may have been edited between two
    runs. A study that begins is recorded with `choice`, what its Auto stands for. Raises SpecError with the first
    part that differs; `field` names it.
    """
    if has_begun(storage, parts, field):
        return
    begun = {**parts, "rules": RULES}
    if choice is not None:
        begun["chosen"] = choice.to_json()
    storage.write(STUDY, json.dumps(begun, indent=1).encode())


def choice_of(storage: Storage) -> ChosenSearch | None:
    """What Auto stands for in the study in `storage`; None if none has begun there, or before it could be said."""
    try:
        found = json.loads(storage.read(STUDY)).get("chosen")
    except FileNotFoundError:
        return None
    return None if found is None else ChosenSearch.model_validate(found)


def has_begun(
    storage: Storage, parts: dict[str, Any], field: Callable[[str], str] = spec_field
) -> bool:
    """Whether the folder is already that of the study with these `parts` (JSON).

    Raises SpecError with the first part that differs if it is another study's; `field` names it.
    """
    try:
        found = parts_in(storage)
    except FileNotFoundError:
        return False
    for name, value in parts.items():
        difference = _difference(name, _lasting(name, found.get(name)), value)
        if difference is not None:
            path, before, now = difference
            raise SpecError(
                field(path),
                f"must be {_shown(before)}, as when the records in {storage.uri()} began (got {_shown(now)}); "
                "a changed study needs a folder of its own",
            )
    return True


_MISSING = object()


def _difference(path: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ, with both values; None if they are the same."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        each = ((f"{path}.{n}", before.get(n, _MISSING), now.get(n, _MISSING)) for n in names)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        each = ((f"{path}[{n}]", *pair) for n, pair in enumerate(zip(before, now, strict=True)))
    else:
        return path, before, now
    return next((found for one in each if (found := _difference(*one)) is not None), None)


def _shown(value: Any) -> str:
    if value is _MISSING or value is None:
        return "unset"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"


def parts_in(storage: Storage) -> dict[str, Any]:
    """The parts of the study in `storage`, as `parts_of`.

    Raises FileNotFoundError if none has begun there, ValueError if what is there is not what was written.
    """
    found = json.loads(storage.read(STUDY))
    if not isinstance(found, dict):
        raise ValueError(f"{STUDY} must be an object")
    return {name: part for name, part in found.items() if name not in ("rules", "chosen")}


def rules_of(storage: Storage) -> dict[str, str]:
    """The rules, as RULES, that the study in `storage` began with; those of a new one where none has begun."""
    try:
        found: dict[str, str] = json.loads(storage.read(STUDY)).get("rules", {})
    except FileNotFoundError:
        return RULES
    return found


def tries_defaults(storage: Storage) -> bool:
    """Whether the study in `storage` began with a version that tries what is recommended, or has not begun."""
    return "defaults" in rules_of(storage)


def rung_rule_of(storage: Storage) -> RungRule:
    """The rule for promotions that the study in `storage` began with. Raises ValueError for a rule
    that a later version made."""
    found = rules_of(storage).get("rungs", "Share")
    if found in get_args(RungRule):
        return cast(RungRule, found)
    raise ValueError(f"{STUDY} has a rule for rungs that this version does not know: {found!r}")
