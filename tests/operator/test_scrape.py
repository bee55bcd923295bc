"""The metrics as they are served: to whom, and under which certificate."""

import asyncio
import ssl
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from finetune_operator import certificate, scrape
from finetune_operator.reviews import Reviews, Verdict
from finetune_operator.settings import Settings
from tests.cluster.onenode.certificates import Authority

BY_TOKEN = {
    "": Verdict.UNKNOWN,
    "prometheus": Verdict.ALLOWED,
    "guest": Verdict.FORBIDDEN,
    "whoever": Verdict.UNDECIDED,
}


class _Reviews:
    async def verdict(self, token: str) -> Verdict:
        return BY_TOKEN[token]


REVIEWS = cast(Reviews, _Reviews())


async def asked(
    port: int,
    path: str = "/metrics",
    tls: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str, str]:
    """Status, text, and what is said about the right way to ask."""
    scheme = "http" if tls is None else "https"
    url = f"{scheme}://127.0.0.1:{port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=tls or True) as answer,
    ):
        return answer.status, await answer.text(), answer.headers.get("WWW-Authenticate", "")


def trusting(ca: Path | None = None) -> ssl.SSLContext:
    """TLS of a client that verifies against `ca`, or does not."""
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    return context


async def test_open_metrics_are_for_everybody() -> None:
    async with scrape.served(0) as port:
        status, text, _ = await asked(port)
        assert status == 200
        assert "finetune_leader 0.0" in text
        assert (await asked(port, "/"))[0] == 404
        openmetrics = await asked(port, headers={"Accept": "application/openmetrics-text"})
        assert openmetrics[1].endswith("# EOF\n")


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({}, 401, "send the token"),
        ({"Authorization": "Basic cHJvbWV0aGV1cw=="}, 401, "send the token"),
        ({"Authorization": "Bearer guest"}, 403, "finetune-metrics-reader"),
        ({"Authorization": "Bearer whoever"}, 503, "does not say"),
        ({"Authorization": "bearer prometheus"}, 200, "finetune_leader"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_others_are_for_whom_the_api_server_lets(
    headers: dict[str, str], status: int, said: str
) -> None:
    async with scrape.served(0, REVIEWS) as port:
        found, text, way = await asked(port, headers=headers)
    assert (found, way) == (status, "Bearer" if status == 401 else "")
    assert said in text
    assert ("finetune_leader" in text) is (status == 200)


async def test_a_process_has_a_certificate_of_its_own() -> None:
    tls = certificate.context()
    certificate.self_signed(tls, "finetune-operator-" + "7d9" * 20)
    async with scrape.served(0, REVIEWS, tls) as port:
        assert (await asked(port, tls=trusting()))[0] == 401
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await asked(port, tls=ssl.create_default_context())
        with pytest.raises(aiohttp.ClientError):
            await asked(port)


async def test_the_platforms_certificate_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_LOOK_SECONDS", 0.01)
    mounted, first, second = (tmp_path / name for name in ("mounted", "first", "second"))
    mounted.mkdir()

    def mount(folder: Path) -> Path:
        authority = Authority(folder)
        pair = authority.issue("tls", "operator", hosts=["127.0.0.1"])
        (mounted / "tls.key").write_bytes(pair.key.read_bytes())
        (mounted / "tls.crt").write_bytes(pair.certificate.read_bytes())
        return authority.certificate

    old = mount(first)
    tls = certificate.context()
    following = asyncio.create_task(certificate.Mounted(tls, mounted).follow())
    async with scrape.served(0, None, tls) as port:
        assert (await asked(port, tls=trusting(old)))[0] == 200
        new = mount(second)
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await asked(port, tls=trusting(new)))[0] == 200
                    break
                except aiohttp.ClientConnectorCertificateError:
                    await asyncio.sleep(0.02)
    assert not following.done()
    following.cancel()


async def test_a_certificate_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    settings = Settings(metrics_port=0, metrics_certificate=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"tls\.crt"):
        async with scrape.serving(settings):
            raise AssertionError("it is served")


@pytest.mark.parametrize(("access", "served"), [("Open", True), ("Off", False)])
async def test_access_is_what_the_settings_say(
    access: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = []
    real = scrape.served

    def seen(port: int) -> object:
        ports.append(port)
        return real(port)

    monkeypatch.setattr(scrape, "served", seen)
    async with scrape.serving(
        Settings.model_validate({"metrics_access": access, "metrics_port": 0})
    ):
        assert bool(ports) is served
