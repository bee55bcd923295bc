"""Requests as they leave, and answers in the operator's own terms."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from prometheus_client import REGISTRY

from finetune_operator import kube as kube_module
from finetune_operator.children import Manifest
from finetune_operator.kube import (
    Conflict,
    Exists,
    Expired,
    Forbidden,
    Gone,
    Kube,
    KubeError,
    Malformed,
    Refused,
    as_applied,
)
from finetune_operator.names import MANAGER
from tests.operator.fake_api import Answer, Broken, Chunks, FakeApi, Request, Stalled, line

PODS = "/api/v1/namespaces/nlp/pods"
POD = f"{PODS}/a"


def config(name: str = "a", **meta: object) -> Manifest:
    metadata = {"name": name, "namespace": "nlp", **meta}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "1"}}


def pod(name: str = "a", **meta: object) -> Manifest:
    return {"metadata": {"name": name, "namespace": "nlp", "labels": {"study": "a"}, **meta}}


async def watched(kube: Kube, version: str = "1") -> list[tuple[str, Manifest]]:
    return [event async for event in kube.watch("Pod", "nlp", "study", version)]


def only(requests: list[Request]) -> Request:
    (request,) = requests
    return request


# -- who may write

WRITES: dict[str, Callable[[Kube], Awaitable[object]]] = {
    "apply": lambda kube: kube.apply(config()),
    "update": lambda kube: kube.update(config(uid="uid"), config()),
    "create": lambda kube: kube.create(config()),
    "replace": lambda kube: kube.replace(config()),
    "delete": lambda kube: kube.delete("Pod", "nlp", "a", "uid"),
    "fail_pod": lambda kube: kube.fail_pod("nlp", "a", "uid", "NodeLost", "lost"),
}
READS: dict[str, Callable[[Kube], Awaitable[object]]] = {
    "read": lambda kube: kube.read("Pod", "nlp", "a"),
    "list_all": lambda kube: kube.list_all("Pod", "nlp", "study"),
    "pages": lambda kube: anext(kube.pages("Pod", "nlp", "study")),
    "watch": watched,
    "serves": lambda kube: kube.serves("Pod"),
    "review": lambda kube: kube.review("TokenReview", {"token": "t"}),
    "events_of": lambda kube: kube.events_of("nlp", "Job", "uid"),
}


def test_every_verb_is_known_to_write_or_to_read() -> None:
    verbs = {name for name, _ in inspect.getmembers(Kube, inspect.isfunction) if name[0] != "_"}
    assert verbs - {"close"} == WRITES.keys() | READS.keys()


@pytest.mark.parametrize("verb", WRITES)
async def test_nothing_is_written_by_who_may_not(verb: str, api: FakeApi) -> None:
    with pytest.raises(KubeError, match="is not the leader"):
        await WRITES[verb](api.kube(lambda: False))
    assert api.requests == []


async def test_whether_it_may_write_is_asked_before_each_write(api: FakeApi) -> None:
    may = iter([True, False, True])
    kube = api.kube(lambda: next(may))
    await kube.create(config())
    with pytest.raises(KubeError, match="is not the leader"):
        await kube.apply(config())
    await kube.apply(config())
    assert len(api.writes()) == 2


@pytest.mark.parametrize("verb", READS)
async def test_everybody_may_read(verb: str, api: FakeApi) -> None:
    api.on("GET", "/pods", *([Chunks(())] if verb == "watch" else []))
    api.on("POST", "/tokenreviews", Answer(201, text="{}"))
    api.on("GET", "/v1", Answer(200, text='{"resources": []}'))
    api.put(POD, pod())
    await READS[verb](api.kube(lambda: False))
    # A review is a POST that leaves nothing behind.
    assert only(api.requests).method == ("POST" if verb == "review" else "GET")


# -- what answers mean

TOO_NEW = "Timeout: Too large resource version: 9, current: 5"
UNKNOWN_FIELD = "failed to create typed patch object (nlp/a; v1, Kind=ConfigMap): .x: field not declared in schema"
HOOK = 'admission webhook "audit.example.dev" denied the request:'
MEANINGS = [
    (Answer(400, "malformed"), Refused),
    (Answer(401, "who are you"), KubeError),
    (Answer(403, "exceeded quota", "Forbidden"), Forbidden),
    (Answer(404, "not found", "NotFound"), Gone),
    (Answer(405, "method not allowed"), Refused),
    (Answer(408, "request timeout"), KubeError),
    (Answer(409, "exists", "AlreadyExists"), Exists),
    (Answer(409, "modified", "Conflict"), Conflict),
    (Answer(409, text="modified"), Conflict),
    (Answer(410, "too old resource version", "Expired"), Expired),
    (Answer(410, text="gone"), Expired),
    (Answer(413, "request entity too large"), Refused),
    (Answer(415, "unsupported media type"), Refused),
    (Answer(422, "spec.x: Invalid value", "Invalid"), Refused),
    (Answer(422, 'Job.batch "a-1" is invalid: spec.x: Invalid value', "Invalid"), Malformed),
    (
        Answer(400, 'Job in version "v1" cannot be handled as a Job: strict', "BadRequest"),
        Malformed,
    ),
    (Answer(422, 'jobs.batch "a" is forbidden: ValidatingAdmissionPolicy', "Invalid"), Refused),
    (Answer(422, f'{HOOK} Job.batch "a" is invalid: spec.x', "Invalid"), Refused),
    (Answer(400, f"{HOOK} it cannot be handled as a Job", "BadRequest"), Refused),
    (Answer(422, "field is immutable", "Invalid", wrong="metadata.uid"), Conflict),
    (Answer(422, "field is immutable", "Invalid", wrong="spec.selector"), Refused),
    (Answer(429, "too many requests", "TooManyRequests"), KubeError),
    (Answer(500, "etcdserver: leader changed"), KubeError),
    (Answer(500, UNKNOWN_FIELD), Malformed),
    (Answer(503, UNKNOWN_FIELD), KubeError),
    (Answer(503, "apiserver is shutting down"), KubeError),
    (Answer(504, TOO_NEW, "Timeout"), Expired),
    (Answer(504, "request did not complete within 34s", "Timeout"), KubeError),
    (Answer(500, TOO_NEW), KubeError),
    (Answer(502, text="<html>bad gateway</html>"), KubeError),
    (Answer(500, text='["no", "Status"]'), KubeError),
    (Answer(500, text="null"), KubeError),
    (Answer(500, text=""), KubeError),
]


def _name(value: object) -> str:
    if isinstance(value, Answer):
        return f"{value.status} {value.text or value.message}"[:40]
    return getattr(value, "__name__", "")


def _entry(manager: str, operation: str, *fields: str, **more: str) -> Manifest:
    paths: Manifest = {"f:metadata": {"f:labels": {f"f:{field}": {} for field in fields}}}
    return {"manager": manager, "operation": operation, "fieldsV1": paths, **more}


def test_what_was_created_counts_as_applied() -> None:
    created = _entry(MANAGER, "Update", "a", "b")
    applied = _entry(MANAGER, "Apply", "b", "c")
    others = [
        _entry("kubectl", "Apply", "a"),
        _entry("kubectl", "Update", "d"),
        _entry(MANAGER, "Update", "e", subresource="status"),
    ]
    assert as_applied([*others, created]) == [{**created, "operation": "Apply"}, *others]
    assert as_applied([applied, *others, created]) == [
        _entry(MANAGER, "Apply", "b", "c", "a"),
        *others,
    ]
    assert as_applied([applied, *others]) is None
    assert as_applied([]) is None


@pytest.mark.parametrize(("answer", "meaning"), MEANINGS, ids=_name)
async def test_each_answer_has_one_meaning(
    answer: Answer, meaning: type[KubeError], api: FakeApi
) -> None:
    api.on("PATCH", "/a", answer)
    with pytest.raises(KubeError) as caught:
        await api.kube().apply(config())
    assert type(caught.value) is meaning
    assert caught.value.status == answer.status
    assert (answer.message if answer.text is None else answer.text) in caught.value.message


async def test_same_meanings_hold_for_lists(api: FakeApi) -> None:
    api.on("GET", "/pods", Answer(410, "expired"), Answer(504, TOO_NEW), Answer(404), Answer(500))
    kube = api.kube()
    for meaning in (Expired, Expired, Gone, KubeError):
        with pytest.raises(KubeError) as caught:
            await kube.list_all("Pod", "nlp", "study")
        assert type(caught.value) is meaning


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-3", 0.0), (None, 0.0)],
)
async def test_api_server_that_asks_to_wait_is_heard(
    status: int, header: str | None, seconds: float, api: FakeApi
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    api.on("POST", "/configmaps", Answer(status, headers=headers))
    with pytest.raises(KubeError) as caught:
        await api.kube().create(config())
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_connection_that_breaks_is_tried_again_later(after: bool, api: FakeApi) -> None:
    api.on("POST", "/configmaps", Broken(after))
    with pytest.raises(KubeError) as caught:
        await api.kube().create(config())
    assert (type(caught.value), caught.value.status) == (KubeError, 0)


async def test_api_server_that_is_not_there_is_tried_again_later(api: FakeApi) -> None:
    kube = api.kube()
    await (await api.start()).cleanup()  # the address of one that has ended
    gone = api.kube()
    with pytest.raises(KubeError) as caught:
        await gone.read("Pod", "nlp", "a")
    assert (type(caught.value), caught.value.status) == (KubeError, 0)
    assert await kube.read("Pod", "nlp", "a") is None


async def test_answer_that_does_not_come_is_tried_again_later(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "_ANSWER_SECONDS", 0.05)
    api.on("GET", "/a", Stalled(1.0))
    with pytest.raises(KubeError, match="Timeout") as caught:
        await api.kube().read("Pod", "nlp", "a")
    assert (type(caught.value), caught.value.status) == (KubeError, 0)


async def test_requests_are_counted_by_verb_and_answer(api: FakeApi) -> None:
    api.on("POST", "/configmaps", Answer(403), Broken())

    def counted(verb: str, code: str) -> float:
        labels = {"verb": verb, "code": code}
        return REGISTRY.get_sample_value("finetune_api_requests_total", labels) or 0.0

    kube = api.kube()
    expected = [("create", "403"), ("create", "error"), ("create", "200"), ("get", "404")]
    before = [counted(*one) for one in expected]
    for request in (kube.create(config()), kube.create(config()), kube.create(config())):
        try:
            await request
        except KubeError:
            continue
    await kube.read("Pod", "nlp", "a")
    assert [counted(*one) for one in expected] == [count + 1 for count in before]


# -- what is asked


async def test_apply_takes_its_fields_from_whoever_has_them_and_no_unknown_ones(
    api: FakeApi,
) -> None:
    await api.kube().apply(config())
    request = only(api.requests)
    assert str(request) == "PATCH /api/v1/namespaces/nlp/configmaps/a"
    assert request.content_type == "application/apply-patch+yaml"
    strict = {"fieldManager": "finetune-operator", "force": "true", "fieldValidation": "Strict"}
    assert request.query == strict
    assert request.body == config()


async def test_status_is_applied_beside_the_object(api: FakeApi) -> None:
    study = {"kind": "FineTuneStudy", "metadata": {"name": "a", "namespace": "nlp"}, "status": {}}
    api.put("/apis/finetune.dev/v1alpha1/namespaces/nlp/finetunestudies/a", study)
    await api.kube().apply(study, "status")
    assert only(api.requests).path.endswith("/nlp/finetunestudies/a/status")


async def test_what_is_created_has_no_unknown_fields(api: FakeApi) -> None:
    made = await api.kube().create(config())
    request = only(api.requests)
    assert str(request) == "POST /api/v1/namespaces/nlp/configmaps"
    assert request.query == {"fieldManager": "finetune-operator", "fieldValidation": "Strict"}
    assert made["metadata"]["uid"]


async def test_object_is_replaced_only_in_the_version_that_was_meant(api: FakeApi) -> None:
    kube = api.kube()
    made = await kube.create(config())
    changed = await kube.replace({**made, "data": {"x": "2"}})
    assert changed["data"] == {"x": "2"}
    with pytest.raises(Conflict):
        await kube.replace({**made, "data": {"x": "3"}})


async def test_object_that_is_not_there_is_none(api: FakeApi) -> None:
    assert await api.kube().read("Pod", "nlp", "a") is None
    api.on("GET", "/a", Answer(403))
    with pytest.raises(Forbidden):
        await api.kube().read("Pod", "nlp", "a")


async def test_list_is_read_page_by_page_and_watched_from_the_version_of_the_last(
    api: FakeApi,
) -> None:
    for name in ("a", "b", "c"):
        api.put(f"{PODS}/{name}", pod(name))
    api.put("/api/v1/namespaces/other/pods/d", pod("d", namespace="other"))
    api.put(f"{PODS}/stranger", pod("stranger", labels={}))
    api.page = 2
    api.on("GET", "/pods", lambda: None, lambda: api.remove(f"{PODS}/stranger"))
    first = api.version
    items, version = await api.kube().list_all("Pod", "nlp", "study")
    assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
    assert version == str(first + 1)
    assert [request.query["labelSelector"] for request in api.requests] == ["study", "study"]
    assert api.requests[0].query["limit"] == "500"
    everywhere, _ = await api.kube().list_all("Pod", None, "study")
    assert {item["metadata"]["name"] for item in everywhere} == {"a", "b", "c", "d"}


async def test_list_that_is_too_old_for_its_next_page_is_expired(api: FakeApi) -> None:
    api.put(POD, pod())
    api.put(f"{PODS}/b", pod("b"))
    api.page = 1
    api.on("GET", "/pods", lambda: None, Answer(410, "the continue token is too old"))
    with pytest.raises(Expired):
        await api.kube().list_all("Pod", "nlp", "study")


@pytest.mark.parametrize(
    ("answer", "served"),
    [
        (Answer(200, text='{"resources": [{"name": "jobs"}, {"name": "rayjobs"}]}'), True),
        (Answer(200, text='{"resources": [{"name": "rayjobs/status"}]}'), False),
        (Answer(200, text="{}"), False),
        (Answer(404), False),
    ],
)
async def test_kind_is_served_if_its_group_says_so(
    answer: Answer, served: bool, api: FakeApi
) -> None:
    api.on("GET", "/apis/ray.io/v1", answer)
    assert await api.kube().serves("RayJob") is served


async def test_warnings_about_an_object_come_with_the_latest_last(api: FakeApi) -> None:
    times = {"b": "2026-01-02T00:00:00Z", "c": "2026-01-03T00:00:00Z", "a": "2026-01-01T00:00:00Z"}
    items: list[Manifest] = [{"message": m, "lastTimestamp": time} for m, time in times.items()]
    items.append({"message": "d", "lastTimestamp": None, "eventTime": "2026-01-04T00:00:00Z"})
    api.on("GET", "/events", Answer(200, text=json.dumps({"items": items})))
    found = await api.kube().events_of("nlp", "Job", "uid-1")
    assert [event["message"] for event in found] == ["a", "b", "c", "d"]
    selector = "involvedObject.kind=Job,involvedObject.uid=uid-1,type=Warning"
    assert only(api.requests).query["fieldSelector"] == selector


# -- deletion


@pytest.mark.parametrize("force", [False, True])
async def test_object_is_deleted_if_it_is_the_one_that_was_meant(force: bool, api: FakeApi) -> None:
    api.put(POD, pod(uid="mine"))
    await api.kube().delete("Pod", "nlp", "a", "mine", force)
    body = only(api.requests).body
    assert body["preconditions"] == {"uid": "mine"}
    assert body["propagationPolicy"] == "Background"
    assert body.get("gracePeriodSeconds") == (0 if force else None)
    assert api.get(POD) is None


async def test_successor_of_an_object_is_not_deleted(api: FakeApi) -> None:
    api.put(POD, pod(uid="another"))
    await api.kube().delete("Pod", "nlp", "a", "mine")
    assert api.get(POD) is not None


async def test_object_that_is_gone_need_not_be_deleted(api: FakeApi) -> None:
    await api.kube().delete("Pod", "nlp", "a", "mine")
    api.put(POD, pod(uid="mine"))
    conflict = Answer(409, "the object has been modified", "Conflict")
    api.on("DELETE", "/a", conflict)
    api.on("GET", "/a", lambda: api.remove(POD))
    await api.kube().delete("Pod", "nlp", "a", "mine")


async def test_deletion_that_was_refused_for_another_reason_is_told(api: FakeApi) -> None:
    api.put(POD, pod(uid="mine"))
    api.on("DELETE", "/a", Answer(409, "a webhook says so", "Conflict"), Answer(403), Answer(500))
    for meaning in (Conflict, Forbidden, KubeError):
        with pytest.raises(KubeError) as caught:
            await api.kube().delete("Pod", "nlp", "a", "mine")
        assert type(caught.value) is meaning


async def test_pod_is_failed_if_it_is_the_one_that_was_meant(api: FakeApi) -> None:
    api.put(POD, pod(uid="mine"))
    await api.kube().fail_pod("nlp", "a", "mine", "NodeLost", "its node is lost")
    request = only(api.requests)
    assert str(request) == f"PATCH {POD}/status"
    assert request.content_type == "application/strategic-merge-patch+json"
    found = api.get(POD)
    assert found is not None
    status = found["status"]
    (condition,) = status["conditions"]
    assert (status["phase"], status["reason"]) == ("Failed", "NodeLost")
    assert (condition["type"], condition["status"]) == ("DisruptionTarget", "True")


async def test_pod_that_is_gone_or_another_by_now_is_not_failed(api: FakeApi) -> None:
    kube = api.kube()
    await kube.fail_pod("nlp", "a", "mine", "NodeLost", "its node is lost")
    api.put(POD, pod(uid="another"))
    await kube.fail_pod("nlp", "a", "mine", "NodeLost", "its node is lost")
    found = api.get(POD)
    assert found is not None
    assert "status" not in found
    api.on("PATCH", "/status", Answer(403))
    with pytest.raises(Forbidden):
        await kube.fail_pod("nlp", "a", "another", "NodeLost", "its node is lost")


# -- watches


async def test_watch_asks_for_what_follows_the_version(api: FakeApi) -> None:
    api.on("GET", "/pods", Chunks((line("ADDED", {"n": 1}), line("BOOKMARK", {"n": 2}))))
    assert await watched(api.kube(), "17") == [("ADDED", {"n": 1}), ("BOOKMARK", {"n": 2})]
    query = only(api.requests).query
    assert (query["resourceVersion"], query["labelSelector"]) == ("17", "study")
    assert (query["watch"], query["allowWatchBookmarks"]) == ("true", "true")
    assert 300 <= int(query["timeoutSeconds"]) <= 600


async def test_events_may_come_in_any_pieces_and_of_any_length(api: FakeApi) -> None:
    large = {"text": "x" * 3_000_000}
    sent = line("ADDED", {"n": 1}) + line("ADDED", large) + line("ADDED", {"n": 3})
    cuts = [0, 1, 30, 31, 1_000_000, len(sent) - 40, len(sent) - 1, len(sent)]
    pieces = [sent[begin:end] for begin, end in pairwise(cuts)]
    api.on("GET", "/pods", Chunks(tuple(pieces)))
    assert [body for _, body in await watched(api.kube())] == [{"n": 1}, large, {"n": 3}]


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (Answer(410, "too old resource version", "Expired"), Expired),
        (Answer(504, TOO_NEW, "Timeout"), Expired),
        (Answer(504, "timeout"), KubeError),
        (Answer(403, "no right to watch"), Forbidden),
        (Answer(404, "no such kind"), Gone),
        (Answer(429, "later"), KubeError),
        (Answer(500, "no"), KubeError),
    ],
    ids=_name,
)
@pytest.mark.parametrize("as_event", [False, True], ids=["answer", "event"])
async def test_watch_that_cannot_go_on_says_why(
    answer: Answer, meaning: type[KubeError], as_event: bool, api: FakeApi
) -> None:
    event = line("ERROR", json.loads(answer.body()))
    api.on("GET", "/pods", Chunks((line("ADDED", {}), event)) if as_event else answer)
    with pytest.raises(KubeError) as caught:
        await watched(api.kube())
    assert type(caught.value) is meaning
    assert caught.value.status == answer.status


async def test_watch_that_breaks_off_is_not_expired(api: FakeApi) -> None:
    api.on("GET", "/pods", Chunks((line("ADDED", {}),), broken=True), Chunks((b"no json\n",)))
    for _ in range(2):
        with pytest.raises(KubeError) as caught:
            await watched(api.kube())
        assert (type(caught.value), caught.value.status) == (KubeError, 0)


async def test_watch_that_is_silent_is_expired(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "_SILENT_SECONDS", 0.05)
    async with asyncio.timeout(3):
        with pytest.raises(Expired):
            await watched(api.kube())
