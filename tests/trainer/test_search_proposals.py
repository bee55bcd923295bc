"""What is tried: within bounds, never twice, the same whatever happened to earlier trials."""

import json
import math
import random
from collections import Counter
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from finetune_api.combinations import Params, grid, grid_size
from finetune_api.constraints import Constraints
from finetune_api.hyperparameters import resolve
from finetune_api.spaces import IntegerDomain, NumericDomain
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.search import optuna_samplers
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.trials import Evaluation, Proposal, Trial
from tests.trainer.search_studies import CONTINUOUS, accuracy, study_spec

CONDITIONAL = {
    "optimizer": {"values": ["AdamW", "SGD", "RMSprop"]},
    "momentum": {"values": [0.5, 0.9], "when": {"optimizer": ["SGD", "RMSprop"]}},
    "batchSize": {"values": [8, 16]},
}


def proposals(spec: StudySpec, count: int = 10_000) -> list[Params]:
    """The first `count` proposals, or all if the space has fewer."""
    proposer = proposer_of(spec)
    made: list[Params] = []
    while len(made) < count and (proposal := proposer.propose()) is not None:
        proposer.record(proposal.params)
        made.append(proposal.params)
    return made


def proposer_of(spec: StudySpec) -> Proposer:
    return Proposer(Problem.of(spec))


def size_of(spec: StudySpec) -> int | None:
    return grid_size(Problem.of(spec).spaces, Problem.of(spec).constraints)


def random_spec(*spaces: dict[str, Any], seed: int = 7) -> StudySpec:
    return study_spec(searchSpaces=list(spaces), search={"algorithm": "Random", "seed": seed})


def grid_spec(*spaces: dict[str, Any]) -> StudySpec:
    return study_spec(searchSpaces=list(spaces), search={"algorithm": "Grid"})


def test_grid_is_the_product_in_declared_order() -> None:
    spec = grid_spec(
        {
            "learningRate": {"values": [1e-3, 1e-4]},
            "weightDecay": {"min": 0, "max": 0.1, "step": 0.05},
        }
    )
    assert [tuple(params.values()) for params in proposals(spec)] == [
        (1e-3, 0.0),
        (1e-3, 0.05),
        (1e-3, 0.1),
        (1e-4, 0.0),
        (1e-4, 0.05),
        (1e-4, 0.1),
    ]


def test_grid_leaves_out_what_a_condition_excludes() -> None:
    made = proposals(grid_spec(CONDITIONAL))
    assert len(made) == size_of(grid_spec(CONDITIONAL)) == 2 + 2 * 2 * 2
    assert all(("momentum" in params) == (params["optimizer"] != "AdamW") for params in made)


def test_grid_tries_what_several_spaces_share_once() -> None:
    spec = grid_spec({"batchSize": {"values": [8, 16, 32]}}, {"batchSize": {"values": [16, 64]}})
    assert [params["batchSize"] for params in proposals(spec)] == [8, 16, 32, 64]
    assert size_of(spec) == 4


def test_grid_of_billions_starts_at_once() -> None:
    spec = grid_spec(
        {
            "learningRate": {"min": 0.0001, "max": 0.9, "step": 1e-9},
            "weightDecay": {"min": 0, "max": 1, "step": 1e-12},
        }
    )
    assert size_of(spec) is None
    assert [params["weightDecay"] for params in proposals(spec, 3)] == [0.0, 1e-12, 2e-12]


def test_random_draws_from_billions_of_steps() -> None:
    spec = random_spec({"weightDecay": {"min": 0, "max": 1, "step": 1e-12}})
    assert len(proposals(spec, 100)) == 100


def test_random_exhausts_a_finite_space() -> None:
    made = proposals(random_spec(CONDITIONAL))
    expected = list(grid([random_spec(CONDITIONAL).spaces[0].domains()], Constraints([], {})))
    assert len(made) == len(expected)
    assert all(params in expected for params in made)


def test_random_exhausts_whole_numbers_on_a_log_scale() -> None:
    spec = random_spec({"batchSize": {"min": 4, "max": 40, "scale": "Log"}})
    assert sorted(params["batchSize"] for params in proposals(spec)) == list(range(4, 41))
    assert size_of(spec) == 37


def test_random_uses_every_space_of_a_list() -> None:
    spec = random_spec(
        {
            "learningRate": {"min": 1e-5, "max": 1e-3, "scale": "Log"},
            "optimizer": {"values": ["AdamW"]},
        },
        {
            "learningRate": {"min": 1e-3, "max": 1e-1, "scale": "Log"},
            "optimizer": {"values": ["SGD"]},
        },
    )
    counts = Counter(params["optimizer"] for params in proposals(spec, 400))
    assert 150 < counts["SGD"] < 250


def test_log_scale_is_uniform_in_the_exponent() -> None:
    made = proposals(
        random_spec({"learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"}}), 1000
    )
    decades = Counter(int(f"{params['learningRate']:e}".split("e")[1]) for params in made)
    assert all(200 < decades[exponent] < 300 for exponent in (-5, -4, -3, -2))


def test_another_seed_gives_other_trials() -> None:
    space = {"learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"}}
    assert proposals(random_spec(space, seed=1), 5) != proposals(random_spec(space, seed=2), 5)


def test_recorded_trials_hold_even_if_they_would_be_drawn_differently_today() -> None:
    spec = random_spec({"batchSize": {"values": [8, 16, 32]}})
    proposer = proposer_of(spec)
    told: list[Params] = [{"batchSize": 32}, {"batchSize": 8}]
    for params in told:
        proposer.record(params)
    assert proposer.propose() == Proposal({"batchSize": 16})
    proposer.record({"batchSize": 16})
    assert proposer.propose() is None


def test_the_params_of_a_seed_are_fixed_for_good() -> None:
    spec = random_spec(
        {
            "learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"},
            "batchSize": {"values": [8, 16, 32]},
        }
    )
    assert proposals(spec, 2) == [
        {"batchSize": 32, "learningRate": 0.0021131},
        {"batchSize": 16, "learningRate": 0.00987349},
    ]


@st.composite
def numbers(draw: st.DrawFn, name: str) -> dict[str, Any]:
    whole = name in ("batchSize", "epochs")
    if whole:
        low: Any = draw(st.integers(1, 500))
        high: Any = low + draw(st.integers(1, 400))
        step: Any = st.integers(1, high - low)
        value: Any = st.integers(1, 900)
    else:
        low = draw(st.floats(1e-8, 0.4, allow_subnormal=False))
        high = low + draw(st.floats(1e-6, 0.5))
        step = st.floats((high - low) / 50, high - low)
        value = st.floats(1e-8, 0.9)
    kind = draw(st.sampled_from(["values", "range", "step", "log"]))
    if kind == "values":
        return {"values": draw(st.lists(value, min_size=1, max_size=6, unique=True))}
    domain: dict[str, Any] = {"min": low, "max": high}
    if kind == "step":
        domain["step"] = draw(step)
    if kind == "log":
        domain["scale"] = "Log"
    return domain


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    space: dict[str, Any] = {
        name: draw(numbers(name))
        for name in draw(
            st.sets(
                st.sampled_from(["batchSize", "epochs", "learningRate", "momentum"]), min_size=1
            )
        )
    }
    if draw(st.booleans()):
        words = draw(
            st.lists(st.sampled_from(["AdamW", "SGD", "RMSprop"]), min_size=1, unique=True)
        )
        space["optimizer"] = {"values": words}
        name = draw(st.sampled_from([key for key in space if key != "optimizer"]))
        space[name]["when"] = {
            "optimizer": draw(st.lists(st.sampled_from(words), min_size=1, unique=True))
        }
    return space


def modelled(spec: StudySpec, count: int) -> list[Trial]:
    """`count` trials at most, each trained to its end before the next is proposed."""
    proposer = proposer_of(spec)
    trials: list[Trial] = []
    while len(trials) < count and (proposal := proposer.propose(trials)) is not None:
        proposer.record(proposal.params)
        trials.append(ended(len(trials), proposal.params, generation=proposal.generation))
    return trials


def ended(number: int, params: Params, status: Any = "Completed", **more: Any) -> Trial:
    """A trial that has seen 9 epochs."""
    best = Evaluation(9, accuracy(params, 9), {"f1_macro": 0.3 + accuracy(params, 9) / 3})
    values = {0: best.value}
    return Trial(number, params, status, best=best, evaluations=[best], rung_values=values, **more)


def model_spec(algorithm: str, *spaces: dict[str, Any]) -> StudySpec:
    return study_spec(searchSpaces=list(spaces), search={"algorithm": algorithm, "seed": 7})


models = pytest.mark.parametrize("algorithm", ["TPE", "GP", "Evolution"])


def test_quasi_random_trials_cover_the_space_more_evenly_than_random_ones() -> None:
    space = {
        "weightDecay": {"min": 0.0, "max": 1.0},
        "momentum": {"min": 0.0, "max": 0.9},
    }

    def unevenness(algorithm: str) -> float:
        spec = study_spec(searchSpaces=[space], search={"algorithm": algorithm, "seed": 3})
        points = [[p["weightDecay"], float(p["momentum"]) / 0.9] for p in proposals(spec, 64)]
        return float(qmc.discrepancy(points))

    assert unevenness("QuasiRandom") < unevenness("Random") / 3


def test_quasi_random_exhausts_a_finite_space() -> None:
    spec = study_spec(searchSpaces=[CONDITIONAL], search={"algorithm": "QuasiRandom"})
    assert len(proposals(spec)) == size_of(spec)


@pytest.mark.parametrize("algorithm", ["TPE", "GP", "Evolution", "CMAES"])
def test_model_draws_near_what_did_well(algorithm: str) -> None:
    far = {}
    for name in ("Random", algorithm):
        spec = study_spec(searchSpaces=[CONTINUOUS], search={"algorithm": name, "seed": 5})
        rates = [float(trial.params["learningRate"]) for trial in modelled(spec, 60)[30:]]
        far[name] = sum(abs(math.log10(rate / 1e-3)) for rate in rates) / len(rates)
    assert far[algorithm] < far["Random"] * 2 / 3


@models
def test_model_prefers_the_better_of_two_spaces(algorithm: str) -> None:
    good = {"learningRate": {"min": 5e-4, "max": 2e-3, "scale": "Log"}}
    bad = {"learningRate": {"min": 1e-7, "max": 1e-6, "scale": "Log"}}
    rates = [
        float(t.params["learningRate"]) for t in modelled(model_spec(algorithm, bad, good), 40)[15:]
    ]
    assert sum(rate > 1e-4 for rate in rates) > 2 * len(rates) / 3


@models
def test_model_exhausts_a_finite_space_and_repeats_nothing(algorithm: str) -> None:
    spec = model_spec(algorithm, CONDITIONAL, {"batchSize": {"values": [8, 64]}})
    made = modelled(spec, 100)
    assert len({json.dumps(t.params, sort_keys=True) for t in made}) == len(made)
    assert len(made) == size_of(spec)


@pytest.mark.parametrize("algorithm", ["TPE", "GP"])
def test_model_spreads_trials_that_run_side_by_side(algorithm: str) -> None:
    spec = model_spec(algorithm, CONTINUOUS)
    done = modelled(spec, 20)

    def proposal(running: list[Trial]) -> float:
        proposer = proposer_of(spec)
        for trial in done:
            proposer.record(trial.params)
        found = proposer.propose([*done, *running])
        assert found is not None
        return float(found.params["learningRate"])

    alone = proposal([])
    beside = [Trial(20 + n, {"learningRate": alone * (1 + n / 100)}, "Running") for n in range(8)]
    assert abs(math.log10(proposal(beside) / alone)) > 0.05


@models
def test_model_learns_from_every_fate_of_a_trial(algorithm: str) -> None:
    spec = model_spec(algorithm, CONDITIONAL)
    params: list[Params] = [
        {"optimizer": "AdamW", "batchSize": 8},
        {"optimizer": "AdamW", "batchSize": 16},
    ]
    trials = [
        ended(0, params[0], "Stopped"),
        Trial(1, params[1], "Diverged"),
        Trial(2, {"optimizer": "SGD", "momentum": 0.5, "batchSize": 8}, "Failed"),
        Trial(3, {"batchSize": 7}, "Completed"),  # of another version's making
        Trial(4, {"optimizer": "SGD", "momentum": 0.9, "batchSize": 8}, "Running"),
    ]
    proposer = proposer_of(spec)
    for trial in trials:
        proposer.record(trial.params)
    found = proposer.propose(trials)
    assert found is not None
    assert _fits(found.params, spec.spaces[0].domains())


def test_a_gaussian_process_is_told_250_results_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []

    class Counting(optuna.samplers.GPSampler):
        def sample_relative(self, study: optuna.Study, *rest: Any) -> dict[str, Any]:
            told.append(
                [trial.values[0] for trial in study.get_trials(deepcopy=False) if trial.values]
            )
            return super().sample_relative(study, *rest)

    monkeypatch.setattr(optuna_samplers, "GPSampler", Counting)
    proposer = proposer_of(model_spec("GP", CONTINUOUS))
    rates = [1e-5 * 1.01**n for n in range(500)]
    proposer.inherit([({"learningRate": rate}, 0.9) for rate in rates[:200]])
    done = [ended(n, {"learningRate": rate}, "Completed") for n, rate in enumerate(rates[200:])]
    for trial in done:
        proposer.record(trial.params)
    for rate in rates[:3]:  # what was inherited is tried first
        proposer.record({"learningRate": rate})
    assert proposer.propose(done) is not None
    own = sorted(accuracy(trial.params, 9) for trial in done)[-125:]
    assert sorted(told[0]) == pytest.approx(sorted([*own, *[0.9] * 125]))


POINTS = [
    {"learningRate": 1e-3, "batchSize": 16, "optimizer": "SGD", "momentum": 0.5},
    {"learningRate": 3e-4},
    {"learningRate": 1e-3, "batchSize": 16, "optimizer": "SGD", "momentum": 0.5},
]


@pytest.mark.parametrize("algorithm", ["Random", "QuasiRandom", "TPE", "GP", "Evolution"])
def test_named_points_come_first_once_and_completed(algorithm: str) -> None:
    space = {**CONDITIONAL, "learningRate": CONTINUOUS["learningRate"]}
    search = {"algorithm": algorithm, "seed": 7, "points": POINTS}
    made = proposals(study_spec(searchSpaces=[space], search=search), 4)
    assert made[0] == POINTS[0]
    assert made[1]["learningRate"] == 3e-4
    assert {"batchSize", "optimizer"} < set(made[1])
    assert len({json.dumps(params, sort_keys=True) for params in made}) == 4
    again = proposals(study_spec(searchSpaces=[space], search={**search, "seed": 8}), 2)
    assert again[0] == made[0]


def test_grid_tries_named_points_first_and_no_combination_twice() -> None:
    space = {"batchSize": {"values": [8, 16]}, "weightDecay": {"min": 0, "max": 1, "step": 0.5}}
    search = {"algorithm": "Grid", "points": [{"batchSize": 16, "weightDecay": 0}]}
    made = proposals(study_spec(searchSpaces=[space], search=search))
    assert made[0] == {"batchSize": 16, "weightDecay": 0.0}
    assert len(made) == 6


@pytest.mark.parametrize(
    ("point", "field", "words"),
    [
        ({"warmupRatio": 0.1}, "warmupRatio", "must be searched"),
        ({"batchSize": 9}, "batchSize", "must be in its domain"),
        ({"momentum": 0.5}, "momentum", "must go with"),
        ({"optimizer": "AdamW", "momentum": 0.5}, "momentum", "must go with"),
    ],
)
def test_point_that_no_space_has_is_refused_with_its_field(
    point: Params, field: str, words: str
) -> None:
    spec = study_spec(
        searchSpaces=[CONDITIONAL], search={"algorithm": "Random", "points": [{}, point]}
    )
    with pytest.raises(SpecError, match=words) as refused:
        proposer_of(spec)
    assert refused.value.field == f"spec.search.points[1].{field}"


def test_point_may_be_in_any_of_several_spaces() -> None:
    spaces = [{"batchSize": {"values": [8]}}, {"batchSize": {"values": [16]}}]
    search = {"algorithm": "Random", "points": [{"batchSize": 16}]}
    assert proposals(study_spec(searchSpaces=spaces, search=search), 1) == [{"batchSize": 16}]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(spaces(), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [("Random", 25), ("QuasiRandom", 25), ("TPE", 14), ("GP", 12), ("Evolution", 20)]
    ),
)
def test_proposals_are_within_bounds_active_distinct_and_resume_anywhere(
    found: list[dict[str, Any]], seed: int, searcher: tuple[str, int]
) -> None:
    algorithm, count = searcher
    spec = study_spec(
        hyperparameters=None, searchSpaces=found, search={"algorithm": algorithm, "seed": seed}
    )
    trials = modelled(spec, count)
    made = [trial.params for trial in trials]
    assert len({json.dumps(params, sort_keys=True) for params in made}) == len(made)
    for params in made:
        assert json.loads(json.dumps(params)) == params
        resolve(None, params)
        assert any(_fits(params, space.domains()) for space in spec.spaces), params
    if made:
        again = proposer_of(spec)
        cut = random.Random(seed).randrange(len(made))
        for params in made[:cut]:
            again.record(params)
        found_again = again.propose(trials[:cut])
        assert found_again is not None
        assert found_again.params == made[cut]


def _fits(params: Params, domains: dict[str, Any]) -> bool:
    active = {
        name: domain
        for name, domain in domains.items()
        if all(params.get(key) in words for key, words in (domain.when or {}).items())
    }
    return set(params) == set(active) and all(
        _contains(domain, params[name]) for name, domain in active.items()
    )


def _contains(domain: Any, value: Any) -> bool:
    if domain.values is not None:
        return value in domain.values
    assert isinstance(domain, NumericDomain)
    assert domain.min is not None
    assert domain.max is not None
    whole = not isinstance(domain, IntegerDomain) or isinstance(value, int)
    return whole and domain.min <= value <= domain.max
