"""Writes runs to Weights & Biases, with its own client."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import wandb

from finetune_api.outputs import WandbTracking
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import WANDB_RUNS
from finetune_trainer.tracking.runs import TrackedRun, TrackingError

_INIT_SECONDS = 15
_UPLOAD_SECONDS = 60


class WandbRuns:
    """Runs of one study, whose ids follow from the records; those in training are open."""

    def __init__(self, tracking: WandbTracking, storage: Storage) -> None:
        self._tracking = tracking
        self._storage = storage
        self._open: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        """Key → the last step that was logged."""

        self._ended: set[str] | None = None
        self._settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_stats=True,
            x_disable_machine_info=True,  # of the head's pod, which says nothing about the trial's
            init_timeout=_INIT_SECONDS,
            finish_timeout=_UPLOAD_SECONDS,
            finish_timeout_raises=True,
        )

    def write(self, run: TrackedRun) -> None:
        """Open the run, new or resumed, log what it lacks, and close it unless it is training. Raises TrackingError."""
        try:
            with _told():
                if self._ended is None:
                    self._ended = {
                        path.rpartition("/")[2] for path in self._storage.files(WANDB_RUNS)
                    }
                is_news = run.active or run.points or run.ending is not None
                if is_news and run.key not in self._ended:
                    self._write(run, self._ended)
        except TrackingError:
            self._open.pop(run.key, None)  # to resume it next time from what has arrived
            self._steps.pop(run.key, None)
            raise

    def close(self) -> None:
        """Close what is open; a later process continues it. Raises TrackingError."""
        with _told():
            for key in list(self._open):
                self._finish(key, failed=False)

    def _write(self, run: TrackedRun, ended: set[str]) -> None:
        shown = self._open.get(run.key) or self._begin(run)
        for point in run.points:
            if point.step > self._steps[run.key]:
                shown.log(point.values, step=point.step, commit=True)
                self._steps[run.key] = point.step
        if run.ending is not None:
            shown.summary.update({**run.ending.results, **run.ending.facts})
            self._finish(run.key, failed=run.ending.outcome == "Failed")
            self._storage.write(f"{WANDB_RUNS}/{run.key}", b"")
            ended.add(run.key)
        elif not run.active:
            self._finish(run.key, failed=False)

    def _begin(self, run: TrackedRun) -> Any:
        shown = wandb.init(
            project=self._tracking.project,
            entity=self._tracking.entity,
            id=run.key,
            resume="allow",
            reinit="create_new",
            name=run.name,
            group=run.facts["study"],
            job_type="study" if run.label == "study" else "trial",
            tags=[run.facts[name] for name in ("study", "namespace") if name in run.facts],
            config={**run.params, "finetune": {**run.facts, "trial": run.label}},
            dir=os.environ.get("WANDB_DIR") or tempfile.gettempdir(),
            settings=self._settings,
        )
        shown.define_metric("epoch")
        shown.define_metric("*", step_metric="epoch")
        self._open[run.key] = shown
        # A resumed run begins after the last step that has arrived; offline, earlier steps are unknown.
        self._steps[run.key] = max(self._steps.get(run.key, 0), shown.starting_step - 1)
        return shown

    def _finish(self, key: str, failed: bool) -> None:
        self._open.pop(key).finish(exit_code=int(failed))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (wandb.Error, TimeoutError, OSError) as error:
        raise TrackingError(str(error)) from error
