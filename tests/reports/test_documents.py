"""What a report says is what the records say: the document of studies whose decisions are real."""

from itertools import pairwise
from pathlib import Path

import pytest

from finetune_reports.comparable import comparable
from finetune_reports.document import NoReport, Report, read_report
from finetune_trainer.cli import main
from finetune_trainer.records.log import read_history
from finetune_trainer.report import Subject, report_of
from finetune_trainer.search.recorded import recorded
from finetune_trainer.search.story import REFIT, Story
from finetune_trainer.storage.folder import Storage
from tests.reports.studies import report, searched
from tests.trainer.search_studies import ASHA, study_spec

pytestmark = pytest.mark.in_memory


def test_trials_are_those_of_the_records(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study")
    found, state = report(folder), recorded(folder).state
    best = state.best_trial()
    assert best is not None
    assert best.best is not None
    assert found.best is not None
    assert (found.best.number, found.best.value) == (best.number, best.best.value)
    assert [trial.params for trial in found.trials] == [trial.params for trial in state.trials]
    assert [trial.state for trial in found.trials] == [trial.status for trial in state.trials]
    assert {trial.number: trial.place for trial in found.trials if trial.place} == state.places()
    assert sum(trial.epochs for trial in found.trials) == found.spending.epochs
    assert (found.reason, found.message) == (state.ended.reason, state.ended.message)  # type: ignore[union-attr]
    assert found.trials[3].message == "no GPU 3"


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = report(searched(tmp_path / "study"))
    assert read_report(found.to_json()) == found


def test_undefined_values_are_none_in_a_document(tmp_path: Path) -> None:
    found = report(searched(tmp_path / "study"))
    trial = found.trials[0].model_dump() | {"value": float("nan"), "metrics": {"f1": float("nan")}}
    changed = Report.model_validate({**found.model_dump(), "trials": [trial]})
    assert changed.trials[0].value is None
    assert changed.trials[0].metrics == {}
    assert read_report(changed.to_json()) == changed


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": 3}'])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(NoReport, match="not the document of a report"):
        read_report(text)


def test_each_piece_of_work_of_a_slot_is_a_span(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study")
    found = report(folder)
    assert {span.slot for span in found.spans} <= {"slot/1", "slot"}
    ends = [(span.start, span.end) for span in found.spans]
    assert all(start <= end for start, end in ends)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    trials = {span.trial for span in found.spans if span.run != REFIT}
    assert trials == {trial.number for trial in found.trials}
    assert {span.how for span in found.spans if span.trial == 3} == {"failed"}


def test_what_a_driver_had_in_flight_when_it_went_is_lost_then(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study", items=1)
    before = recorded(folder).events[-1].time
    assert [span.how for span in report(folder).spans] == ["running"]
    searched(folder, items=1, term=2)
    events = recorded(folder).events
    story = Story(recorded(folder).state.problem, events)
    assert story.spans[0].how == "lost"
    assert story.began is not None
    assert story.spans[0].end == before - story.began


def test_improvements_end_with_the_best_and_never_get_worse(tmp_path: Path) -> None:
    found = report(searched(tmp_path / "study"))
    values = [step.value for step in found.improvements]
    assert found.best is not None
    assert values[-1] == found.best.value
    assert values == sorted(values, key=lambda value: value or 0.0)
    assert found.improvements[-1].trial == found.best.number
    assert found.improvements[-1].epochs <= found.spending.epochs


def test_trials_are_compared_after_equally_much_training(tmp_path: Path) -> None:
    found = report(searched(tmp_path / "study"))
    same = comparable(found)
    assert len(same.values) >= 5
    rung = next(
        resource
        for resource in found.rungs
        if same.said == f"after {resource:g} epoch{'s' * (resource > 1)}"
    )
    for trial in found.trials:
        if trial.number in same.values:
            assert dict(trial.rungs)[rung] == same.values[trial.number]


def test_a_folder_without_a_study_has_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "must be the folder of a study" in capsys.readouterr().err


def test_a_study_that_runs_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = searched(tmp_path / "study", items=1)
    assert main(["report", str(folder), "--output", "json"]) == 0
    found = read_report(capsys.readouterr().out)
    assert (found.name, found.ended) == ("study", None)
    assert [trial.state for trial in found.trials] == ["Running"]


def test_the_time_of_a_study_that_nobody_works_on_stands_still(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study", works=6, items=1)
    storage = Storage.open(str(folder))
    spec = study_spec(refit=False, search=ASHA)
    subject = Subject.named("study", spec, storage)
    last = read_history(storage).events[-1].time
    later = last + 7200
    works, rests = (report_of(subject, storage, later, is_working=each) for each in (True, False))
    assert works.spending.seconds - rests.spending.seconds == pytest.approx(7200, abs=60)
    (going,) = [span for span in works.spans if span.how == "running"]
    (left,) = [span for span in rests.spans if span.how == "running"]
    assert going.end - left.end == pytest.approx(7200)
    assert rests.made == later
