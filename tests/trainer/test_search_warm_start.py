"""What a study learns from finished ones, and from which it refuses to."""

import math
from pathlib import Path
from typing import Any

import pytest

from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import read_history
from finetune_trainer.search.warm_start import inherit
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import CONTINUOUS, Driver, study_spec

pytestmark = pytest.mark.in_memory


def finished(folder: Path, **changes: Any) -> Driver:
    """A finished study in `folder`."""
    storage = Storage.open(str(folder))
    spec = study_spec(**changes)
    claim(storage, parts_of(spec))
    driver = Driver(spec, storage, 1)
    driver.run()
    return driver


def warm(*uris: str, **changes: Any) -> StudySpec:
    search = {"algorithm": "TPE", "warmStart": [{"uri": uri} for uri in uris]}
    return study_spec(**{"search": search, **changes})


def test_trials_of_all_sources_come_best_first_without_duplicates(tmp_path: Path) -> None:
    one, other = (
        finished(tmp_path / "one"),
        finished(tmp_path / "other", search={"algorithm": "QuasiRandom"}),
    )
    found = inherit(warm("one", "other", "one/results"), tmp_path)
    values = [value for _, value in found]
    trials = [*one.state.trials, *other.state.trials]
    assert values == sorted((t.best.value for t in trials if t.best), reverse=True)
    assert {p["learningRate"] for p, _ in found} == {t.params["learningRate"] for t in trials}


def test_only_what_the_spaces_have_is_taken_over(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    narrow = {"learningRate": {"min": 1e-4, "max": 1e-2, "scale": "Log"}}
    found = inherit(warm("one", searchSpaces=[narrow]), tmp_path)
    assert 0 < len(found) < 12
    assert all(1e-4 <= float(params["learningRate"]) <= 1e-2 for params, _ in found)
    # Trained with another batch size than this study would.
    assert inherit(warm("one", hyperparameters={"epochs": 9, "batchSize": 64}), tmp_path) == []
    # What it searches as well, the other study had at its fixed value.
    wider = {**CONTINUOUS, "batchSize": {"values": [8, 16, 64]}}
    assert {
        params["batchSize"] for params, _ in inherit(warm("one", searchSpaces=[wider]), tmp_path)
    } == {16}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "MultiLabel"}, "must be of task MultiLabel (got SingleLabel)"),
        ({"objective": {"metric": "f1_macro"}}, "must be of metric f1_macro (got accuracy)"),
    ],
)
def test_another_task_or_metric_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    finished(tmp_path / "one")
    with pytest.raises(SpecError) as error:
        inherit(warm("one", **changes), tmp_path)
    assert str(error.value) == f"spec.search.warmStart[0].uri: {reason}"


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    for uri, reason in (("none", "there is none"), ("empty", "has none"), ("ftp://a/b", "got ftp")):
        with pytest.raises(SpecError, match=r"spec.search.warmStart\[1\].uri: .*" + reason):
            inherit(warm("one", uri), tmp_path)


def test_what_was_inherited_is_in_the_records_and_asked_for_once(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    spec = warm("one")
    first = Driver(spec, Storage.open(str(tmp_path / "second")), 1)
    (tmp_path / "one").rename(tmp_path / "gone")
    second = Driver(spec, Storage.open(str(tmp_path / "second")), 2)
    assert second.state.inherited == first.state.inherited
    second.run()
    kinds = [type(e) for e in read_history(Storage.open(str(tmp_path / "second"))).events]
    assert kinds.count(ev.Inherited) == 1


def test_inherited_values_do_not_count_as_trials(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    driver = Driver(warm("one"), Storage.open(str(tmp_path / "second")), 1)
    assert driver.state.best_trial() is None
    driver.run()
    assert len(driver.state.trials) == 12
    best = driver.state.best_trial()
    assert best is not None
    assert best.best is not None
    assert math.isfinite(best.best.value)
