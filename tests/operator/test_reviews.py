"""Who may read the metrics: what the API server is asked, and how long its answer is believed."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from finetune_operator import reviews as reviews_module
from finetune_operator.reviews import Reviews, Verdict
from tests.operator.fake_api import Answer, Broken, FakeApi

USER = {
    "username": "system:serviceaccount:monitoring:prometheus",
    "uid": "7",
    "groups": ["system:serviceaccounts"],
    "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1"]},
}
TOKENS, ACCESSES = "/tokenreviews", "/subjectaccessreviews"


def says(status: Mapping[str, Any]) -> Answer:
    return Answer(201, text=json.dumps({"status": status}))


KNOWN, UNKNOWN = says({"authenticated": True, "user": USER}), says({"error": "expired"})
YES, NO = says({"allowed": True}), says({"allowed": False, "reason": "no right"})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reviews(api: FakeApi, clock: Clock) -> Reviews:
    return Reviews(api.kube(), "/metrics", clock)


async def test_the_api_server_is_asked_who_it_is_and_what_they_may(
    api: FakeApi, reviews: Reviews
) -> None:
    api.on("POST", TOKENS, KNOWN)
    api.on("POST", ACCESSES, YES)
    assert await reviews.verdict("abc") is Verdict.ALLOWED
    who, what = api.requests
    assert who.path == "/apis/authentication.k8s.io/v1/tokenreviews"
    assert who.body["spec"] == {"token": "abc"}
    assert what.path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    assert what.body["spec"] == {
        "user": USER["username"],
        "uid": "7",
        "groups": USER["groups"],
        "extra": USER["extra"],
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


async def test_nobody_is_asked_about_no_token(api: FakeApi, reviews: Reviews) -> None:
    assert await reviews.verdict("") is Verdict.UNKNOWN
    assert api.requests == []


async def test_what_is_refused_is_asked_again(api: FakeApi, reviews: Reviews) -> None:
    api.on("POST", TOKENS, UNKNOWN, KNOWN, KNOWN)
    api.on("POST", ACCESSES, NO, YES)
    said = [await reviews.verdict("abc") for _ in range(3)]
    assert said == [Verdict.UNKNOWN, Verdict.FORBIDDEN, Verdict.ALLOWED]


async def test_who_was_allowed_is_asked_about_once_a_minute(
    api: FakeApi, reviews: Reviews, clock: Clock
) -> None:
    api.on("POST", TOKENS, KNOWN, KNOWN, UNKNOWN)
    api.on("POST", ACCESSES, YES, YES)
    for _ in range(3):
        assert await reviews.verdict("abc") is Verdict.ALLOWED
    assert len(api.asked("POST", TOKENS)) == 1
    assert await reviews.verdict("other") is Verdict.ALLOWED
    clock.now += 60
    assert await reviews.verdict("abc") is Verdict.UNKNOWN, "it has been revoked"
    api.on("POST", TOKENS, Broken())
    assert await reviews.verdict("abc") is Verdict.UNDECIDED, "it stays so"


async def test_metrics_are_readable_while_the_api_server_is_away(
    api: FakeApi, reviews: Reviews, clock: Clock
) -> None:
    api.on("POST", TOKENS, KNOWN, Broken(), Answer(503), Answer(503), Broken())
    api.on("POST", ACCESSES, YES)
    assert await reviews.verdict("abc") is Verdict.ALLOWED
    clock.now += 100
    assert await reviews.verdict("abc") is Verdict.ALLOWED
    assert await reviews.verdict("other") is Verdict.UNDECIDED
    clock.now += 700
    assert await reviews.verdict("abc") is Verdict.ALLOWED
    clock.now += 100
    assert await reviews.verdict("abc") is Verdict.UNDECIDED


async def test_an_operator_without_the_right_to_ask_lets_nobody_read(
    api: FakeApi, reviews: Reviews, clock: Clock
) -> None:
    api.on("POST", TOKENS, KNOWN, Answer(403, "cannot create tokenreviews", "Forbidden"))
    api.on("POST", ACCESSES, YES)
    assert await reviews.verdict("abc") is Verdict.ALLOWED
    clock.now += 60
    assert await reviews.verdict("abc") is Verdict.UNDECIDED


async def test_tokens_are_not_kept_and_not_without_end(
    api: FakeApi, reviews: Reviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews_module, "_REMEMBERED", 2)
    api.on("POST", TOKENS, *[KNOWN] * 4)
    api.on("POST", ACCESSES, *[YES] * 4)
    for token in ("first", "second", "third", "third", "first"):
        assert await reviews.verdict(token) is Verdict.ALLOWED
    assert len(api.asked("POST", TOKENS)) == 4, "the first had been forgotten"
    assert "third" not in repr(vars(reviews))
