"""The live page in a browser: it changes while it is looked at, and can be used and read."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from finetune_client import Studies as ClientStudies
from finetune_ui.cluster import ClusterStudies
from finetune_ui.folders import Folders
from tests.api.wrong_manifests import VALID, changed
from tests.browsing import NARROW, SLOW_MS, WIDE, Seen, browser
from tests.client.found import status, write
from tests.cluster.operator_process import Studies
from tests.reports.studies import searched
from tests.ui.serving import served

pytestmark = [pytest.mark.in_memory, pytest.mark.slow]

__all__ = ["browser"]

expect.set_options(timeout=SLOW_MS)


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_a_page_changes_while_it_is_looked_at(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    runs = tmp_path / "runs"
    with served(Folders([runs])) as server:
        seen = Seen(browser, server.guard.address, width, scheme)
        page = seen.page
        assert "token" not in page.url
        expect(page.locator("main")).to_contain_text("No study has begun")
        expect(page.locator("#live")).to_contain_text("Following:")
        searched(runs / "first", works=8)
        page.get_by_role("link", name="first").click()
        seen.drawn()
        curves = page.locator("#plot-curves svg.main-svg").first
        assert curves.bounding_box() is not None
        expect(page.locator("#live")).to_contain_text("Following:")
        page.get_by_role("link", name="Trials", exact=True).focus()
        before = page.locator("#plot-curves .trace").count()
        plot = page.locator("#plot-curves").element_handle()
        scrolled = page.evaluate("scrollTo(0, 700), scrollY")
        searched(runs / "first", term=2)
        expect(page.locator("#live")).to_contain_text("Updated")
        page.wait_for_function(
            "before => document.querySelectorAll('#plot-curves .trace').length > before", arg=before
        )
        assert page.evaluate("plot => plot.isConnected", plot), (
            "the plot is the same, with new data"
        )
        assert page.evaluate("scrollY") == scrolled
        assert page.evaluate("document.activeElement.textContent") == "Trials"
        assert not seen.too_wide()
        assert seen.serious() == []
        page.get_by_role("link", name="All studies").click()
        expect(page.get_by_role("link", name="first")).to_be_visible()
        assert seen.serious() == []
        assert seen.said == []
        assert seen.elsewhere(server.origin) == []


def test_studies_are_chosen_and_compared(browser: Browser, tmp_path: Path) -> None:
    for name in ("one", "two"):
        searched(tmp_path / name)
    with served(Folders([tmp_path])) as server:
        seen = Seen(browser, server.guard.address, NARROW, "light")
        for name in ("one", "two"):
            seen.page.get_by_label(f"compare {name}").check()
        seen.page.get_by_role("button", name="Compare").click()
        seen.drawn()
        assert seen.page.locator("#plot-over-hours svg.main-svg").count() > 0
        assert (seen.said, seen.elsewhere(server.origin)) == ([], [])
        assert seen.serious() == []
        assert not seen.too_wide()


def test_a_study_of_a_cluster_is_suspended_after_being_asked_twice(
    browser: Browser, client: ClientStudies, studies: Studies
) -> None:
    client.create(changed(VALID, {"metadata": {"name": "tickets"}}))
    with served(ClusterStudies(client)) as server:
        seen = Seen(browser, server.guard.address, WIDE, "dark")
        seen.page.get_by_role("link", name="tickets").click()
        seen.page.get_by_role("button", name="Suspend").click()
        expect(seen.page.get_by_role("heading", level=1)).to_have_text("Are you sure?")
        assert seen.serious() == []
        assert not client.get("tickets").last.spec.get("suspend")
        seen.page.get_by_role("button", name="Yes").click()
        expect(seen.page.get_by_role("button", name="Resume")).to_be_visible()
        assert client.get("tickets").last.spec["suspend"] is True
        write(studies, "tickets", status())
        expect(seen.page.locator("main")).to_contain_text("0.9123")
        assert seen.serious() == []
        assert not seen.too_wide()
        assert (seen.said, seen.elsewhere(server.origin)) == ([], [])
