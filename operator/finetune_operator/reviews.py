"""Whether somebody may read the metrics: the API server says who has a token, and what they may do.

As kube-rbac-proxy asks it: a TokenReview, then a SubjectAccessReview about `get` of a path that is no resource.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from hashlib import sha256
from typing import Any

from finetune_operator.kube import Kube, KubeError

log = logging.getLogger("finetune.reviews")

_KNOWN_SECONDS = 60.0
"""How long nobody asks again about a token that was allowed."""

_UNASKED_SECONDS = 900.0
"""How long a token that was allowed counts as such where the API server does not answer: that it does not is what the
metrics then have to say."""

_REMEMBERED = 64
"""Tokens that are remembered, each as its hash."""


class Verdict(IntEnum):
    """The HTTP status that a request deserves."""

    ALLOWED = 200
    UNKNOWN = 401
    FORBIDDEN = 403
    UNDECIDED = 503


class Reviews:
    """Decides about tokens.

    Args:
        kube: requests to the API server.
        path: what is to be read.
        clock: monotonic seconds.
    """

    def __init__(self, kube: Kube, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._path = path
        self._clock = clock
        self._allowed: OrderedDict[bytes, float] = OrderedDict()
        """When each was allowed, by the hash of the token. What is refused is asked again each time."""

    async def verdict(self, token: str) -> Verdict:
        """What the API server says about whoever has this token; an empty one is nobody's."""
        if not token:
            return Verdict.UNKNOWN
        known = sha256(token.encode()).digest()
        age = self._clock() - self._allowed.get(known, float("-inf"))
        if age < _KNOWN_SECONDS:
            return Verdict.ALLOWED
        try:
            found = await self._ask(token)
        except KubeError as error:
            log.warning("the API server does not say who may read the metrics: %s", error)
            away = error.status in (0, 429) or error.status >= 500
            return Verdict.ALLOWED if away and age < _UNASKED_SECONDS else Verdict.UNDECIDED
        self._allowed.pop(known, None)
        if found is Verdict.ALLOWED:
            self._allowed[known] = self._clock()
            if len(self._allowed) > _REMEMBERED:
                self._allowed.popitem(last=False)
        return found

    async def _ask(self, token: str) -> Verdict:
        who = await self._kube.review("TokenReview", {"token": token})
        if who.get("authenticated") is not True:
            return Verdict.UNKNOWN
        user: dict[str, Any] = dict(who.get("user") or {})
        name = user.pop("username", "")
        about = {"path": self._path, "verb": "get"}
        asked = {**user, "user": name, "nonResourceAttributes": about}
        answer = await self._kube.review("SubjectAccessReview", asked)
        if answer.get("allowed") is not True:
            log.info("%s may not read the metrics", name)
            return Verdict.FORBIDDEN
        return Verdict.ALLOWED
