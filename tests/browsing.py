"""Pages as a browser shows them: what it logs, what it asks for, what axe-core finds."""

import shutil
from collections.abc import Iterator
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.cluster.onenode import packages
from tests.cluster.onenode.build import cache_folder
from tests.cluster.onenode.locks import exclusive
from tests.needs import ToolMissing, not_run

WIDE, NARROW = 1280, 390
SLOW_MS = 120_000
"""However busy the machine is, a page is drawn by then."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, which root may install."""
    try:
        with exclusive(cache_folder() / "chromium.lock"):
            if shutil.which("chromium") is None:
                packages.require({"chromium": "chromium"})
    except ToolMissing as missing:
        not_run(missing)
    with sync_playwright() as playwright:
        # Root may not use the sandbox; pages are our own.
        yield playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=SLOW_MS
        )


class Seen:
    """A page in the browser, with what it logged and what it asked for."""

    def __init__(self, browser: Browser, address: str, width: int, scheme: str) -> None:
        colors: Literal["dark", "light"] = "dark" if scheme == "dark" else "light"
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=colors
        )
        self.page.set_default_timeout(SLOW_MS)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def drawn(self) -> "Seen":
        """The same when all figures are there."""
        self.page.wait_for_selector("html[data-drawn]", state="attached")
        return self

    def elsewhere(self, own: str) -> list[str]:
        """Requests for anything but what begins with `own`."""
        inside = (own, "data:", "blob:")
        return [url for url in self.asked if not url.startswith(inside)]

    def serious(self) -> list[tuple[str, list[object]]]:
        """What axe-core finds serious or critical, and where."""
        return [
            (found["id"], [node["target"] for node in found["nodes"]][:3])
            for found in Axe().run(self.page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]

    def too_wide(self) -> bool:
        """Whether the page must be scrolled sideways."""
        width = self.page.viewport_size
        assert width is not None
        return bool(self.page.evaluate("document.documentElement.scrollWidth") > width["width"])
