"""Population based training: Jaderberg et al., "Population Based Training of Neural Networks", 2017.

Each member trains for a few epochs at a time; each of these steps is a trial of its own that goes on from
its parent's checkpoint. A member among the worst quarter takes over weights and hyperparameters of one of
the best quarter (exploit) and changes them (explore); any other goes on as it was. Members do not wait
for each other.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from finetune_api.combinations import Params, conditions_last, is_active, values_of
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain, NumericDomain
from finetune_trainer.search.domains import draw, rounded, space_of
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.trials import Evaluation, Proposal, Trial

Score: TypeAlias = Callable[[Evaluation | None], float]

_QUARTER = 4
_FACTORS = (0.8, 1.2)
_RESAMPLE = 0.25
"""Chance that a hyperparameter is drawn anew instead of changed a little."""

_ATTEMPTS = 100


class Population:
    """The members and their latest steps."""

    def __init__(self, problem: Problem, proposer: Proposer) -> None:
        """`proposer` draws the members' first hyperparameters."""
        self._problem = problem
        self._proposer = proposer
        self.size = problem.search.population_size
        """How many members there are."""

        self._interval = problem.search.perturbation_interval
        self._steps = -(-problem.max_epochs // self._interval)
        self._latest: dict[int, Trial] = {}
        """Member → its latest step."""

        self._children: list[Trial] = []
        """Steps that may still need their parent's checkpoint."""

    @property
    def planned(self) -> int:
        """Trials of all members together."""
        return self.size * self._steps

    def record(self, trial: Trial) -> None:
        """`trial` is the next step of its member."""
        assert trial.member is not None  # PBT sets it
        self._latest[trial.member] = trial
        self._children = [child for child in (*self._children, trial) if _starts(child)]

    def to_epoch(self, trial: Trial) -> int:
        """The epoch at which the trial's step ends."""
        return min(
            (trial.generation or 0) * self._interval + self._interval, self._problem.max_epochs
        )

    def needs(self, trial: Trial) -> bool:
        """Whether somebody may go on from the checkpoint of `trial`, which has ended."""
        if any(child.parent == trial.number and _starts(child) for child in self._children):
            return True
        return self._latest.get(trial.member or 0) is trial and self._goes_on(trial)

    def has_more(self) -> bool:
        """Whether a step is left, perhaps after one that trains now."""
        if self._has_room:
            return True
        latest = self._latest.values()
        parents = any(t.status == "Completed" and self._goes_on(t) for t in latest)
        return any(
            parents if trial.status in ("Diverged", "Failed") else self._goes_on(trial)
            for trial in latest
        )

    @property
    def _has_room(self) -> bool:
        return len(self._latest) < self.size and not self._proposer.exhausted

    def _goes_on(self, trial: Trial) -> bool:
        """Whether there is a step after it: not after the last, nor after one that its patience ended."""
        finished = bool(trial.runs) and trial.runs[0].status == "Finished"
        return not finished and (trial.generation or 0) + 1 < self._steps

    def propose(self, trials: Sequence[Trial], score: Score) -> Proposal | None:
        """The next step of the member that is furthest behind; None if all that have one train."""
        drawn = self._proposer.propose(trials) if self._has_room else None
        if drawn is not None:
            return Proposal(drawn.params, generation=0, member=len(self._latest))
        ended = [trial for trial in self._latest.values() if trial.status == "Completed"]
        ranked = sorted(ended, key=lambda trial: (-score(trial.best), trial.number))
        rng = random.Random(f"{self._problem.search.seed}/step/{len(trials)}")
        for trial in sorted(self._latest.values(), key=_age):
            step = self._step(trial, ranked, rng) if trial.is_final else None
            if step is not None:
                return step
        return None

    def _step(self, last: Trial, ranked: list[Trial], rng: random.Random) -> Proposal | None:
        """The step after `last`: its own, or that of one of the best quarter."""
        if last.status == "Completed" and not self._goes_on(last):
            return None
        quarter = max(1, len(ranked) // _QUARTER)
        parents = [trial for trial in ranked if self._goes_on(trial)][:quarter]
        worst = ranked[len(ranked) - quarter :]
        if last in ranked and (last not in worst or last in parents or not parents):
            return Proposal(last.params, (last.generation or 0) + 1, last.number, last.member)
        if not parents:
            return None
        parent = rng.choice(parents)
        explored = self._explored(parent.params, rng)
        return Proposal(explored, (parent.generation or 0) + 1, parent.number, last.member)

    def _explored(self, params: Params, rng: random.Random) -> Params:
        for _ in range(_ATTEMPTS):
            changed = self._changed(params, rng)
            if self._problem.admits(changed):
                return changed
        return params

    def _changed(self, params: Params, rng: random.Random) -> Params:
        space = space_of(self._problem.spaces, params)
        if space is None:
            return params
        changed: Params = {}
        for name, domain in conditions_last(space):
            if not is_active(domain, changed):
                continue
            if name == "optimizer" and name in params:  # its state goes on, so it does
                changed[name] = params[name]
            elif name not in params or rng.random() < _RESAMPLE:
                changed[name] = draw(domain, rng)
            else:
                changed[name] = _perturbed(domain, params[name], rng)
        return changed


def _age(trial: Trial) -> tuple[int, int]:
    return trial.generation or 0, trial.member or 0


def _starts(trial: Trial) -> bool:
    """Whether it still has no checkpoint of its own."""
    return not trial.is_final and all(run.checkpoint is None for run in trial.runs.values())


def _perturbed(domain: Domain, value: Scalar, rng: random.Random) -> Scalar:
    """A value a fifth larger or smaller, or the next of listed ones."""
    factor = rng.choice(_FACTORS)
    if isinstance(domain, ChoiceDomain):
        return value
    numeric = cast(NumericDomain, domain)
    steps = numeric.finite_values()
    if steps is not None:
        at = steps.index(value) + (1 if factor > 1 else -1)
        return steps[min(max(at, 0), len(steps) - 1)]
    changed = cast(float, value) * factor
    if values_of(domain) is not None:  # whole numbers on a log scale
        low, high = cast(int, numeric.min), cast(int, numeric.max)
        return min(max(round(changed), low), high)
    return rounded(numeric, changed)
