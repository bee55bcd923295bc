"""What the kubelet is told."""

import aiohttp

from finetune_operator import probes
from tests.cluster.loopback import free_port


async def test_a_blind_operator_is_alive_but_not_ready() -> None:
    port, why = free_port(), "no watch of finetunestudies for 61 s"
    async with (
        probes.serving(port, lambda: why),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):

        async def asked(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        assert await asked("/healthz") == (200, "ok\n")
        assert await asked("/readyz") == (503, f"{why}\n")
        why = ""
        assert await asked("/readyz") == (200, "ok\n")
        assert (await asked("/"))[0] == 404
