"""Which operator acts: never two at a time, soon another if one is gone. Seconds are those of the tests' clock."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY

from finetune_operator import leader
from finetune_operator.children import Manifest
from finetune_operator.leader import LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, Election
from finetune_operator.metrics import LEADER
from tests.operator.fake_api import Answer, Broken, FakeApi, Fault, Stalled

LEASE = "/apis/coordination.k8s.io/v1/namespaces/nlp/leases/finetune"

UNHEARD: list[Fault] = [Broken(), Broken()]
"""A request that does not arrive: aiohttp itself sends a PUT once more if its connection was an old one."""


class Clock:
    """Seconds that pass when the test says so, and then only as far as nobody has something to do in between."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: dict[asyncio.Event, float] = {}
        self._lay_down = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait until so many of these seconds have passed."""
        wakes = asyncio.Event()
        self._sleepers[wakes] = self.now + seconds
        self._lay_down.set()
        try:
            await wakes.wait()
        finally:
            self._sleepers.pop(wakes, None)

    async def until(self, time: float, candidates: int) -> None:
        """Let the time come while so many candidates stand for election."""
        await self.settled(candidates)
        while self._sleepers:
            wakes, due = min(self._sleepers.items(), key=lambda item: item[1])
            if due > time:
                break
            self.now = due
            del self._sleepers[wakes]
            wakes.set()
            await self.settled(candidates)
        self.now = time

    async def settled(self, candidates: int) -> None:
        """Let all candidates come to rest."""
        async with asyncio.timeout(5):
            while len(self._sleepers) < candidates:
                self._lay_down.clear()
                await self._lay_down.wait()


class Candidate:
    """One operator that stands for election; what it heard is in `told`."""

    def __init__(self, api: FakeApi, clock: Clock, name: str) -> None:
        self.name = name
        self.cut_off = False
        """Whether what it writes does not arrive any more."""

        kube = api.kube(lambda: not self.cut_off)
        self.election = Election(kube, ("nlp", "finetune"), name, clock, clock.sleep)
        self.told: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def stand(self) -> None:
        self._task = asyncio.create_task(self.election.run(self._elected, self._deposed))

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _elected(self) -> None:
        assert self.election.held
        self.told.append("elected")

    async def _deposed(self) -> None:
        assert not self.election.held
        self.told.append("deposed")


class Poll:
    """An election in a cluster of its own."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.clock = Clock()
        self.candidates: list[Candidate] = []
        self.begun = self.clock.now

    def add(self, name: str) -> Candidate:
        """Another candidate."""
        self.candidates.append(Candidate(self.api, self.clock, name))
        self.candidates[-1].stand()
        return self.candidates[-1]

    async def pass_by(self, seconds: float, step: float = 0.5) -> list[str]:
        """Let so many seconds pass; who held the lease at each step. Two at a time are an error."""
        end = self.clock.now + seconds
        holders = []
        while self.clock.now < end:
            await self.clock.until(min(end, self.clock.now + step), len(self.candidates))
            held = [each.name for each in self.candidates if each.election.held]
            assert len(held) <= 1, f"{held} hold the lease after {self.clock.now - self.begun} s"
            holders.append(held[0] if held else "")
        return holders

    @property
    def lease(self) -> Manifest:
        """The Lease as it is stored."""
        found = self.api.get(LEASE)
        assert found is not None
        return found

    def put(self, holder: str, **spec: object) -> None:
        """Write the Lease as somebody else would."""
        known: Manifest = {"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS}
        meta = {"name": "finetune", "namespace": "nlp"}
        self.api.put(LEASE, {"metadata": meta, "spec": known | spec})


@pytest.fixture
async def poll(api: FakeApi) -> AsyncIterator[Poll]:
    election = Poll(api)
    yield election
    for candidate in election.candidates:
        await candidate.end()
    LEADER.set(0)


def cut_off(api: FakeApi, method: str = "PUT") -> None:
    """From now on requests of that method are not answered as they should be."""
    api.on(method, "/leases/finetune", *[Answer(503, "etcd is away")] * 100)


# -- one candidate


async def test_first_candidate_makes_the_lease_and_holds_it_for_as_long_as_it_renews_it(
    poll: Poll,
) -> None:
    one = poll.add("one")
    assert set(await poll.pass_by(60)) == {"one"}
    assert one.told == ["elected"]
    spec = poll.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("one", LEASE_SECONDS)
    renewals = poll.api.asked("PUT", "/finetune")
    assert len(renewals) == pytest.approx(60 / RENEW_SECONDS, abs=1)
    assert [request.body["spec"]["leaseTransitions"] for request in renewals] == [0] * len(renewals)
    acquired = {request.body["spec"]["acquireTime"] for request in renewals}
    assert len(acquired) == 1
    assert REGISTRY.get_sample_value("finetune_leader") == 1


async def test_lease_is_believed_held_for_less_than_it_lasts(poll: Poll) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    cut_off(poll.api)
    held = await poll.pass_by(LEASE_SECONDS + 5, 0.25)
    seconds = 1 + held.count("one") * 0.25  # since it was asked for
    # The rest is for a request that left just before: it may take that long to arrive.
    assert RENEW_SECONDS + RETRY_SECONDS <= seconds <= LEASE_SECONDS - 3
    assert held == sorted(held, reverse=True)  # not once more in between
    assert one.told == ["elected", "deposed"]
    assert REGISTRY.get_sample_value("finetune_leader") == 0


async def test_lease_counts_from_when_it_was_asked_for(poll: Poll) -> None:
    def slow() -> None:
        poll.clock.now += 7

    poll.api.on("POST", "/leases", slow)
    one = poll.add("one")
    await poll.clock.settled(1)
    assert one.election.held
    poll.clock.now += 2
    assert not one.election.held


async def test_one_that_lost_its_lease_gets_it_again_when_the_api_server_is_back(
    poll: Poll,
) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    poll.api.on("PUT", "/finetune", *[Answer(503)] * 7)
    await poll.pass_by(30)
    assert one.told == ["elected", "deposed", "elected"]
    assert poll.lease["spec"]["leaseTransitions"] == 0  # nobody else had it


async def test_renewal_that_fails_once_is_tried_again_in_time(
    poll: Poll, caplog: pytest.LogCaptureFixture
) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    poll.api.on("PUT", "/finetune", Answer(500, "no"), lambda: None, *UNHEARD, lambda: None)
    poll.api.on("PUT", "/finetune", Broken(after=True))
    with caplog.at_level(logging.WARNING):
        assert set(await poll.pass_by(30)) == {"one"}
    assert one.told == ["elected"]
    assert "lease not renewed" in caplog.text


async def test_answer_that_does_not_come_is_not_waited_for(
    poll: Poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "RETRY_SECONDS", 0.1)
    poll.api.on("POST", "/leases", Stalled(2.0))
    poll.add("one")
    async with asyncio.timeout(240):
        await poll.clock.settled(1)


async def test_lease_whose_answer_was_lost_is_found_at_the_next_try(poll: Poll) -> None:
    poll.api.on("POST", "/leases", Broken(after=True))
    one = poll.add("one")
    held = await poll.pass_by(RETRY_SECONDS + 1)
    assert (held[0], held[-1]) == ("", "one")
    assert one.told == ["elected"]


async def test_candidate_that_begins_again_under_its_name_goes_on_with_its_lease(
    poll: Poll,
) -> None:
    poll.put("one", leaseTransitions=3)
    poll.add("one")
    assert (await poll.pass_by(0.5))[-1] == "one"
    assert poll.lease["spec"]["leaseTransitions"] == 3


# -- several candidates


async def test_of_two_that_begin_together_one_acts(poll: Poll) -> None:
    one, two = poll.add("one"), poll.add("two")
    holders = set(await poll.pass_by(60))
    assert len(holders) == 1
    assert sorted([one.told, two.told]) == [[], ["elected"]]


async def test_one_that_is_cut_off_is_followed_by_the_other_and_never_do_both_act(
    poll: Poll,
) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    two = poll.add("two")
    await poll.pass_by(9)
    one.cut_off = True
    holders = await poll.pass_by(2 * LEASE_SECONDS, 0.25)
    assert holders[-1] == "two"
    assert (one.told, two.told) == (["elected", "deposed"], ["elected"])
    assert poll.lease["spec"]["leaseTransitions"] == 1
    one.cut_off = False
    assert set(await poll.pass_by(2 * LEASE_SECONDS)) == {"two"}


async def test_lease_that_was_taken_is_lost_as_soon_as_that_is_seen(poll: Poll) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    poll.put("two")
    await poll.pass_by(RENEW_SECONDS + RETRY_SECONDS)
    assert one.told == ["elected", "deposed"]


@pytest.mark.parametrize("seconds", [5, LEASE_SECONDS, 40])
async def test_lease_of_another_is_left_alone_for_as_long_as_it_says(
    seconds: int, poll: Poll
) -> None:
    poll.put("other", leaseDurationSeconds=seconds)
    poll.add("one")
    assert set(await poll.pass_by(seconds - 0.5)) == {""}
    assert poll.api.writes() == []
    assert (await poll.pass_by(RETRY_SECONDS + 1))[-1] == "one"
    assert poll.lease["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("renewed", ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"])
async def test_clocks_of_others_are_not_believed(renewed: str, poll: Poll) -> None:
    poll.put("other", renewTime=renewed, acquireTime=renewed)
    poll.add("one")
    assert set(await poll.pass_by(LEASE_SECONDS - 0.5)) == {""}
    assert (await poll.pass_by(RETRY_SECONDS + 1))[-1] == "one"
    begun = datetime.fromisoformat(poll.lease["spec"]["acquireTime"])
    assert abs((datetime.now(UTC) - begun).total_seconds()) < 60


async def test_lease_that_goes_on_changing_is_left_alone(poll: Poll) -> None:
    poll.put("other")
    poll.add("one")
    for number in range(20):
        assert set(await poll.pass_by(LEASE_SECONDS - RETRY_SECONDS - 1)) == {""}
        poll.put("other", renewTime=str(number))
    assert poll.api.writes() == []


async def test_lease_without_a_duration_lasts_as_ours(poll: Poll) -> None:
    poll.put("other", leaseDurationSeconds=None)
    poll.add("one")
    assert set(await poll.pass_by(LEASE_SECONDS - 0.5)) == {""}
    assert (await poll.pass_by(RETRY_SECONDS + 1))[-1] == "one"


async def test_of_two_that_take_over_together_one_is_too_late(poll: Poll) -> None:
    poll.put("other")
    poll.add("one")
    await poll.clock.settled(1)
    poll.api.on("PUT", "/finetune", lambda: poll.put("two"))
    assert set(await poll.pass_by(2 * LEASE_SECONDS - 1)) == {""}
    assert poll.lease["spec"]["holderIdentity"] == "two"


# -- handing back


async def test_lease_that_is_handed_back_is_taken_at_the_next_try(poll: Poll) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    two = poll.add("two")
    await poll.pass_by(5)
    await one.end()
    await one.election.release()
    assert not one.election.held
    assert poll.lease["spec"]["holderIdentity"] == ""
    poll.candidates.remove(one)
    assert (await poll.pass_by(RETRY_SECONDS))[-1] == "two"
    assert two.told == ["elected"]


async def test_nothing_is_written_any_more_while_the_lease_is_handed_back(poll: Poll) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    await one.end()
    held: list[bool] = []
    poll.api.on("PUT", "/finetune", lambda: held.append(one.election.held))
    await one.election.release()
    assert held == [False]


async def test_lease_that_has_run_out_is_not_handed_back(poll: Poll) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    await one.end()
    poll.clock.now += LEASE_SECONDS
    await one.election.release()
    assert poll.api.writes() == [f"POST {LEASE.removesuffix('/finetune')}"]


async def test_lease_that_is_not_held_is_not_handed_back(poll: Poll) -> None:
    poll.put("other")
    one = poll.add("one")
    await poll.pass_by(1)
    await one.election.release()
    assert poll.api.writes() == []
    poll.put("one")
    await poll.pass_by(3)
    cut_off(poll.api)
    await poll.pass_by(LEASE_SECONDS)
    before = len(poll.api.writes())
    await one.election.release()
    assert len(poll.api.writes()) == before


@pytest.mark.parametrize("faults", [[Answer(409, "modified", "Conflict")], [Answer(500)], UNHEARD])
async def test_lease_that_cannot_be_handed_back_ends_by_itself(
    faults: list[Fault], poll: Poll, caplog: pytest.LogCaptureFixture
) -> None:
    one = poll.add("one")
    await poll.pass_by(1)
    await one.end()
    poll.api.on("PUT", "/finetune", *faults)
    await one.election.release()
    assert not one.election.held
    assert "it will expire" in caplog.text
    assert poll.lease["spec"]["holderIdentity"] == "one"
