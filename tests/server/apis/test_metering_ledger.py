"""The ledger: what comes back of a reservation, what a change of tier does, who waits for whom; on every back end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from homeport.server.apis.metering import api
from homeport.server.apis.metering.account import InsufficientTokens
from homeport.server.apis.metering.audit import audit
from homeport.server.apis.metering.documents import (
    PROFILES,
    RESERVATIONS,
    TRANSACTIONS,
    Profile,
    Tier,
    entries_of,
    entry_id,
)
from homeport.server.apis.metering.ledger import AlreadyDone, Ledger
from homeport.server.apis.metering.spending import MAX_TOGETHER, MAX_WAITING
from homeport.server.clock import MovableClock
from homeport.server.config import load_config
from homeport.server.errors import NotFound, ServiceUnavailable
from homeport.storage import ABSENT, Commit, Conflict, Delete, Put, Storage, StorageFull, Write, make_storage
from homeport.storage.times import HOUR, parse_time

from .conftest import on_memory

STARTS = {f"apis.metering.tiers.{tier}": tokens for tier, tokens in (("free", 100), ("pro", 150), ("enterprise", 400))}
CONFIG = load_config(environ={}, overrides={"storage.url": "memory:", **STARTS}).apis.metering
NOW = parse_time("2025-11-20T12:00:00Z")


class Book:
    """A ledger with one profile."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.clock = MovableClock(NOW)
        self.ledger = Ledger(storage, self.clock, CONFIG)

    async def profile(self) -> Profile:
        return await self.ledger.profile("u")

    async def parts(self) -> tuple[int, int]:
        """What is left of the tier's tokens, and of the bought ones."""
        profile = await self.profile()
        return profile.monthly, profile.bought

    async def consume(self, tokens: int, description: str = "") -> int:
        entry = await self.ledger.consume("u", tokens, description, lambda _: ())
        return entry.tokens_balance_after

    async def problems(self) -> list[str | None]:
        return [problem async for _, problem in audit(self.storage)]


@pytest.fixture
async def book(storage: Storage) -> Book:
    await storage.declare(*api.collections)
    book = Book(storage)
    await storage.commit(book.ledger.opened("u", "alice@example.com", "free"))
    return book


# Both kinds of tokens


async def test_the_tiers_tokens_are_spent_first(book: Book) -> None:
    await book.ledger.purchase("u", 50, "Purchase")
    assert await book.parts() == (100, 50)
    await book.consume(70)
    assert await book.parts() == (30, 50)
    await book.consume(40)
    assert await book.parts() == (0, 40)


async def test_a_reservation_that_is_given_back_never_was(book: Book) -> None:
    """What was spent meanwhile was spent of the tier's tokens, not of the bought ones."""
    await book.ledger.purchase("u", 50, "Purchase")
    reservation = await book.ledger.reserve("u", 90, "Transcription")
    await book.consume(30)
    assert await book.parts() == (0, 30)
    await book.ledger.release(reservation)
    assert await book.parts() == (70, 50)
    assert (await book.profile()).tokens_used_this_month == 30


async def test_a_refresh_replaces_what_was_reserved_of_the_months_tokens(book: Book) -> None:
    await book.ledger.subscribe("u", "pro")
    await book.ledger.purchase("u", 50, "Purchase")
    reservation = await book.ledger.reserve("u", 170, "Transcription")
    assert await book.parts() == (0, 30)
    await book.ledger.refresh("u", "2025-12")
    assert await book.parts() == (150, 30)
    await book.ledger.release(reservation)
    assert await book.parts() == (150, 50)
    assert (await book.profile()).tokens_used_this_month == 0
    last = (await book.storage.find(entries_of("u", sort=("-id",), limit=1))).records[0].decode()
    assert (last["transaction_type"], last["tokens_amount"]) == ("refund", 20)
    assert await book.problems() == [None]


async def test_a_subscription_begins_with_its_starting_balance_and_the_bought_tokens(book: Book) -> None:
    await book.ledger.purchase("u", 50, "Purchase")
    await book.consume(10)
    profile = await book.ledger.subscribe("u", "pro")
    assert (profile.subscription_tier, profile.tokens_balance, profile.bought) == ("pro", 200, 50)
    assert profile.token_refresh_date == "2025-12-01T00:00:00Z"
    assert not await book.ledger.refresh("u", "2025-11")  # the start is the month's


async def test_a_tier_that_the_profile_has_changes_nothing_again(book: Book) -> None:
    await book.ledger.subscribe("u", "pro")
    await book.consume(10)
    applied = Put(TRANSACTIONS, "an event", {})
    assert (await book.ledger.subscribe("u", "pro", [applied])).tokens_balance == 140
    assert await book.storage.get(TRANSACTIONS, ["an event"])


async def test_a_subscription_that_is_changed_back_and_forth_gives_no_more_than_the_larger_one(book: Book) -> None:
    left = []
    steps: list[tuple[Tier, int]] = [("pro", 150), ("enterprise", 250), ("pro", 0), ("enterprise", 0), ("pro", 0)]
    for tier, tokens in steps:
        left.append((await book.ledger.subscribe("u", tier)).monthly)
        await book.consume(tokens) if tokens else None
    assert left == [150, 250, 0, 0, 0]
    assert await book.ledger.refresh("u", "2025-12")
    assert await book.parts() == (150, 0)
    assert await book.problems() == [None]


async def test_a_subscription_that_is_paid_for_anew_begins_with_its_starting_balance(book: Book) -> None:
    await book.ledger.subscribe("u", "pro")
    await book.consume(150)
    assert (await book.ledger.subscribe("u", "enterprise", anew=True)).monthly == 400


async def test_what_was_reserved_before_a_change_of_subscription_comes_back(book: Book) -> None:
    await book.ledger.purchase("u", 50, "Purchase")
    await book.ledger.subscribe("u", "pro")
    reservation = await book.ledger.reserve("u", 170, "Transcription")
    await book.ledger.subscribe("u", "enterprise")
    assert await book.parts() == (250, 30)
    await book.ledger.release(reservation)
    assert await book.parts() == (400, 50)
    assert await book.problems() == [None]


async def test_the_end_of_a_subscription_leaves_the_bought_tokens(book: Book) -> None:
    await book.ledger.subscribe("u", "enterprise")
    await book.ledger.purchase("u", 50, "Purchase")
    profile = await book.ledger.unsubscribe("u")
    assert (profile.subscription_tier, profile.tokens_balance, profile.bought) == ("free", 50, 50)
    assert profile.token_refresh_date is None
    assert (await book.ledger.unsubscribe("u")).entries == profile.entries


async def test_a_subscription_of_which_is_told_too_late_had_replaced_the_free_tokens(book: Book) -> None:
    await book.ledger.purchase("u", 50, "Purchase")
    assert await book.ledger.unsubscribe("u", late=True) == await book.profile()
    assert await book.parts() == (0, 50)


async def test_nobody_has_no_tokens(book: Book) -> None:
    for act in (
        book.ledger.profile("x"),
        book.ledger.consume("x", 1, "", lambda _: ()),
        book.ledger.reserve("x", 1, ""),
        book.ledger.purchase("x", 1, ""),
        book.ledger.subscribe("x", "pro"),
        book.ledger.refresh("x", "2025-12"),
    ):
        with pytest.raises(NotFound):
            await act


async def test_an_email_has_one_profile(book: Book) -> None:
    with pytest.raises(Conflict) as raised:
        await book.storage.commit(book.ledger.opened("v", "alice@example.com", "free"))
    assert (raised.value.collection, raised.value.id) == ("metering_emails", "alice@example.com")


# What goes with a change


async def test_what_was_applied_is_applied_once(book: Book) -> None:
    def applied() -> list[Write]:
        return [Put(TRANSACTIONS, "an event", {}, ABSENT)]

    purchases = [book.ledger.purchase("u", 50, "Purchase", applied()) for _ in range(10)]
    outcomes = await asyncio.gather(*purchases, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AlreadyDone"] * 9 + ["Transaction"]
    assert await book.parts() == (100, 50)


async def test_a_reservation_ends_once(book: Book) -> None:
    reservation = await book.ledger.reserve("u", 40, "Transcription")
    await book.ledger.settle(reservation, [Put(TRANSACTIONS, "a usage event", {})])
    with pytest.raises(AlreadyDone):
        await book.ledger.settle(reservation)
    await book.ledger.release(reservation)
    assert await book.parts() == (60, 0)
    assert await book.storage.get(TRANSACTIONS, ["a usage event"])


async def test_another_server_on_the_store_is_no_reason_to_fail(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's commit comes in between what is read and what is written, a few times."""
    commit = book.storage.commit
    meddle = 5

    async def with_another(writes: Sequence[Write]) -> Commit:
        nonlocal meddle
        if meddle:
            meddle -= 1
            record = (await book.storage.get(PROFILES, ["u"]))["u"]
            await commit([Put(PROFILES, "u", record.document)])
        return await commit(writes)

    monkeypatch.setattr(book.storage, "commit", with_another)
    balances = await asyncio.gather(*(book.consume(1) for _ in range(3)))
    assert (balances, meddle) == ([99, 98, 97], 0)
    assert await book.problems() == [None]


# Waiting


class Slow:
    """Commits that wait until they are let through, and are counted."""

    def __init__(self, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._commit = book.storage.commit
        monkeypatch.setattr(book.storage, "commit", self)

    async def __call__(self, writes: Sequence[Write]) -> Commit:
        self.count += 1
        self.begun.set()
        await self.go.wait()
        return await self._commit(writes)


async def test_who_comes_during_a_commit_shares_the_next(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(book, monkeypatch)
    first = asyncio.create_task(book.consume(1))
    await slow.begun.wait()
    others = [asyncio.create_task(book.consume(1)) for _ in range(50)]
    await asyncio.sleep(0)
    slow.go.set()
    assert [await first, *(await asyncio.gather(*others))] == list(range(99, 48, -1))
    assert slow.count == 2


async def test_each_has_its_own_answer(book: Book) -> None:
    amounts = [30, 80, 50, 30, 10, 30]
    outcomes = await asyncio.gather(*(book.consume(n) for n in amounts), return_exceptions=True)
    told = [
        outcome.extra["tokens_shortfall"] if isinstance(outcome, InsufficientTokens) else outcome
        for outcome in outcomes
    ]
    assert told == [70, 10, 20, 10, 10, 20]


async def test_one_that_is_cancelled_while_it_waits_does_not_take_place(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(book, monkeypatch)
    first = asyncio.create_task(book.consume(1))
    await slow.begun.wait()
    second, third = (asyncio.create_task(book.consume(n)) for n in (10, 20))
    await asyncio.sleep(0)
    second.cancel()
    slow.go.set()
    assert (await first, await third) == (99, 79)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_one_that_is_cancelled_later_disturbs_nobody(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit may have happened."""
    slow = Slow(book, monkeypatch)
    first = asyncio.create_task(book.consume(1))
    await slow.begun.wait()
    second, third = (asyncio.create_task(book.consume(10)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    slow.go.set()
    assert (await second - await third, await book.problems()) == (10, [None])
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_another_process_did_is_known_before_anybody_is_refused(book: Book) -> None:
    await book.consume(90)
    another = Ledger(book.storage, book.clock, CONFIG)
    await another.purchase("u", 1000, "homeport licenses grant")
    assert await book.consume(500) == 510
    await another.consume("u", 510, "", lambda _: ())
    with pytest.raises(InsufficientTokens) as raised:
        await book.consume(1)
    assert raised.value.extra["tokens_balance"] == 0


@on_memory
async def test_a_queue_has_a_bound(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    await book.ledger.purchase("u", 10_000, "Purchase")
    slow = Slow(book, monkeypatch)
    first = asyncio.create_task(book.consume(1))
    await slow.begun.wait()
    waiting = [asyncio.create_task(book.consume(1)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(ServiceUnavailable):
        await book.consume(1)
    slow.go.set()
    await asyncio.gather(first, *waiting)
    assert slow.count == 1 + MAX_WAITING // MAX_TOGETHER
    assert await book.problems() == [None]


async def test_a_store_that_fails_fails_those_who_share_the_commit(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as context:
        context.setattr(book.storage, "commit", full)
        outcomes = await asyncio.gather(*(book.consume(1) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StorageFull] * 5
        with pytest.raises(StorageFull):
            await book.ledger.reserve("u", 1, "")
    assert await book.consume(1) == 99


# Abandoned reservations


async def test_what_somebody_works_on_is_not_given_back(book: Book) -> None:
    await book.ledger.reserve("u", 40, "Transcription")
    other = Ledger(book.storage, book.clock, CONFIG)  # another application on the same store
    assert await other.give_back_abandoned() == 0
    book.clock.advance(10 * HOUR)
    assert await other.give_back_abandoned() == 0


async def test_what_could_not_be_given_back_is_given_back_later(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    reservation = await book.ledger.reserve("u", 40, "Transcription")

    async def full(_: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as context:
        context.setattr(book.storage, "commit", full)
        with pytest.raises(StorageFull):
            await book.ledger.release(reservation)
    book.clock.advance(CONFIG.transcription.timeout + 3600)  # a store without a place of its own waits for its time
    assert await book.ledger.give_back_abandoned() == 1
    assert await book.parts() == (100, 0)
    assert await book.problems() == [None]


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
async def test_what_a_dead_process_reserved_is_given_back_at_once(storage_url: str) -> None:
    async with make_storage(storage_url) as storage:
        await storage.declare(*api.collections)
        book = Book(storage)
        await storage.commit(book.ledger.opened("u", "alice@example.com", "free"))
        await book.ledger.reserve("u", 40, "Transcription")
    async with make_storage(storage_url) as storage:
        await storage.declare(*api.collections)
        book = Book(storage)
        assert await book.ledger.give_back_abandoned() == 1
        assert await book.parts() == (100, 0)
        assert await book.problems() == [None]


# Looking for what is wrong


async def _changed(storage: Storage, collection: Any, id: str, **members: Any) -> None:
    record = (await storage.get(collection, [id]))[id]
    await storage.commit([Put(collection, id, record.decode() | members)])


DAMAGE = {
    "another balance": (PROFILES, "u", {"tokens_balance": 61}, "the balance is 61, the ledger comes to 60"),
    "more bought than there is": (PROFILES, "u", {"bought": 61}, "of 60 tokens 61 are bought ones"),
    "another amount": (
        TRANSACTIONS,
        entry_id("u", 2),
        {"tokens_amount": -39},
        "after entry 2 the balance is 60, not 61",
    ),
    "an entry that was never made": (PROFILES, "u", {"entries": 3}, "entry 3 is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_wrong_is_found(book: Book, damage: str) -> None:
    collection, id, members, problem = DAMAGE[damage]
    await book.consume(40)
    assert await book.problems() == [None]
    await _changed(book.storage, collection, id, **members)
    assert await book.problems() == [problem]


async def test_what_is_missing_is_found(book: Book) -> None:
    reservation = await book.ledger.reserve("u", 40, "Transcription")
    await book.consume(10)
    id = reservation.transaction_id
    await _changed(book.storage, RESERVATIONS, id, tokens=41)
    assert await book.problems() == ["entry 2 is of 40 tokens, its reservation of 41"]
    await book.storage.commit([Put(RESERVATIONS, "another", reservation._asdict() | {"transaction_id": "another"})])
    await _changed(book.storage, RESERVATIONS, id, tokens=40)
    assert await book.problems() == ["the reservation another has no entry"]
    await book.storage.commit([Delete(TRANSACTIONS, entry_id("u", 2))])
    assert await book.problems() == ["entry 2 is missing"]
    await book.storage.commit([Delete(PROFILES, "u")])
    assert await book.problems() == ["there are entries, but no profile"]
    await book.storage.commit([Delete(TRANSACTIONS, entry_id("u", number)) for number in (1, 3)])
    assert await book.problems() == ["there are reservations, but no profile"]


async def test_looking_while_others_spend_finds_nothing_wrong(book: Book) -> None:
    await book.ledger.purchase("u", 10_000, "Purchase")

    async def spend() -> None:
        for _ in range(60):
            await book.consume(1)
            await asyncio.sleep(0)

    spending = asyncio.create_task(spend())
    looked = 0
    while not spending.done():
        assert await book.problems() == [None]
        looked += 1
        await asyncio.sleep(0)
    assert looked > 1
