"""Ray on this machine, and Ray Tune, which places the slots of a study and restarts those that are lost."""

import gc
import logging
import math
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finetune_api.search import Budget
from finetune_trainer.environment import SlotResources
from finetune_trainer.errors import RayUnavailable
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.runtime.client import BrokerClient
from finetune_trainer.runtime.slot import Slot
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.retries import gist

RAY_STARTS = 5
"""How many times Ray is started on a laptop before the study gives up; each try waits half a minute."""

_ASK_SECONDS = 2.0

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Ray Tune's settings, which it takes from the environment when it runs: no loggers, snapshots or tables of its own."""

log = logging.getLogger("finetune.driver")


def start_ray(cpus: int, gpus: int | None = None) -> None:
    """Start a new Ray on this machine, whatever else runs on it; with `gpus` None, Ray detects the GPUs.

    Raises RayUnavailable if it does not start after several tries: a busy machine may need longer than Ray waits.
    """
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _has_home()):
        # Ray would write its token into the home.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for left in reversed(range(RAY_STARTS)):
        before = _children()
        try:
            with environment_with({"RAY_USAGE_STATS_ENABLED": "0"}):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            return
        except Exception as error:  # Ray raises bare Exceptions here
            _clean_up_after_ray(before)
            if left:
                log.warning("Ray did not start; retrying: %s", gist(error))
                continue
            logs = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "session_latest" / "logs"
            raise RayUnavailable(
                f"Ray did not start after {RAY_STARTS} tries: {error} (usual causes: too little memory, a full disk or"
                f" a very busy machine; see Ray's logs in {logs})"
            ) from error


@contextmanager
def environment_with(settings: Mapping[str, str]) -> Iterator[None]:
    """The environment with these variables inside `with`, and as it was after it."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _clean_up_after_ray(before: set[int]) -> None:
    """End the processes that Ray leaves behind when it gives up half-way, given the children from before its start."""
    ray.shutdown()
    left = _children() - before
    # By their handles, which Ray is about to drop: so Python learns that they have ended.
    for process in gc.get_objects():
        if issubclass(type(process), subprocess.Popen) and process.pid in left:
            process.kill()
            process.wait()


def _has_home() -> bool:
    """Whether the user's home is writable."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user without a name
        return False
    token = home / ".ray"
    return os.access(token if token.exists() else home, os.W_OK | os.X_OK)


def _children() -> set[int]:
    """Ids of this process's children, where Linux lists them."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(number) for task in tasks for number in task.read_text().split()}


def this_node() -> NodeAffinitySchedulingStrategy:
    """Ray's name for running where the caller does."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_broker(
    problem: Problem,
    budget: Budget,
    storage: str,
    term: int,
    warnings: tuple[str, ...] = (),
    releases: bool = False,
    retry: str = "",
) -> BrokerClient:
    """The broker actor, on this node; it lives as long as this driver."""
    actor = ray.remote(Broker).options(
        num_cpus=0, scheduling_strategy=this_node(), max_concurrency=10_000
    )
    return BrokerClient(actor.remote(problem, budget, storage, term, warnings, releases, retry))


def run_slots(
    broker: BrokerClient,
    make_worker: Callable[[Any], Any],
    material: Any,
    slots: int,
    resources: SlotResources,
) -> None:
    """Run the worker slots until the broker says that everything is over."""
    share = {"CPU": round(resources.cpus, 4), "GPU": round(resources.gpus, 4)}
    trainable = tune.with_resources(
        tune.with_parameters(Slot, broker=broker, make_worker=make_worker, material=material),
        tune.PlacementGroupFactory([{key: value for key, value in share.items() if value}]),
    )
    places = _Places(broker, slots)
    settings = {**_QUIET, "TUNE_MAX_PENDING_TRIALS_PG": str(slots)}
    with tempfile.TemporaryDirectory() as scratch, environment_with(settings):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=places, scheduler=_Withdrawing(places), num_samples=-1
            ),
            run_config=tune.RunConfig(
                name="slots",
                storage_path=scratch,
                verbose=0,
                stop=_Over(),
                callbacks=[_LostSlots(broker)],
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


class _LostSlots(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tells the broker when the process of a slot is gone."""

    def __init__(self, broker: BrokerClient) -> None:
        self._broker = broker

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._broker.lost(trial.trial_id)


class _Places(tune.search.Searcher):  # type: ignore[misc]  # Ray ships no types
    """Has Ray Tune find a place for as many slots as the study can use, also when an edit lets it use more again."""

    def __init__(self, broker: BrokerClient, slots: int) -> None:
        super().__init__()
        self._broker = broker
        self._slots = slots
        self._there: set[str] = set()
        self._useful: float = slots
        self._asked = -math.inf

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if len(self._there) >= self._slots or len(self._there) >= self.useful():
            return None
        self._there.add(trial_id)
        return {}

    def useful(self) -> float:
        """How many slots the study can use, at most; asked every few seconds, as Ray Tune asks ten times a second."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            self._useful = self._broker.useful_slots(self._slots).get()
            self._asked = time.monotonic()
        return self._useful

    @property
    def superfluous(self) -> float:
        """How many slots more than that there are, with those that wait for a place."""
        return len(self._there) - self.useful()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._there.discard(trial_id)
        self._asked = -math.inf

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Does nothing: what matters is in the study's records."""


class _Withdrawing(tune.schedulers.FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Takes back slots that still wait for a place when the study needs them no more: nodes may be started for them."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        waiting = [trial for trial in tune_controller.get_trials() if trial.status == "PENDING"]
        for trial in reversed(waiting):
            if self._places.superfluous < 1:
                break
            tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller, **options)


class _Over(tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """Ends all slots, also those that never found a place, once one learns that everything is over."""

    def __init__(self) -> None:
        self._over = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._over = self._over or bool(result.get("over"))
        return bool(result.get("over"))

    def stop_all(self) -> bool:
        return self._over
