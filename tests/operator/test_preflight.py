"""Whether the pods of every study are right is asked before an operator acts, and answered by the API server."""

import pytest

from finetune_operator import preflight
from finetune_operator.preflight import wrong_template
from finetune_operator.settings import Settings
from tests.operator.fake_api import Answer, Broken, FakeApi
from tests.operator.studies import SETTINGS

WRONG = 'Job in version "v1" cannot be handled as a Job: strict decoding error: unknown field "x"'


@pytest.mark.parametrize("engine", ["Job", "RayJob", "Auto"])
async def test_it_asks_for_an_attempt_and_keeps_nothing(api: FakeApi, engine: str) -> None:
    template = {"spec": {"nodeSelector": {"gpu": "yes"}}}
    settings = SETTINGS.model_copy(update={"engine": engine, "pod_template": template})
    assert await wrong_template(api.kube(), settings) == ""
    (asked,) = api.requests
    assert asked.query["dryRun"] == "All"
    assert asked.body["kind"] == ("RayJob" if engine == "RayJob" else "Job")
    assert "gpu" in str(asked.body)
    assert not api.all(asked.path)


async def test_what_has_not_the_right_form_is_told(api: FakeApi) -> None:
    api.on("POST", "/jobs", Answer(400, WRONG, "BadRequest"))
    assert await wrong_template(api.kube(), SETTINGS) == WRONG


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_what_the_api_server_cannot_say_is_no_mistake(api: FakeApi, status: int) -> None:
    api.on("POST", "/jobs", Answer(status, "admission webhook denied the request: no"))
    assert await wrong_template(api.kube(), SETTINGS) == ""


async def test_it_asks_until_there_is_an_answer(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_PAUSE_SECONDS", 0.01)
    answers = (Answer(503), Answer(429), Broken(), Answer(422, 'Job.batch "x" is invalid: y'))
    api.on("POST", "/jobs", *answers)
    assert await wrong_template(api.kube(), SETTINGS) == 'Job.batch "x" is invalid: y'


@pytest.mark.parametrize(
    ("settings", "namespace"),
    [
        ({}, "default"),
        ({"lease": "finetune-system/finetune"}, "finetune-system"),
        ({"namespaces": ("nlp", "vision"), "lease": "finetune-system/finetune"}, "nlp"),
    ],
)
async def test_it_asks_where_the_operator_may_create(
    api: FakeApi, settings: dict[str, object], namespace: str
) -> None:
    await wrong_template(api.kube(), Settings.model_validate({**settings}))
    assert api.requests[0].path == f"/apis/batch/v1/namespaces/{namespace}/jobs"
