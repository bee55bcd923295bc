"""Who waits for storage, and for how long nothing of the study could be done for that."""

import time

RECORDS = "records"
"""Waits in the place of a slot: while the records cannot be written, nothing can be decided."""


class Waits:
    """What the broker knows of waits for storage."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}
        self._still_since: float | None = None
        self.unrecorded = 0.0
        """Seconds of standstill that have passed and that the records do not have yet."""

    def hear(self, who: str, message: str, at_work: set[str]) -> None:
        """Slot `who`, or RECORDS, waits with that message, or goes on with an empty one; `at_work` are the slots
        that have something to do."""
        self._messages.pop(who, None)
        if message:
            self._messages[who] = message
        waiting = self._messages.keys()
        stands_still = RECORDS in waiting or (bool(at_work) and at_work <= waiting)
        now = time.time()
        if stands_still and self._still_since is None:
            self._still_since = now
        elif not stands_still and self._still_since is not None:
            self.unrecorded += now - self._still_since
            self._still_since = None

    def __contains__(self, who: str) -> bool:
        return who in self._messages

    def forget(self, worker: str) -> None:
        """The processes of a worker are gone, whatever they waited for."""
        for slot in [name for name in self._messages if name.startswith(f"{worker}/")]:
            del self._messages[slot]

    @property
    def message(self) -> str:
        """Why the study, or part of it, waits; empty if nothing does."""
        return next(iter(self._messages.values()), "")

    def now(self) -> float:
        """The time, as if there had been none of the standstill that the records do not have."""
        now = time.time()
        still = 0.0 if self._still_since is None else now - self._still_since
        return now - self.unrecorded - still
