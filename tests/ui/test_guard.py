"""Who may use the live page: nobody but the browser that was given its address, from its own pages."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_ui.folders import Folders
from finetune_ui.guard import Guard
from tests.reports.studies import searched
from tests.ui.serving import Served, served

pytestmark = pytest.mark.in_memory

PATHS = ["/", "/changes", "/compare", "/studies/x", "/studies/x/log", "/assets/page.js", "/none"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("runs")
    searched(folder / "study")
    with served(Folders([folder])) as found:
        yield found


def test_the_address_gives_a_cookie_that_scripts_and_other_sites_never_see(page: Served) -> None:
    first = page.ask(f"/?token={page.guard.token}", Cookie=None)
    assert (first.status, first.headers["location"]) == (303, "/")
    kept = first.headers["set-cookie"].lower()
    assert kept.startswith(page.cookie.lower())
    assert all(word in kept for word in ("httponly", "samesite=lax", "path=/"))
    assert page.ask("/").status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE", "OPTIONS"])
def test_without_the_token_nothing_is_answered(page: Served, path: str, method: str) -> None:
    for cookie in (None, f"{page.guard.cookie}=", f"{page.guard.cookie}=x", "other=y"):
        found = page.ask(path, method, Cookie=cookie)
        assert found.status == 403
        assert "study" not in found.text
    joined = "&" if "?" in path else "?"
    assert page.ask(f"{path}{joined}token=guessed", Cookie=None).status == 403


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:1",
        "evil.example:{port}",
        "localhost.evil:{port}",
        "",
    ],
)
def test_a_name_that_was_made_to_mean_loopback_is_refused(
    page: Served, path: str, host: str
) -> None:
    given = host.format(port=page.guard.port)
    assert page.ask(path, Host=given).status in (400, 421)  # 400: no host at all
    assert page.ask(f"{path}?token={page.guard.token}", Host=given, Cookie=None).status in (
        400,
        421,
    )


ORIGINS = [
    "http://evil.example",
    "null",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:1",
    "file://",
]


@pytest.mark.parametrize("origin", [None, *ORIGINS])
def test_only_pages_of_this_server_change_anything(page: Served, origin: str | None) -> None:
    given = None if origin is None else origin.format(port=page.guard.port)
    found = page.ask("/studies/x/suspend", "POST", "sure=yes", Origin=given)
    assert found.status == 403
    assert "Changes" in found.text


@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_others_may_not_read(page: Served, origin: str) -> None:
    given = origin.format(port=page.guard.port)
    found = page.ask("/", Origin=given)
    assert found.status == 403
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("path", ["/", "/none", "/studies/none", "/assets/page.js", "/assets/none"])
def test_every_answer_says_how_it_may_be_used(page: Served, path: str) -> None:
    for cookie in (page.cookie, None):
        headers = page.ask(path, Cookie=cookie).headers
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_each_start_has_a_token_of_its_own() -> None:
    assert len({Guard(1).token for _ in range(100)}) == 100
    assert len(Guard(1).token) >= 32


@given(
    st.text(
        st.characters(codec="ascii", exclude_characters="/?#\r\n \x00\x7f", min_codepoint=33),
        min_size=1,
        max_size=40,
    )
)
def test_no_name_of_a_study_leads_out_of_the_folders(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folders = Folders([tmp_path_factory.getbasetemp()])
    known = {line.id for line in folders.lines()}
    if name not in known:
        with pytest.raises(Exception, match="There is no such study"):
            folders.study(name)


@pytest.mark.parametrize(
    "path",
    ["/studies/..%2f..%2fetc", "/studies/%2e%2e/%2e%2e", "/assets/..%2fpage.css", "/studies/none"],
)
def test_what_is_not_there_is_said(page: Served, path: str) -> None:
    assert page.ask(path).status in (404, 405)
