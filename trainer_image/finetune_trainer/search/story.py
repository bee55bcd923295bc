"""What happened in a study over time: who trained what and when, and what was the best by then."""

from collections.abc import Iterable

from finetune_reports.document import How, Improvement, Span
from finetune_trainer.records import events as ev
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState

REFIT = -1
"""In the place of a run: the refit of the winner."""


class Story:
    """The state of a study, and the way to it, from its events."""

    def __init__(self, problem: Problem, events: Iterable[ev.Event]) -> None:
        self.state = StudyState(problem)
        self.began: float | None = None
        """Time of the first event; all other times here are seconds since then."""

        self.last = 0.0
        self.spans: list[Span] = []
        self.waits: list[tuple[float, float]] = []
        self.improvements: list[Improvement] = []
        self._open: dict[tuple[int, int], tuple[str, float]] = {}
        self._best: tuple[int, float] | None = None
        for event in events:
            self._take(event)

    def at_work(self, now: float) -> list[Span]:
        """What slots are busy with at this time, in seconds since the epoch."""
        end = max(self.last, now - (self.began or now))
        return [
            Span(slot=slot, trial=trial, run=run, start=start, end=end, how="running")
            for (trial, run), (slot, start) in sorted(self._open.items())
        ]

    def _take(self, event: ev.Event) -> None:
        if self.began is None:
            self.began = event.time
        before, time = self.last, event.time - self.began
        self.state.apply(event)
        match event:
            case ev.TermStarted():
                self._lose(before)
            case ev.Waited():
                self.waits.append((max(0.0, time - event.seconds), time))
            case ev.Started():
                self._open[event.trial, event.run] = event.slot, time
            case ev.RefitStarted():
                self._open[event.trial, REFIT] = event.slot, time
            case ev.Reached():
                self._close(event.trial, event.run, time, "reached")
            case ev.Requeued():
                self._close(event.trial, event.run, time, "lost" if event.lost else "requeued")
            case ev.Failed():
                self._close(event.trial, event.run, time, "failed")
            case ev.RefitDone():
                self._close(event.trial, REFIT, time, "refit")
            case ev.RefitRequeued():
                how: How = "lost" if event.lost else "failed" if event.message else "requeued"
                for trial, run in [key for key in self._open if key[1] == REFIT]:
                    self._close(trial, run, time, how)
            case _:
                pass  # nothing of it is to be seen over time
        self.last = max(self.last, time)
        self._compare(event.time)

    def _lose(self, when: float) -> None:
        """An earlier driver is gone; what it was last heard of is when its slots were."""
        for trial, run in list(self._open):
            self._close(trial, run, when, "lost")

    def _close(self, trial: int, run: int, end: float, how: How) -> None:
        found = self._open.pop((trial, run), None)
        if found is not None:
            slot, start = found
            end = max(start, end)
            self.spans.append(Span(slot=slot, trial=trial, run=run, start=start, end=end, how=how))

    def _compare(self, now: float) -> None:
        state, best = self.state, self.state.best_trial()
        if best is None or best.best is None or self._best == (best.number, best.best.value):
            return
        self._best = best.number, best.best.value
        self.improvements.append(
            Improvement(
                seconds=state.elapsed(now),
                trials=len(state.trials),
                epochs=state.epochs_trained,
                gpu_seconds=state.gpu_seconds,
                trial=best.number,
                value=best.best.value,
            )
        )
