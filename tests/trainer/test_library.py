"""`from finetune_trainer import Study`: real networks on scikit-learn's digits, through Ray."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
import ray
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import StratifiedKFold

from finetune_trainer import Resource, Study, StudyFailed
from finetune_trainer.errors import SpecError
from finetune_trainer.runtime.ray_tune import start_ray
from tests.trainer.disks import disk_of

ROOT = Path(__file__).resolve().parents[2]
IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES[:600] / 16.0
DIGITS = DIGITS[:600]
SPACE = {"alpha": {"min": 1e-6, "max": 1e-1, "scale": "Log"}, "penalty": {"values": ["l1", "l2"]}}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    start_ray(2)
    yield
    ray.shutdown()


def parts(fold: int | None) -> tuple[Any, Any]:
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(IMAGES, DIGITS))
    train, test = folds[fold or 0]
    return train, test


def model(config: dict[str, Any], seed: int) -> SGDClassifier:
    return SGDClassifier(alpha=config["alpha"], penalty=config["penalty"], random_state=seed)


def fit(config: dict[str, Any], resource: Resource, checkpoint: Path) -> float:
    """One call a rung; the checkpoint has the model of the rung before."""
    train, test = parts(resource.fold)
    train = train[: resource.rows]
    file = checkpoint / "model.joblib"
    done, classifier = joblib.load(file) if file.exists() else (0, model(config, resource.seed))
    for _ in range(done, int(resource.epochs)):
        classifier.partial_fit(IMAGES[train], DIGITS[train], classes=np.arange(10))
    joblib.dump((int(resource.epochs), classifier), file)
    return float(classifier.score(IMAGES[test], DIGITS[test]))


def fit_epochs(config: dict[str, Any], resource: Resource, checkpoint: Path) -> Iterator[float]:
    """One yield an epoch."""
    for epoch in range(int(resource.begun) + 1, int(resource.epochs) + 1):
        yield fit(config, Resource(epoch, seed=resource.seed, fold=resource.fold), checkpoint)


def final(config: dict[str, Any], resource: Resource) -> SGDClassifier:
    classifier = model(config, resource.seed)
    for _ in range(int(resource.epochs)):
        classifier.partial_fit(IMAGES, DIGITS, classes=np.arange(10))
    return classifier


ASHA = {"algorithm": "Random", "scheduler": {"type": "ASHA"}}


@pytest.mark.slow
def test_a_search_with_folds_has_the_table_of_scikit_learn_and_a_final_model(
    tmp_path: Path,
) -> None:
    study = Study(
        fit,
        SPACE,
        into=tmp_path,
        search={**ASHA, "constraints": ["penalty == 'l2' || alpha < 0.001"]},
        budget={"maxTrials": 9},
        epochs=3,
        folds=3,
        metric="accuracy",
        refit=final,
        slots=2,
    ).run(progress=False)
    frame = study.cv_results_
    assert len(frame) == 9
    splits = frame[[f"split{n}_test_score" for n in range(3)]].to_numpy()
    assert frame["mean_test_score"].to_numpy() == pytest.approx(splits.mean(axis=1))
    assert frame["std_test_score"].to_numpy() == pytest.approx(splits.std(axis=1))
    means = frame.sort_values("rank_test_score")["mean_test_score"]
    assert means.is_monotonic_decreasing
    assert all(each["penalty"] == "l2" or each["alpha"] < 1e-3 for each in frame["params"])
    best = frame.loc[frame["rank_test_score"].idxmin()]
    assert best["params"] == study.best_params_
    assert best["mean_test_score"] == pytest.approx(study.best_score_)
    assert set(frame["epochs"]) == {3, 9}, "in all three folds one epoch, or three"
    assert study.best_estimator_.score(IMAGES, DIGITS) > 0.85
    assert (tmp_path / "results" / "trials.csv").is_file()


def title_of(process: psutil.Process) -> str:
    """What a living process calls itself; empty if it has ended by now, as a zombie too."""
    try:
        return "".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.slow
def test_nothing_of_a_search_stays_behind_in_ray(tmp_path: Path) -> None:
    def living() -> list[str]:
        """Processes below this one that are busy with an actor, by their titles."""
        titles = map(title_of, psutil.Process().children(recursive=True))
        return [title for title in titles if title.startswith("ray::Broker")]

    for name in ("one", "two"):
        Study(fit, SPACE, into=tmp_path / name, search=ASHA, budget={"maxTrials": 2}, slots=1).run(
            progress=False
        )
    deadline = time.monotonic() + 240
    while living():
        assert time.monotonic() < deadline, f"{living()} live on"
        time.sleep(0.2)


def test_promotions_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    study = Study(
        fit_epochs, SPACE, into=tmp_path, search=ASHA, budget={"maxTrials": 6}, epochs=9, slots=1
    ).run(progress=False)
    for trial in study.state.trials:
        values = [e.value for e in trial.runs[0].epochs]
        seed = study.state.item(trial, 0).seed
        folder = tmp_path / f"again-{trial.number}"
        folder.mkdir()
        epochs = Resource(len(values), seed=seed)
        assert values == list(fit_epochs(trial.params, epochs, folder)), "bit for bit"
    assert {len(t.runs[0].epochs) for t in study.state.trials} >= {1, 9}


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk_of(tmp_path, 4) as disk:
        filled = tmp_path / "filled"

        def train(config: dict[str, Any], resource: Resource, checkpoint: Path) -> float:
            if not filled.exists():
                disk.fill()
                filled.touch()
            return fit(config, resource, checkpoint)

        def mend() -> None:
            # Whoever gave up would leave the study waiting for ever.
            while "No space left on device; waiting" not in caplog.text:
                time.sleep(0.1)
            disk.free()

        mending = threading.Thread(target=mend, daemon=True)
        mending.start()
        study = Study(train, SPACE, into=disk.place, budget={"maxTrials": 3}, slots=1)
        assert len(study.run(progress=False).cv_results_) == 3
        mending.join()
        said = [record.message for record in caplog.records if "storage" in record.message]
        full = f"storage {disk.place} cannot be written: No space left on device; waiting"
        assert full in said  # on a busy machine the disk may not answer at first
        assert said[-1] == "storage is back, the search goes on"


def test_a_study_cut_off_goes_on_and_a_finished_one_is_only_read(tmp_path: Path) -> None:
    def interrupted(config: dict[str, Any], resource: Resource, checkpoint: Path) -> float:
        stop = tmp_path / "stop"
        if config["penalty"] == "l1" and not stop.exists():
            stop.touch()
            os._exit(1)  # the worker's process goes
        return fit(config, resource, checkpoint)

    def study(budget: int) -> Study:
        limits = {"maxTrials": budget}
        return Study(interrupted, SPACE, into=tmp_path / "s", budget=limits, slots=2)

    first = study(6).run(progress=False)
    assert (tmp_path / "stop").exists()
    assert [trial.status for trial in first.state.trials] == ["Completed"] * 6
    again = Study(_never, SPACE, into=tmp_path / "s", budget={"maxTrials": 6}).run()
    assert again.best_params_ == first.best_params_


@pytest.mark.slow
@pytest.mark.slow
def test_a_study_that_has_ended_goes_on_with_more_trials(tmp_path: Path) -> None:
    def searched(trials: int) -> Study:
        return Study(
            fit,
            SPACE,
            refit=lambda config, epochs: config,
            metric="accuracy",
            search={"algorithm": "Random", "seed": 7, "scheduler": {"type": "ASHA"}},
            budget={"maxTrials": trials},
            epochs=3,
            into=tmp_path,
        ).run(progress=False)

    first = searched(7)
    assert len(first.state.trials) == 7
    second = searched(9)
    assert (len(second.state.trials), second.state.reopened) == (9, 1)
    assert [t.params for t in second.state.trials[:7]] == [t.params for t in first.state.trials]
    assert second.best_score_ >= first.best_score_
    assert second.best_estimator_ == second.best_params_
    assert searched(9).state.reopened == 1


def test_a_study_begun_when_random_was_the_default_goes_on_so(tmp_path: Path) -> None:
    common: dict[str, Any] = {"into": tmp_path, "budget": {"maxTrials": 3}, "slots": 1}
    named = Study(fit, SPACE, search={"algorithm": "Random"}, **common).run(progress=False)
    again = Study(_never, SPACE, **common).run(progress=False)
    assert again.best_params_ == named.best_params_
    with pytest.raises(SpecError, match=r"search\.algorithm"):
        Study(_never, SPACE, search={"algorithm": "Auto"}, **common).run(progress=False)


def _never(*_: Any) -> float:
    raise AssertionError("nothing is left to train")


@pytest.mark.slow
def test_samples_train_on_more_rows_from_the_start(tmp_path: Path) -> None:
    scheduler = {"type": "SuccessiveHalving", "resource": "Samples", "minResource": 50}
    study = Study(
        fit,
        SPACE,
        into=tmp_path,
        search={"algorithm": "QuasiRandom", "scheduler": scheduler},
        budget={"maxTrials": 9},
        rows=400,
        slots=2,
    ).run(progress=False)
    runs = sorted(len(trial.runs) for trial in study.state.trials)
    assert runs == [1] * 6 + [2] * 2 + [3]


@pytest.mark.slow
def test_points_come_first_and_other_studies_teach(tmp_path: Path) -> None:
    point: dict[str, Any] = {"alpha": 0.001, "penalty": "l2"}
    common: dict[str, Any] = {"budget": {"maxTrials": 4}, "slots": 2}
    first = Study(fit, SPACE, into=tmp_path / "1", points=[point], **common).run(progress=False)
    assert first.state.trials[0].params == point
    second = Study(fit, SPACE, into=tmp_path / "2", warm_start=[first], **common)
    assert second.run(progress=False).state.trials[0].params == first.best_params_


def test_what_the_function_raises_fails_the_study_with_its_words_until_it_is_mended(
    tmp_path: Path,
) -> None:
    def wrong(config: dict[str, Any], *_: Any) -> float:
        raise KeyError("gamma")

    def study(function: Callable[..., float]) -> Study:
        return Study(function, SPACE, into=tmp_path, budget={"maxTrials": 6}, slots=2)

    with pytest.raises(StudyFailed, match=r"TooManyFailedTrials.*KeyError: 'gamma'"):
        study(wrong).run(progress=False)
    mended = study(lambda config, *_: float(config["alpha"])).run(progress=False)
    assert [trial.status for trial in mended.state.trials] == ["Completed"] * 6
    assert mended.best_params_["alpha"] == max(
        trial.params["alpha"] for trial in mended.state.trials
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spaces": {"alpha": {"min": 1.0}}}, "spaces[0].alpha"),
        ({"spaces": {"alpha": [1, 2]}}, "spaces[0].alpha"),
        ({"spaces": {"alpha": {"values": [None]}}}, "spaces[0].alpha"),
        ({"spaces": {}}, "spaces"),
        ({"search": {"algorithm": "Best"}}, "search.algorithm"),
        ({"search": {"algorithm": "Grid"}}, "spaces[0].alpha"),
        (
            {"search": {**ASHA, "scheduler": {"type": "ASHA", "resource": "Folds"}}},
            "search.scheduler.resource",
        ),
        (
            {"search": {"algorithm": "Random", "constraints": ["alpha > 2.0"]}},
            "search.constraints",
        ),
        (
            {
                "search": {
                    "algorithm": "Random",
                    "scheduler": {"type": "ASHA", "resource": "Samples"},
                }
            },
            "rows",
        ),
        ({"budget": {}}, "budget"),
        ({"budget": {"maxTrials": 0}}, "budget.maxTrials"),
        ({"points": [{"alpha": 7.0}]}, "points[0].alpha"),
    ],
)
def test_wrong_settings_are_refused_with_their_field(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spaces": SPACE, "budget": {"maxTrials": 2}, **changes}
    with pytest.raises(SpecError) as error:
        Study(fit, into=tmp_path, **settings)
    assert error.value.field == field


def test_the_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    Study(fit, SPACE, into=tmp_path, budget={"maxTrials": 1}, slots=1).run(progress=False)
    other = Study(fit, SPACE, into=tmp_path, budget={"maxTrials": 1}, epochs=2)
    with pytest.raises(SpecError, match=r"^epochs: must be 1, .*a folder of its own$"):
        other.run(progress=False)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads((ROOT / "examples" / "digits.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec("".join(cell["source"]), names)
    best = names["study"].best_estimator_
    assert best.score(names["held_out_images"], names["held_out_digits"]) > 0.93
    shown = ["".join(out["data"]["text/plain"]) for cell in cells for out in cell["outputs"]]
    assert "mean_test_score" in shown[0]
    assert names["spent"] < names["whole"] / 3
