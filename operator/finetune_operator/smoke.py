"""`python -m finetune_operator.smoke`: runs one study to its end and deletes it, for `helm test`."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from kubernetes.aio import client, config

from finetune_api.status import StudyStatus
from finetune_api.study import KIND
from finetune_operator.kube import Kube, KubeError

POLL_SECONDS = 2


class SmokeError(Exception):
    """The study has not completed; the message says why."""


async def run(kube: Kube, manifest: Mapping[str, Any]) -> None:
    """Create the study, follow it to its end and delete it, however that ends.

    Raises SmokeError if it fails or is deleted, KubeError if it is refused.
    """
    meta = (await kube.create(manifest))["metadata"]
    try:
        await _follow(kube, meta["namespace"], meta["name"])
    finally:
        await kube.delete(KIND, meta["namespace"], meta["name"], meta["uid"])


async def _follow(kube: Kube, namespace: str, name: str) -> None:
    said = ""
    while True:
        try:
            study = await kube.read(KIND, namespace, name)
        except KubeError as error:
            _say(f"retrying: {error}")
        else:
            if study is None:
                raise SmokeError("the study was deleted")
            status = StudyStatus.model_validate(study.get("status") or {}, by_alias=True)
            line = f"{status.state}: {status.message}"
            if line != said:
                _say(line)
            said = line
            if status.is_true("Complete"):
                return
            if status.finished:
                raise SmokeError(f"the study failed: {status.message}")
        await asyncio.sleep(POLL_SECONDS)


def _say(line: str) -> None:
    print(line, flush=True)


async def _main(env: Mapping[str, str]) -> int:
    manifest = json.loads(env["FINETUNE_TEST_STUDY"])
    seconds = float(env["FINETUNE_TEST_TIMEOUT_SECONDS"])
    task = asyncio.current_task()
    assert task is not None  # a coroutine runs in one
    # The pod is being deleted: delete the study too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    kube = Kube(client.ApiClient(client.Configuration.get_default_copy()))
    try:
        async with asyncio.timeout(seconds):
            await run(kube, manifest)
    except TimeoutError:
        _say(f"failed: the study has not ended after {seconds:.0f} s")
        return 1
    except (SmokeError, KubeError) as error:
        _say(f"failed: {error}")
        return 1
    finally:
        await kube.close()
    _say("passed")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(os.environ)))
