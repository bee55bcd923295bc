"""Pages as a browser shows them: figures are drawn, nothing is loaded or logged, texts are readable, wide and narrow."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from finetune_reports.document import Report
from finetune_reports.page import comparison_of, figures_of, page_of
from tests.browsing import NARROW, WIDE, Seen, browser
from tests.reports.hostile import HOSTILE, hostile_report
from tests.reports.studies import report, searched

pytestmark = [pytest.mark.in_memory, pytest.mark.slow]

__all__ = ["browser"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(searched(tmp_path_factory.mktemp("reports") / "study"))


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_report_is_drawn_and_can_be_read(
    browser: Browser, study: Report, write: Path, width: int, scheme: str
) -> None:
    write.write_text(page_of(hostile_report(study)))
    seen = Seen(browser, f"file://{write}", width, scheme).drawn()
    assert (seen.said, seen.elsewhere(f"file://{write}")) == ([], [])
    for figure in figures_of(hostile_report(study)):
        drawn = seen.page.locator(f"#plot-{figure.id} svg.main-svg").first
        assert drawn.bounding_box() is not None, figure.id
        box = drawn.bounding_box()
        assert box is not None
        assert box["width"] > 200, figure.id
    assert not seen.too_wide()
    assert seen.serious() == []


def test_hostile_texts_do_nothing(browser: Browser, study: Report, write: Path) -> None:
    write.write_text(page_of(hostile_report(study)))
    page = Seen(browser, f"file://{write}", WIDE, "light").drawn().page
    assert page.evaluate("window.harm") is None
    assert page.locator("img").count() == 0
    links = page.locator("svg a, td a, li a[href^='javascript']")
    assert links.count() == 0
    shown = page.evaluate("document.body.innerText")
    assert HOSTILE[0] in shown
    ticks = page.locator("#plot-confusion .ytick text").all_text_contents()
    assert any("<script>" in text for text in ticks), ticks


def test_a_comparison_is_drawn(browser: Browser, study: Report, write: Path) -> None:
    other = study.model_copy(update={"name": "<b>other</b>"})
    write.write_text(comparison_of([study, other]))
    seen = Seen(browser, f"file://{write}", NARROW, "dark").drawn()
    assert (seen.said, seen.elsewhere(f"file://{write}")) == ([], [])
    assert seen.page.locator("#plot-over-hours svg.main-svg").count() > 0
    names = seen.page.locator("#plot-over-hours .legendtext").all_text_contents()
    assert names == ["study", "<b>other</b>"]
