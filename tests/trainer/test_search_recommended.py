"""The recommended first trial: what its table says for a model, and how it is moved into a search space."""

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from finetune_api.combinations import Space, conditions_last, is_active
from finetune_api.fixed_and_searched import SearchSpace
from finetune_api.hyperparameters import JSON_NAMES, Scalar, resolve
from finetune_api.spaces import DOMAINS
from finetune_trainer.search import recommended as module
from finetune_trainer.search.domains import draw_params, member
from finetune_trainer.search.recommended import (
    FROZEN_ENCODER,
    LORA,
    RECOMMENDATIONS,
    Recommendation,
    first_point,
    fitted,
    page,
    recommended,
    row_of,
    table,
)

ROOT = Path(__file__).resolve().parents[2]
MANY = 100_000
"""Rows with which no recommendation for few rows holds."""


def fixed(**values: Scalar) -> dict[str, Scalar]:
    """What a study fixes, with the defaults."""
    defaults: dict[str, Scalar] = resolve(None, dict(values)).to_json()
    return defaults


def space(**domains: dict[str, Any]) -> Space:
    """A space as a manifest writes it."""
    searched: Space = SearchSpace.model_validate(domains).domains()
    return searched


def rate(model_type: str, hidden_size: int, **values: Scalar) -> Scalar | None:
    """The recommended learning rate for many rows."""
    return recommended(model_type, hidden_size, MANY, fixed(**values)).get("learningRate")


@pytest.mark.parametrize(
    ("model_type", "hidden_size", "expected"),
    [
        ("bert", 128, 3e-4),
        ("bert", 256, 3e-4),
        ("bert", 384, 5e-5),  # MiniLM
        ("bert", 512, 1e-4),
        ("bert", 768, 3e-5),
        ("bert", 1024, 2e-5),
        ("distilbert", 768, 2e-5),
        ("roberta", 384, 5e-5),  # MiniLMv2
        ("roberta", 768, 2e-5),
        ("roberta", 1024, 1e-5),
        ("xlm-roberta", 1024, 1e-5),
        ("electra", 256, 3e-4),
        ("electra", 768, 1e-4),
        ("electra", 1024, 5e-5),
        ("deberta-v2", 384, 4.5e-5),
        ("deberta-v2", 768, 2e-5),
        ("deberta-v2", 1024, 7e-6),
        ("deberta-v2", 1536, 3e-6),
        ("modernbert", 768, 8e-5),
        ("modernbert", 1024, 3e-5),
        ("never-heard-of", 768, 2e-5),
    ],
)
def test_a_family_and_size_have_their_learning_rate(
    model_type: str, hidden_size: int, expected: float
) -> None:
    assert rate(model_type, hidden_size) == expected


def test_a_recommendation_is_a_valid_configuration_of_the_trainer() -> None:
    for row in RECOMMENDATIONS:
        for rows in (1, 7_000, MANY):
            for values in ({}, {"loraRank": 8}, {"freeze": "Encoder"}, {"optimizer": "SGD"}):
                family = row.families[0] if row.families else "any"
                point = recommended(family, row.widest or 4096, rows, fixed(**values))
                assert set(point) <= set(JSON_NAMES)
                assert resolve(None, point).to_json() == fixed() | point


def test_every_row_can_be_reached() -> None:
    for row in RECOMMENDATIONS:
        for family in row.families or ("never-heard-of",):
            assert row_of(family, row.widest or 100_000) is row


def test_every_family_is_a_model_type() -> None:
    families = {family for row in RECOMMENDATIONS for family in row.families}
    assert families <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("row", RECOMMENDATIONS, ids=lambda row: f"{row.families}-{row.widest}")
def test_a_learning_rate_is_within_what_its_source_says(row: Recommendation) -> None:
    low, high = row.source_rates
    assert 1e-6 <= low <= row.learning_rate <= high <= 3e-4
    assert any(year in row.source for year in map(str, range(2018, 2027))) or "card" in row.source


def test_a_head_over_a_frozen_encoder_has_its_own_learning_rate() -> None:
    low, high = FROZEN_ENCODER.source_rates
    assert low <= FROZEN_ENCODER.learning_rate <= high
    assert rate("bert", 768, freeze="Encoder") == rate("electra", 256, freeze="Encoder") == 1e-3
    assert rate("bert", 768, freeze="Embeddings") == rate("bert", 768)


def test_lora_has_ten_times_the_learning_rate_within_a_limit() -> None:
    assert rate("bert", 768, loraRank=8) == 3e-4
    assert rate("deberta-v2", 1536, loraRank=8) == 3e-5
    assert rate("electra", 256, loraRank=8) == LORA.most
    assert rate("bert", 768, loraRank=8, freeze="Encoder") == FROZEN_ENCODER.learning_rate


def test_only_adam_has_a_learning_rate() -> None:
    for optimizer in ("SGD", "NesterovSGD", "RMSprop", "Adafactor"):
        point = recommended("bert", 768, MANY, fixed(optimizer=optimizer))
        assert "learningRate" not in point
        assert point["optimizer"] == optimizer
        assert point["epochs"] == 3
    assert rate("bert", 768, optimizer="Adam") == rate("bert", 768)  # the same in this trainer


def test_few_rows_are_trained_on_for_longer() -> None:
    points = {
        rows: recommended("bert", 768, rows, fixed())
        for rows in (1, 5_000, 5_001, 10_000, 10_001, MANY)
    }
    epochs = {rows: point["epochs"] for rows, point in points.items()}
    assert epochs == {1: 20, 5_000: 20, 5_001: 10, 10_000: 10, 10_001: 3, MANY: 3}
    assert points[5_000]["batchSize"] == 16
    assert points[MANY]["batchSize"] == 32
    assert recommended("roberta", 768, 2_000, fixed())["warmupRatio"] == 0.1
    assert recommended("roberta", 768, MANY, fixed())["warmupRatio"] == 0.06
    assert recommended("longformer", 768, 7_000, fixed())["epochs"] == 15  # never fewer


def test_accumulated_gradients_leave_the_rows_of_a_step_as_they_are() -> None:
    assert recommended("bert", 768, MANY, fixed(gradientAccumulation=4))["batchSize"] == 8
    assert recommended("bert", 768, MANY, fixed(gradientAccumulation=100))["batchSize"] == 1


def test_only_what_is_searched_is_set() -> None:
    point = recommended("bert", 768, MANY, fixed())
    searched = space(learningRate={"min": 1e-6, "max": 1e-3}, hiddenDropout={"min": 0, "max": 0.5})
    assert fitted(point, searched) == {"learningRate": 3e-5}


@pytest.mark.parametrize(
    ("name", "domain", "value", "expected"),
    [
        # continuous, and on a log scale: clipped
        ("weightDecay", {"min": 0, "max": 0.1}, 0.01, 0.01),
        ("weightDecay", {"min": 0.05, "max": 0.1}, 0.01, 0.05),
        ("learningRate", {"min": 1e-5, "max": 1e-3, "scale": "Log"}, 3e-5, 3e-5),
        ("learningRate", {"min": 1e-5, "max": 2e-5, "scale": "Log"}, 3e-5, 2e-5),
        ("weightDecay", {"min": 0.001, "max": 0.1, "scale": "Log"}, 0.0, 0.001),
        # whole numbers, in steps of one, of more, and on a log scale
        ("epochs", {"min": 2, "max": 5}, 3, 3),
        ("epochs", {"min": 2, "max": 5}, 20, 5),
        ("epochs", {"min": 1, "max": 10, "step": 4}, 4, 5),
        ("epochs", {"min": 1, "max": 10, "step": 4}, 20, 9),
        ("batchSize", {"min": 8, "max": 64, "scale": "Log"}, 32, 32),
        ("batchSize", {"min": 64, "max": 256, "scale": "Log"}, 32, 64),
        # steps of real numbers
        ("warmupRatio", {"min": 0, "max": 0.5, "step": 0.04}, 0.1, 0.08),  # as near as 0.12
        ("warmupRatio", {"min": 0, "max": 0.5, "step": 0.04}, 0.11, 0.12),
        ("warmupRatio", {"min": 0.2, "max": 0.5, "step": 0.1}, 0.1, 0.2),
        ("learningRate", {"min": 1e-5, "max": 4e-5, "step": 3e-5}, 2.2e-5, 4e-5),  # by logarithms
        ("learningRate", {"min": 1e-9, "max": 1, "step": 1e-9}, 3e-5, 3e-5),  # a billion of them
        # listed values, in any order
        ("batchSize", {"values": [64, 8, 24]}, 32, 24),
        ("batchSize", {"values": [64, 8, 24]}, 4, 8),
        ("learningRate", {"values": [1e-3, 1e-5]}, 3e-4, 1e-3),  # linearly 1e-5 would be nearer
        ("weightDecay", {"values": [0.1, 0]}, 0.01, 0.0),
        # words
        ("lrSchedule", {"values": ["Cosine", "Linear"]}, "Linear", "Linear"),
        ("lrSchedule", {"values": ["Cosine", "Constant"]}, "Linear", None),
        ("lrSchedule", {"values": ["Cosine", "Linear"]}, 3, None),
        ("epochs", {"min": 2, "max": 5}, "Linear", None),
        ("epochs", {"min": 1, "max": 5}, True, None),
    ],
)
def test_a_value_is_moved_to_the_nearest_of_its_domain(
    name: str, domain: dict[str, Any], value: Scalar, expected: Scalar | None
) -> None:
    searched = space(**{name: domain})
    moved = fitted({name: value}, searched).get(name)
    assert moved == expected
    if moved is not None:
        assert member(searched[name], moved) == moved


def test_what_depends_on_a_word_is_set_where_it_holds() -> None:
    searched = space(
        optimizer={"values": ["SGD", "AdamW"]},
        learningRate={"values": [1e-5, 3e-5], "when": {"optimizer": ["AdamW"]}},
        batchSize={"values": [16, 32], "when": {"optimizer": ["SGD"]}},
        lrSchedule={"values": ["Cosine"]},
        epochs={"values": [3], "when": {"lrSchedule": ["Cosine"]}},
    )
    point = recommended("bert", 768, MANY, fixed())
    # epochs follows a word that is still to be drawn
    assert fitted(point, searched) == {"optimizer": "AdamW", "learningRate": 3e-5}


def test_the_learning_rate_follows_what_the_space_has() -> None:
    rates = {"min": 1e-6, "max": 1e-1, "scale": "Log"}

    def first(**domains: dict[str, Any]) -> dict[str, Scalar]:
        return first_point("bert", 768, MANY, fixed(), space(learningRate=rates, **domains))

    assert first() == {"learningRate": 3e-5}
    assert first(loraRank={"values": [0, 8]}) == {"learningRate": 3e-5, "loraRank": 0}
    assert first(loraRank={"values": [8, 64]}) == {"learningRate": 3e-4, "loraRank": 8}
    accumulated = first(gradientAccumulation={"values": [4]}, batchSize={"min": 1, "max": 64})
    assert accumulated == {"learningRate": 3e-5, "gradientAccumulation": 4, "batchSize": 8}
    assert first(freeze={"values": ["Layers", "Encoder"]}) == {}  # which one is drawn decides
    assert first(optimizer={"values": ["Adam", "AdamW", "SGD"]})["optimizer"] == "AdamW"
    assert first(optimizer={"values": ["Adam", "SGD"]}) == {}
    pooled = {"values": ["Cls", "Mean"]}
    conditional = {"values": [8], "when": {"pooling": ["Mean"]}}
    assert first(pooling=pooled, loraRank=conditional) == {}  # pooling is drawn
    inactive = {"values": [8], "when": {"optimizer": ["SGD"]}}
    words = {"values": ["AdamW", "SGD"]}
    assert first(optimizer=words, loraRank=inactive) == {"optimizer": "AdamW", "learningRate": 3e-5}


def test_what_is_fitted_can_be_drawn() -> None:
    """In random spaces: every value is in its domain, and nothing inactive is set."""
    rng = random.Random(0)
    for _ in range(300):
        searched = space(**_domains(rng))
        row = rng.choice(RECOMMENDATIONS)
        family = rng.choice(row.families or ("any",))
        params = first_point(family, row.widest or 2048, rng.choice([500, MANY]), fixed(), searched)
        assert set(params) <= set(searched)
        for name, domain in conditions_last(searched):
            if name in params:
                assert is_active(domain, params)
                assert member(domain, params[name]) == params[name]


def _domains(rng: random.Random) -> dict[str, dict[str, Any]]:
    low = 10 ** rng.uniform(-6, -4)
    domains: dict[str, dict[str, Any]] = {
        "learningRate": {"min": low, "max": low * 50, "scale": rng.choice(["Log", "Linear"])},
        "epochs": {"min": rng.randint(1, 4), "max": rng.randint(5, 30)},
        "batchSize": {"values": rng.sample([4, 8, 16, 32, 64], 3)},
        "warmupRatio": {"min": 0, "max": 0.3, "step": rng.choice([0.03, 0.1])},
        "weightDecay": {"min": 1e-4, "max": 0.05, "scale": "Log"},
        "layerDecay": {"min": 0.85, "max": 0.95},
        "loraRank": {"min": rng.randint(0, 4), "max": 64},
        "optimizer": {"values": rng.sample(["AdamW", "Adam", "SGD"], 2)},
    }
    chosen = {name: domains[name] for name in rng.sample(sorted(domains), 5)}
    if "optimizer" in chosen:
        words = [chosen["optimizer"]["values"][0]]
        for name in rng.sample([name for name in sorted(chosen) if name != "optimizer"], 2):
            chosen[name] = chosen[name] | {"when": {"optimizer": words}}
    return chosen


def test_random_draws_agree_with_their_own_fit() -> None:
    """A point that the space has stays as it is."""
    rng = random.Random(1)
    for _ in range(200):
        searched = space(**_domains(rng))
        drawn = draw_params(searched, rng)
        moved = fitted(drawn, searched)
        assert moved.keys() == drawn.keys()
        for name, value in drawn.items():
            if isinstance(value, str):
                assert moved[name] == value
            else:
                assert math.isclose(float(moved[name]), float(value), rel_tol=1e-9)


def test_the_page_is_what_the_generator_prints() -> None:
    written = (ROOT / "docs" / "recommended.md").read_text()
    assert written == page(), "run python -m finetune_trainer.search.recommended"
    assert table() in written


def test_the_table_has_every_row_and_whole_cells() -> None:
    head, rule, *rows = table().splitlines()
    assert len(rows) == len(RECOMMENDATIONS)
    assert {line.count("|") for line in (head, rule, *rows)} == {10}
    for line, row in zip(rows, RECOMMENDATIONS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[2]) == row.learning_rate
        assert cells[-1] == row.source


def test_the_names_are_hyperparameters() -> None:
    assert {JSON_NAMES[name] for name in recommended("bert", 768, 1, fixed())} <= set(DOMAINS)


def test_it_needs_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'kubernetes'}"
    code = f"import sys, {module.__name__}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
