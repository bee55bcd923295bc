"""What must hold of any study's records, however often its driver was killed."""

from pathlib import Path

from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.storage.folder import Storage


def events_of(folder: Path | str) -> list[ev.Event]:
    """The events of the study in `folder`, which may be the URI of one."""
    return list(read_history(Storage.open(str(folder))).events)


def check_records(folder: Path | str, trials: int) -> None:
    """Every trial was proposed once, and no epoch was trained again that a checkpoint had."""
    events = events_of(folder)
    proposed = [event.trial for event in events if isinstance(event, ev.Proposed)]
    assert proposed == list(range(trials))
    saved: dict[tuple[int, int], float] = {}
    for event in events:
        if isinstance(event, ev.Saved):
            saved[event.trial, event.run] = event.epoch
        elif isinstance(event, ev.EpochDone):
            assert event.epoch > saved.get((event.trial, event.run), 0), (
                f"{event} repeats what its checkpoint had"
            )
