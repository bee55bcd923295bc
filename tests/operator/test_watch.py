"""How the watch of the children goes on when the API server has lost its place."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from finetune_operator.kube import Expired, KubeError
from finetune_operator.observe import JobView
from finetune_operator.store import Store
from finetune_operator.watch import ChildWatch, SetBack


class Script:
    """Stands in for `Kube`: lists are at these versions one after another, each watch breaks off by `error`."""

    def __init__(self, error: KubeError, *versions: str) -> None:
        self.error = error
        self.versions = list(versions)
        self.watched: list[str] = []

    async def list_all(self, *_: object) -> tuple[list[dict[str, Any]], str]:
        return [], self.versions.pop(0)

    async def watch(
        self, kind: str, namespace: str | None, labels: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        self.watched.append(version)
        for item in [version] * (len(self.watched) > 3):  # the test has seen enough
            await asyncio.Event().wait()
            yield item, {}
        raise self.error


async def followed(script: Script) -> BaseException | None:
    """What ends the watch by itself within a moment."""
    ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    watch = ChildWatch(script, Store(), lambda key, told: None, (JobView,))  # type: ignore[arg-type]
    await watch.start(ended.put_nowait)
    try:
        async with asyncio.timeout(3):
            return (await ended.get()).exception()
    except TimeoutError:
        return None
    finally:
        await watch.stop()


async def test_broken_watch_goes_on_from_where_it_was() -> None:
    script = Script(KubeError(0, "reset"), "5")
    assert await followed(script) is None
    assert script.watched[:3] == ["5", "5", "5"]


async def test_watch_from_a_version_that_is_not_served_lists_anew() -> None:
    script = Script(Expired(504, "Timeout: Too large resource version"), "5", "5", "6", "7")
    assert await followed(script) is None
    assert script.watched[:3] == ["5", "5", "6"]


async def test_api_server_that_was_set_back_ends_the_watch() -> None:
    script = Script(Expired(0, "silent"), "5", "4")
    assert isinstance(await followed(script), SetBack)
