"""Pages as a browser shows them: figures are drawn, nothing is loaded or logged, texts are readable, wide and narrow."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from finetune_reports.document import Report
from finetune_reports.page import comparison_of, figures_of, page_of
from tests.needs import ToolMissing, not_run
from tests.reports.hostile import HOSTILE, hostile_report
from tests.reports.studies import report, searched

pytestmark = [pytest.mark.in_memory, pytest.mark.extended]

WIDE, NARROW = 1280, 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        not_run(ToolMissing("Chromium", "apt-get install chromium"))
    with sync_playwright() as playwright:
        # Root may not use the sandbox; pages are our own.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(searched(tmp_path_factory.mktemp("reports") / "study"))


class Seen:
    """A page in the browser, with what it logged and what it asked for."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: str) -> None:
        colors: Literal["dark", "light"] = "dark" if scheme == "dark" else "light"
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=colors
        )
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"file://{path}")
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)

    @property
    def elsewhere(self) -> list[str]:
        """Requests beside that for the file."""
        return [url for url in self.asked[1:] if not url.startswith(("data:", "blob:"))]


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_report_is_drawn_and_can_be_read(
    browser: Browser, study: Report, write: Path, width: int, scheme: str
) -> None:
    write.write_text(page_of(hostile_report(study)))
    seen = Seen(browser, write, width, scheme)
    assert (seen.said, seen.elsewhere) == ([], [])
    for figure in figures_of(hostile_report(study)):
        drawn = seen.page.locator(f"#plot-{figure.id} svg.main-svg").first
        assert drawn.bounding_box() is not None, figure.id
        box = drawn.bounding_box()
        assert box is not None
        assert box["width"] > 200, figure.id
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    serious = [
        (found["id"], [node["target"] for node in found["nodes"]][:3])
        for found in Axe().run(seen.page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_hostile_texts_do_nothing(browser: Browser, study: Report, write: Path) -> None:
    write.write_text(page_of(hostile_report(study)))
    page = Seen(browser, write, WIDE, "light").page
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
    seen = Seen(browser, write, NARROW, "dark")
    assert (seen.said, seen.elsewhere) == ([], [])
    assert seen.page.locator("#plot-over-hours svg.main-svg").count() > 0
    names = seen.page.locator("#plot-over-hours .legendtext").all_text_contents()
    assert names == ["study", "<b>other</b>"]
