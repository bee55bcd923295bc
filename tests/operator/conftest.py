"""What tests of the operator share."""

from collections.abc import AsyncIterator

import pytest

from tests.operator.fake_api import FakeApi, serving


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApi]:
    """A small API server of the test's own."""
    # There is no TLS on loopback, and every client would read all certificates of the system.
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    monkeypatch.setenv("SSL_CERT_DIR", "/dev/null")
    async with serving() as server:
        yield server
