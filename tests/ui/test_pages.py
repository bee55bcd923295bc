"""What the live page shows of studies on this machine, and that it says when that changes."""

from pathlib import Path

import pytest

from finetune_reports.document import read_report
from finetune_trainer.commands.report import document_in
from finetune_trainer.storage.glance import write_progress
from finetune_ui.folders import Folders
from tests.reports.hostile import HOSTILE
from tests.reports.studies import searched
from tests.ui.serving import served

pytestmark = pytest.mark.in_memory


def test_a_study_appears_by_itself_and_its_page_follows_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with served(Folders([runs])) as page:
        assert "No study has begun" in page.ask("/").text
        with page.changes("/changes") as events:
            assert next(events)[0] == "hello"
            searched(runs / "first", items=5)
            assert next(events)[0] == "changed"
        (line,) = Folders([runs]).lines()
        assert f'href="/studies/{line.id}"' in page.ask("/").text
        shown = page.ask(f"/studies/{line.id}")
        assert shown.status == 200
        assert "<h1>first</h1>" in shown.text
        before = read_report(page.ask(f"/studies/{line.id}/document").text)
        with page.changes(f"/studies/{line.id}/changes") as events:
            _, first = next(events)
            searched(runs / "first", items=20, term=2)
            kind, then = next(events)
            assert (kind, first != then) == ("changed", True)
        after = read_report(page.ask(f"/studies/{line.id}/document").text)
        assert len(after.trials) > len(before.trials)
        assert after.trials == document_in(runs / "first").trials


def test_a_study_that_goes_is_told(tmp_path: Path) -> None:
    searched(tmp_path / "study", items=3)
    with served(Folders([tmp_path])) as page:
        (line,) = Folders([tmp_path]).lines()
        with page.changes(f"/studies/{line.id}/changes") as events:
            assert next(events)[0] == "hello"
            (tmp_path / "study").rename(tmp_path / ".gone")
            assert next(events)[0] == "gone"
        assert page.ask(f"/studies/{line.id}").status == 404


def test_studies_are_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        searched(tmp_path / name)
    with served(Folders([tmp_path])) as page:
        ids = [line.id for line in Folders([tmp_path]).lines()]
        both = page.ask(f"/compare?study={ids[0]}&study={ids[1]}")
        assert both.status == 200
        assert "2 studies side by side" in both.text
        alone = page.ask(f"/compare?study={ids[0]}")
        assert (alone.status, "Choose 2" in alone.text) == (400, True)


def test_a_study_on_this_machine_is_not_steered_here(tmp_path: Path) -> None:
    searched(tmp_path / "study")
    with served(Folders([tmp_path])) as page:
        (line,) = Folders([tmp_path]).lines()
        assert "<form method" not in page.ask(f"/studies/{line.id}").text
        refused = page.ask(f"/studies/{line.id}/suspend", "POST", "sure=yes")
        assert refused.status == 502
        assert "in the terminal" in refused.text


def test_records_that_cannot_be_read_are_told_on_a_page(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study")
    (folder / "records" / "study.json").write_text("{}")
    with served(Folders([tmp_path])) as page:
        (line,) = Folders([tmp_path]).lines()
        shown = page.ask(f"/studies/{line.id}")
        assert shown.status == 200
        assert "<h1>study</h1>" in shown.text


def test_texts_of_others_are_text_in_the_list(tmp_path: Path) -> None:
    for place, name in enumerate(HOSTILE):
        folder = searched(tmp_path / f"study-{place}", items=1)
        about = {"name": name, "task": name, "metric": name}
        progress = {"phase": "Searching", "reason": name, "message": name}
        write_progress(folder, about, progress)
    with served(Folders([tmp_path])) as page:
        shown = page.ask("/").text
    assert "&lt;script&gt;window.harm = 1" in shown
    assert "<script>window.harm" not in shown
    assert "<img" not in shown
