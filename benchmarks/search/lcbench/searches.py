"""The searches that are compared: ours, those of Ray and Optuna, and those of Syne Tune, SMAC3 and HEBO where installed."""

import importlib.util
import logging
import random
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import numpy as np
import optuna

from benchmarks.search.adapters import Config, OurDecisions, RayDecisions, Searcher, optuna_goes_on
from benchmarks.search.lcbench.curves import EPOCHS, SPACE, draw
from finetune_api.auto import choose
from finetune_api.constraints import Constraints
from finetune_api.search import Algorithm, Budget, Scheduler, SchedulerType, Search
from finetune_api.spaces import FloatDomain, IntegerDomain
from finetune_trainer.search.problem import Problem

FACTOR = 3
"""Of the rungs of every search: 1, 3, 9, 27 and 52 epochs (SMAC3: 2, 6, 17 and 52)."""


def ours(
    seed: int, algorithm: Algorithm, scheduler: SchedulerType, limit: int | None
) -> OurDecisions:
    """The study's own state and decisions."""
    rungs = Scheduler(type=scheduler, reduction_factor=FACTOR)
    space: dict[str, FloatDomain | IntegerDomain] = {}
    for name, kind, low, high, log in SPACE:
        scale: Literal["Log"] | None = "Log" if log else None
        if kind == "int":
            space[name] = IntegerDomain(min=int(low), max=int(high), scale=scale)
        else:
            space[name] = FloatDomain(min=low, max=high, scale=scale)
    search = Search(algorithm=algorithm, seed=seed, scheduler=rungs)
    budget = Budget(max_trials=limit)
    search = choose(search, [space], budget, EPOCHS, Constraints([], {}))
    problem = Problem(search, [space], ("accuracy",), ("Maximize",), EPOCHS)
    return OurDecisions(problem, budget)


class RayASHA:
    """Ray's scheduler over random draws."""

    limits_itself = False

    def __init__(self, seed: int) -> None:
        self._decisions, self._rng = RayDecisions(EPOCHS, FACTOR), random.Random(seed)
        self.goes_on = self._decisions.goes_on

    def next(self) -> tuple[SimpleNamespace, Config, int]:
        return self._decisions.take(), draw(self._rng), 0


class OptunaTPE:
    """Optuna's own loop: its multivariate TPE, told of running trials if there are several workers, and a pruner."""

    limits_itself = False

    def __init__(self, seed: int, workers: int, pruner: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=workers > 1
            )
        pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
            "Hyperband": lambda: optuna.pruners.HyperbandPruner(1, EPOCHS, FACTOR),
            "none": optuna.pruners.NopPruner,
        }
        self._study = optuna.create_study(
            study_name=f"seed {seed}",  # Hyperband's brackets follow from it
            direction="maximize",
            sampler=sampler,
            pruner=pruners[pruner](),
        )
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(int(low), int(high), log=log)
            if kind == "int"
            else optuna.distributions.FloatDistribution(low, high, log=log)
            for name, kind, low, high, log in SPACE
        }

    def next(self) -> tuple[optuna.Trial, Config, int]:
        trial = self._study.ask(self._space)
        return trial, dict(trial.params), 0

    def goes_on(self, job: optuna.Trial, epoch: int, value: float) -> bool:
        return optuna_goes_on(self._study, job, epoch, value, EPOCHS)


class SyneTune:
    """A multi-fidelity search of Syne Tune."""

    limits_itself = False

    def __init__(self, seed: int, kind: str) -> None:
        logging.disable(logging.WARNING)
        from syne_tune import config_space
        from syne_tune.optimizer import baselines

        np.random.seed(seed)  # it draws from there too
        kinds = {
            ("int", True): config_space.lograndint,
            ("int", False): config_space.randint,
            ("float", True): config_space.loguniform,
            ("float", False): config_space.uniform,
        }
        self._scheduler = getattr(baselines, kind)(
            {name: kinds[form, log](low, high) for name, form, low, high, log in SPACE},
            metric="accuracy",
            time_attr="epoch",
            max_t=EPOCHS,
            do_minimize=False,
            random_seed=seed,
            grace_period=1,
            reduction_factor=FACTOR,
        )
        self._begun = 0

    def next(self) -> tuple[Any, Config, int] | None:
        import datetime

        from syne_tune.backend.trial_status import Trial

        suggested = self._scheduler.suggest()
        if suggested is None:
            return None
        trial = Trial(self._begun, suggested.config, datetime.datetime.now(datetime.UTC))
        self._begun += 1
        self._scheduler.on_trial_add(trial)
        return trial, {name: suggested.config[name] for name, *_ in SPACE}, 0

    def goes_on(self, job: Any, epoch: int, value: float) -> bool:
        decision = self._scheduler.on_trial_result(job, {"accuracy": value, "epoch": epoch})
        return bool(decision == "CONTINUE") and epoch < EPOCHS


class SMAC:
    """SMAC3's multi-fidelity facade, asked and told: Hyperband over a random forest.

    Its Hyperband has rungs at 52/27, 52/9, 52/3 and 52 epochs: rounded, 2, 6, 17 and 52. It knows of no checkpoints.
    A configuration that it asks for again, with a larger budget, trains on from where it was, as it would for a user
    who keeps checkpoints by hand. It draws 20 configurations at random first, as by default when it is given as many
    trials as 12 whole trainings hold. The same seed gives the same run only with the same PYTHONHASHSEED.
    """

    limits_itself = False

    def __init__(self, seed: int, workers: int) -> None:
        logging.disable(logging.WARNING)
        spaces, smac = import_module("ConfigSpace"), import_module("smac")
        space = spaces.ConfigurationSpace(seed=seed)
        for name, kind, low, high, log in SPACE:
            form = "UniformIntegerHyperparameter" if kind == "int" else "UniformFloatHyperparameter"
            space.add(getattr(spaces, form)(name, low, high, log=log))
        self._folder = tempfile.TemporaryDirectory()  # it writes files
        facade = smac.MultiFidelityFacade
        scenario = smac.Scenario(
            space,
            output_directory=self._folder.name,
            deterministic=True,
            n_trials=1_000_000,
            min_budget=1,
            max_budget=EPOCHS,
            seed=seed,
            n_workers=workers,
        )
        self._smac = facade(
            scenario,
            intensifier=facade.get_intensifier(scenario, eta=FACTOR),
            initial_design=facade.get_initial_design(scenario, n_configs=20),
            logging_level=False,
        )
        self._value = import_module("smac.runhistory").TrialValue
        self._trained: dict[Any, int] = {}

    def next(self) -> tuple[Any, Config, int] | None:
        try:
            info = self._smac.ask()
        except StopIteration:
            return None
        return info, dict(info.config), self._trained.get(info.config, 0)

    def goes_on(self, job: Any, epoch: int, value: float) -> bool:
        if epoch < round(job.budget):
            return True
        self._trained[job.config] = epoch
        self._smac.tell(job, self._value(cost=-value), save=False)
        return False


class HEBO:
    """HEBO, whole trainings only, suggested in batches of as many as there are workers."""

    limits_itself = False

    def __init__(self, seed: int, workers: int) -> None:
        import torch

        warnings.simplefilter("ignore")
        np.random.seed(seed)  # it draws from there too
        torch.manual_seed(seed)
        kinds = {
            ("int", True): "pow_int",
            ("int", False): "int",
            ("float", True): "pow",
            ("float", False): "num",
        }
        space = import_module("hebo.design_space.design_space").DesignSpace()
        space.parse(
            [
                {"name": name, "type": kinds[form, log], "lb": low, "ub": high}
                for name, form, low, high, log in SPACE
            ]
        )
        self._hebo = import_module("hebo.optimizers.hebo").HEBO(space, scramble_seed=seed)
        self._workers, self._batch = workers, list[Any]()

    def next(self) -> tuple[Any, Config, int]:
        if not self._batch:
            suggested = self._hebo.suggest(self._workers)
            self._batch = [suggested.iloc[[n]] for n in range(self._workers)]
        row = self._batch.pop(0)
        return row, row.iloc[0].to_dict(), 0

    def goes_on(self, job: Any, epoch: int, value: float) -> bool:
        if epoch < EPOCHS:
            return True
        self._hebo.observe(job, np.array([[-value]]))
        return False


Maker: TypeAlias = Callable[[int, int, int | None], Searcher]
"""(seed, workers, number of trials if it is limited) → the search."""


def _ours(algorithm: Algorithm, scheduler: SchedulerType) -> Maker:
    return lambda seed, workers, limit: ours(seed, algorithm, scheduler, limit)


BASE = "ours Random + ASHA"
AUTO = "ours Auto"
RAY = "Ray ASHA"
SEARCHES: dict[str, Maker] = {
    BASE: _ours("Random", "ASHA"),
    **{
        f"ours {algorithm}{'' if scheduler == 'None' else f' + {scheduler}'}": _ours(
            algorithm, scheduler
        )
        for algorithm in ("Random", "TPE", "GP", "CMAES", "Evolution")
        for scheduler in ("None", "ASHA", "Hyperband", "PASHA")
        if (algorithm, scheduler) != ("Random", "ASHA")
    },
    AUTO: _ours("Auto", "Auto"),
    RAY: lambda seed, workers, limit: RayASHA(seed),
    "Optuna TPE": lambda seed, workers, limit: OptunaTPE(seed, workers, "none"),
    "Optuna TPE + HyperbandPruner": lambda seed, workers, limit: OptunaTPE(
        seed, workers, "Hyperband"
    ),
}
if importlib.util.find_spec("syne_tune") is not None:
    SEARCHES["Syne Tune ASHA"] = lambda seed, workers, limit: SyneTune(seed, "ASHA")
    SEARCHES["Syne Tune BOHB"] = lambda seed, workers, limit: SyneTune(seed, "BOHB")
if importlib.util.find_spec("smac") is not None:
    SEARCHES["SMAC3 multi-fidelity"] = lambda seed, workers, limit: SMAC(seed, workers)
if importlib.util.find_spec("hebo") is not None:
    SEARCHES["HEBO"] = lambda seed, workers, limit: HEBO(seed, workers)
