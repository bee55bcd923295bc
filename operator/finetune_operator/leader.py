"""Which of several operators acts: the one that holds a Lease.

The elector of the `kubernetes` package measures leases by the wall clock, which may jump, stops at the first
broken connection, and cannot hand a lease back. The rules are those of Kubernetes' own elector
(client-go/tools/leaderelection): nobody trusts another's clock; a lease has expired when it has not changed for
its duration, by one's own monotonic clock.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_operator.kube import Conflict, Exists, Kube, KubeError
from finetune_operator.metrics import LEADER

log = logging.getLogger("finetune.leader")

LEASE_SECONDS = 12
"""Another may take a lease that has not changed for this long."""

HELD_SECONDS = 8
"""The holder relies on its lease for this long after its request; the rest is for requests on their way."""

RENEW_SECONDS = 4
RETRY_SECONDS = 2


class Election:
    """One candidate for a Lease.

    Args:
        kube: requests that are allowed even to an operator that does not lead.
        lease: namespace and name of the Lease.
        identity: of this candidate; a process that restarts under the same identity continues its lease.
        clock: monotonic seconds.
        sleep: waits for seconds of that clock.
    """

    def __init__(
        self,
        kube: Kube,
        lease: tuple[str, str],
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kube = kube
        self._namespace, self._name = lease
        self._identity = identity
        self._clock = clock
        self._sleep = sleep
        self._lease: Mapping[str, Any] | None = None
        self._version = ""
        self._changed = 0.0
        self._until = float("-inf")

    @property
    def held(self) -> bool:
        """Whether nobody else can hold the lease now."""
        return self._clock() < self._until

    async def run(
        self, elected: Callable[[], None], deposed: Callable[[], Awaitable[None]]
    ) -> None:
        """Stand for election for ever; call `elected` whenever the lease is won, and `deposed` whenever it is lost."""
        leading = False
        while True:
            won = await self._asked()
            if leading and not self.held:
                log.warning("lost the lease; another operator may act now")
                leading = False
                LEADER.set(0)
                await deposed()
            elif self.held and not leading:
                log.info("holds the lease and acts")
                leading = True
                LEADER.set(1)
                elected()
            await self._sleep(RENEW_SECONDS if won else RETRY_SECONDS)

    async def release(self) -> None:
        """Hand the lease back, if it is ours, so that the next holder need not wait for it to expire."""
        if not self.held or self._lease is None:
            return
        self._until = float("-inf")
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._kube.replace(self._manifest(self._lease, holder=""))
        except (KubeError, TimeoutError) as error:
            log.warning("lease not handed back; it will expire: %s", error)

    async def _asked(self) -> bool:
        """Whether the lease was won or renewed just now."""
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                return await self._ask()
        except (KubeError, TimeoutError) as error:
            # Whether another has asked for it, or we have it, shows when it is read again.
            self._lease = None
            if not isinstance(error, Conflict | Exists):
                log.warning("lease not renewed; trying again: %s", error)
            return False

    async def _ask(self) -> bool:
        begun = self._clock()
        lease = self._lease or await self._kube.read("Lease", self._namespace, self._name)
        if lease is None:
            self._lease = await self._kube.create(self._manifest(None, self._identity))
        elif self._taken(lease, begun):
            self._until = float("-inf")
            return False
        else:
            self._lease = await self._kube.replace(self._manifest(lease, self._identity))
        self._until = begun + HELD_SECONDS
        return True

    def _taken(self, lease: Mapping[str, Any], now: float) -> bool:
        """Whether another holds the lease, as far as can be known."""
        spec, version = lease.get("spec") or {}, lease["metadata"]["resourceVersion"]
        if version != self._version:
            self._version, self._changed = version, now
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return False
        return now - self._changed < float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _manifest(self, lease: Mapping[str, Any] | None, holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        old: Mapping[str, Any] = {}
        if lease is not None:
            old = lease.get("spec") or {}
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
            "acquireTime": old.get("acquireTime", now),
            "leaseTransitions": int(old.get("leaseTransitions") or 0),
        }
        if old and old.get("holderIdentity") != holder:
            spec |= {"acquireTime": now, "leaseTransitions": spec["leaseTransitions"] + 1}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }
