"""The account of the preparation: what each step did to the rows of each part."""

from dataclasses import dataclass

from finetune_api.texts import printable


@dataclass(frozen=True)
class Step:
    """One step of the preparation, for one part."""

    part: str
    """`train`, `validation` or `test`."""

    step: str
    """A field of `spec.dataset` or its `cleaning`; or a step that is always done: `read`, `label`, `text` (drops rows
    without one), `split`, `knownLabel`; or `duplicateThreshold`, by which trials leave rows out."""

    rows_in: int
    changed: int
    """Rows whose texts have changed."""

    dropped: int
    """Rows that left the part."""

    why: str
    """What the changed, dropped or knowingly kept rows have in common; empty if there are none."""


class Account:
    """The steps so far, in order, and the warnings for the user."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.warnings: list[str] = []

    def add(
        self,
        part: str,
        step: str,
        rows_in: int,
        why: str,
        changed: int = 0,
        dropped: int = 0,
        kept: int = 0,
    ) -> None:
        """Count a step, even one that found nothing to do; `kept` rows are worth telling of, but stay."""
        if kept:
            why = f"{kept} {why}, kept"
        found = why if changed or dropped or kept else ""
        self.steps.append(Step(part, step, rows_in, changed, dropped, found))

    def warn(self, field: str, text: str) -> None:
        """Warn the user with `text` about what `field` (of the spec) names."""
        self.warnings.append(printable(f"{field}: {text}"))
