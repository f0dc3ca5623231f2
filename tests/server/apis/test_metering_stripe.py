"""Selling through Stripe, whatever Stripe does: away, slow, repeating itself, in disorder; and whatever we do: servers
that are killed, several on one store."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stripe import HTTPClient

from homeport.server.apis.metering.billing import CHECKOUTS, EVENTS, SUBSCRIBERS, Billing
from homeport.server.apis.metering.documents import entries_of
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.apis.metering.stripe_events import read_event
from homeport.server.cli.credentials import credentials
from homeport.server.clock import Clock, MovableClock
from homeport.server.config import load_config
from homeport.storage import Collection, Query, Storage, StorageFull, StorageUnavailable, make_storage, walk
from homeport.storage.times import parse_time

from .conftest import Answer, Launch, Log, Process, Serve, on_memory, until
from .licensed import ENDLESS, Shop, bearer, open_shop
from .stripe_stand_in import PRICES, SALES, SECRET_KEY, WEBHOOK_SECRET, StandIn, deliver, localstripe, open_stand_in
from .stripe_stand_in import signature as sign

__all__ = ["localstripe"]

RECEIVED = {"received": True}
FAILED = {"success": False, "error": "Internal server error"}
TOKENS = {"type": "token_purchase"}
PRO = {"type": "subscription", "tier": "pro"}


@pytest.fixture
async def stripe(localstripe: str) -> AsyncIterator[StandIn]:
    async with open_stand_in(localstripe) as stand_in:
        yield stand_in


@pytest.fixture
async def shop(serve: Serve, stripe: StandIn) -> Shop:
    return await open_shop(serve, SALES | {"apis.metering.stripe.api_base": stripe.url})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits half a second before it tries again."""
    monkeypatch.setattr(HTTPClient, "INITIAL_DELAY", 0.01)
    monkeypatch.setattr(HTTPClient, "MAX_DELAY", 0.01)


async def order(shop: Shop, key: str, body: Any = TOKENS, **headers: str) -> Answer:
    given = {**bearer(key), **headers}
    return await shop.server("POST", "/api/stripe/create-checkout", json=body, headers=given)


async def page(shop: Shop, key: str, body: Any = TOKENS) -> str:
    answer = await order(shop, key, body)
    assert answer.status == 200, answer.content
    return str(answer.json["checkout_url"])


async def state(shop: Shop, key: str) -> tuple[str, int]:
    """The tier and the balance, of which the ledger is the sum."""
    balance: dict[str, Any] = {}
    while (now := (await shop.balance(key)).json) != balance:  # an event may come between two answers
        balance = now
        entries = (await shop.get("/api/tokens/transactions?limit=100", key)).json["transactions"]
    assert sum(entry["tokens_amount"] for entry in entries) == balance["tokens_balance"]
    return balance["subscription_tier"], balance["tokens_balance"]


async def tell(shop: Shop, *events: Any) -> None:
    for event in events:
        answer = await deliver(shop.server, event)
        assert (answer.status, answer.json) == (200, RECEIVED)


# What the start and `homeport check` say


@pytest.mark.parametrize(
    ("missing", "level", "said"),
    [
        pytest.param((), "ok", "sale of tokens is on", id="nothing"),
        pytest.param(("secret_key",), "ok", "sale of tokens is off: STRIPE_SECRET_KEY is not set", id="the key"),
        pytest.param(("webhook_secret",), "warning", "STRIPE_WEBHOOK_SECRET is not set", id="the webhooks' secret"),
        pytest.param(("token_price", "pro_price"), "ok", "is on, without token_price, pro_price", id="prices"),
    ],
)
def test_what_is_missing_is_said(missing: Sequence[str], level: str, said: str) -> None:
    given = {name: value for name, value in SALES.items() if name.rpartition(".")[2] not in missing}
    [finding] = [
        found for found in credentials(load_config(environ={}, overrides=given)) if found.subject == "metering"
    ]
    assert (finding.level, finding.message[-len(said) :]) == (level, said)


# A purchase


async def test_a_purchase_raises_the_balance_once(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    paid = await stripe.pay(await page(shop, key))
    assert await state(shop, key) == ("free", 250_000)
    for _ in range(3):
        await tell(shop, paid)
        assert await state(shop, key) == ("free", 1_250_000)
    await tell(shop, await stripe.pay(await page(shop, key)))
    assert await state(shop, key) == ("free", 2_250_000)


async def test_two_events_of_one_payment(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    address = await page(shop, key)
    completed = await stripe.pay(address, later=True)
    collected = stripe.collected(address)
    again = stripe.event("checkout.session.completed", collected["data"]["object"])
    await tell(shop, collected, completed, again, collected)
    assert await state(shop, key) == ("free", 1_250_000)


async def test_fifty_deliveries_at_once(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    bought, started = await stripe.pay(await page(shop, key)), await stripe.pay(await page(shop, key, PRO))
    await asyncio.gather(*(tell(shop, event) for event in [bought, started] * 25))
    assert await state(shop, key) == ("pro", 2_000_000)


async def test_a_later_purchase_is_the_same_customers(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license("alice@example.com")
    paid = await stripe.pay(await page(shop, key))
    await tell(shop, paid)
    await page(shop, key, PRO)
    first, second = (asked for asked, _ in stripe.orders)
    assert first["customer_email"] == "alice@example.com"
    assert second["customer"] == paid["data"]["object"]["customer"]
    assert "customer_email" not in second


@on_memory
async def test_a_customer_whom_stripe_has_forgotten(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license("alice@example.com")
    paid = await stripe.pay(await page(shop, key))
    await tell(shop, paid)
    await stripe.forget_customer(paid["data"]["object"]["customer"])
    for headers in ({}, {"Idempotency-Key": "k"}):
        stripe.orders.clear()
        assert (await order(shop, key, TOKENS, **headers)).status == 200
        assert [asked.get("customer_email") for asked, _ in stripe.orders] == [None, "alice@example.com"]
    after = await stripe.pay(await page(shop, key))
    await tell(shop, after)
    await page(shop, key)
    assert stripe.orders[-1][0]["customer"] == after["data"]["object"]["customer"]


# Stripe is away


@pytest.mark.parametrize("trouble", ["400", "401", "402", "403", "404", "429", "garbage", "half", "no page"])
@on_memory
async def test_stripe_refuses(shop: Shop, stripe: StandIn, log: Log, trouble: str) -> None:
    _, key = await shop.license()
    stripe.trouble.append(trouble)
    answer = await order(shop, key)
    assert (answer.status, answer.json) == (500, FAILED)
    assert "checkout session" in log.stream.getvalue()
    assert "No such thing" not in log.stream.getvalue()
    assert SECRET_KEY not in log.stream.getvalue()
    assert (await order(shop, key)).status == 200


@pytest.mark.parametrize("trouble", ["500", "503", "409", "cut"])
@on_memory
async def test_what_may_have_been_done_is_tried_again_as_the_same(shop: Shop, stripe: StandIn, trouble: str) -> None:
    _, key = await shop.license()
    stripe.trouble.append(trouble)
    assert (await order(shop, key)).status == 200
    keys = [headers["Idempotency-Key"] for _, headers in stripe.orders]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@on_memory
async def test_stripe_stays_away(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    stripe.trouble += ["cut"] * 3
    answer = await order(shop, key)
    assert (answer.status, answer.json) == (500, FAILED)
    assert len(stripe.orders) == 3


@on_memory
async def test_who_waits_for_stripe_keeps_nobody_waiting(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    stripe.trouble.append("stall")
    slow = asyncio.create_task(order(shop, key))
    await until(lambda: _true(bool(stripe.orders)))
    assert await state(shop, key) == ("free", 250_000)
    stripe.stalled.set()
    assert (await slow).status == 200


async def _true(condition: bool) -> bool:
    return condition


# Idempotency-Key


async def test_the_same_key_is_the_same_page(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    first, second = [await order(shop, key, TOKENS, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status, first.json) == (second.status, second.json)
    assert first.content == second.content
    assert len(stripe.orders) == 1
    other = await order(shop, key, PRO, **{"Idempotency-Key": "k"})
    assert (other.status, other.json["success"]) == (422, False)
    assert (await order(shop, key)).json != first.json


async def test_keys_are_a_profiles_own(shop: Shop, stripe: StandIn) -> None:
    pages = []
    for email in ("alice@example.com", "bob@example.com"):
        _, key = await shop.license(email)
        pages.append((await order(shop, key, TOKENS, **{"Idempotency-Key": "k"})).json["checkout_url"])
    assert len(set(pages)) == 2


async def test_a_page_whose_answer_was_lost_is_not_made_again(
    shop: Shop, stripe: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server is killed after Stripe made it."""
    _, key = await shop.license()
    with monkeypatch.context() as patch:
        patch.setattr(shop.server.storage, "commit", _failing(StorageUnavailable("away")))
        assert (await order(shop, key, TOKENS, **{"Idempotency-Key": "k"})).status == 503
    again = await order(shop, key, TOKENS, **{"Idempotency-Key": "k"})
    assert again.status == 200
    keys = [headers["Idempotency-Key"] for _, headers in stripe.orders]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@on_memory
async def test_a_failure_is_not_remembered(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    stripe.trouble.append("400")
    answers = [await order(shop, key, TOKENS, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status for answer in answers] == [500, 200]


# The store is away


def _failing(error: Exception) -> Any:
    async def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("error", "status"), [(StorageUnavailable("away"), 503), (StorageFull("full"), 507)])
async def test_what_cannot_be_written_is_sent_again(
    shop: Shop, stripe: StandIn, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    _, key = await shop.license()
    paid = await stripe.pay(await page(shop, key))
    with monkeypatch.context() as patch:
        patch.setattr(shop.server.storage, "commit", _failing(error))
        answer = await deliver(shop.server, paid)
        assert (answer.status, answer.json["success"]) == (status, False)
    assert await state(shop, key) == ("free", 250_000)
    await tell(shop, paid, paid)
    assert await state(shop, key) == ("free", 1_250_000)


async def test_an_unknown_profile_may_be_known_later(shop: Shop, stripe: StandIn) -> None:
    """Nothing is remembered of an event that did nothing."""
    owner, key = await shop.license()
    paid = await stripe.pay(await page(shop, key))
    stranger = json.loads(json.dumps(paid).replace(owner.user_id, "0197-nobody"))
    await tell(shop, stranger)
    assert await _count(shop.server.storage, EVENTS, CHECKOUTS, SUBSCRIBERS) == [0, 0, 0]
    await tell(shop, paid)
    assert await state(shop, key) == ("free", 1_250_000)


# Subscriptions


async def test_the_end_of_an_old_subscription_does_not_end_the_new(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    old, new = [await stripe.pay(await page(shop, key, PRO)) for _ in range(2)]
    ended = await stripe.cancel(old["data"]["object"]["subscription"])
    await tell(shop, old, new, ended)
    assert await state(shop, key) == ("pro", 1_000_000)
    await tell(shop, await stripe.cancel(new["data"]["object"]["subscription"]), old, new)
    assert await state(shop, key) == ("free", 0)


async def test_an_end_that_comes_before_the_start(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    started = await stripe.pay(await page(shop, key, PRO))
    ended = await stripe.cancel(started["data"]["object"]["subscription"])
    await tell(shop, ended, started)
    assert await state(shop, key) == ("free", 0)


async def test_an_update_that_is_overtaken(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    started = await stripe.pay(await page(shop, key, PRO))
    subscription = started["data"]["object"]["subscription"]
    up = await stripe.switch(subscription, "enterprise")
    down = await stripe.switch(subscription, "pro")
    up_again = await stripe.switch(subscription, "enterprise")
    await tell(shop, up_again, down, started, up)
    assert await state(shop, key) == ("enterprise", 10_000_000)


@on_memory
async def test_a_subscription_that_is_switched_back_and_forth(shop: Shop, stripe: StandIn) -> None:
    """What is spent this month stays so, until a subscription is bought anew."""
    owner, key = await shop.license()
    started = await stripe.pay(await page(shop, key, PRO))
    subscription = started["data"]["object"]["subscription"]
    await tell(shop, started)
    left = []
    for tokens, tier in ((1_000_000, "enterprise"), (9_000_000, "pro"), (0, "enterprise"), (0, "pro")):
        if tokens:
            await shop.ledger.consume(owner.user_id, tokens, "", lambda _: ())
        await tell(shop, await stripe.switch(subscription, tier))
        left.append(await state(shop, key))
    assert left == [("enterprise", 9_000_000), ("pro", 0), ("enterprise", 0), ("pro", 0)]
    await tell(shop, await stripe.pay(await page(shop, key, {"type": "subscription", "tier": "enterprise"})))
    assert await state(shop, key) == ("enterprise", 10_000_000)


@on_memory
async def test_events_without_our_metadata_are_told_by_subscription_or_customer(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    started = await stripe.pay(await page(shop, key, PRO))
    thing = started["data"]["object"]
    items = {"data": [{"price": {"id": PRICES["enterprise"]}, "plan": {"id": "other"}}]}
    by_customer = {"id": thing["subscription"], "customer": thing["customer"], "status": "active", "items": items}
    await tell(shop, started, stripe.event("customer.subscription.updated", by_customer))
    assert await state(shop, key) == ("enterprise", 10_000_000)
    other = {"id": "sub_other", "customer": thing["customer"], "status": "canceled"}
    await tell(shop, stripe.event("customer.subscription.deleted", other))
    assert await state(shop, key) == ("enterprise", 10_000_000)
    await tell(shop, stripe.event("customer.subscription.deleted", {"id": thing["subscription"]}))
    assert await state(shop, key) == ("free", 0)


IMPORTS_ON_THE_LOOP = """
import asyncio, sys, threading
from homeport import load_config
from homeport.server.apis.metering.stripe_api import InvalidSignature, Stripe
from homeport.server.clock import Clock

on_the_loop, loops = [], threading.get_ident()

def hear(event, arguments):
    if event == "import" and arguments[0].startswith("stripe") and threading.get_ident() == loops:
        on_the_loop.append(arguments[0])

async def main():
    config = load_config(environ={}, overrides={"apis.metering.stripe.webhook_secret": "whsec_x"})
    try:
        await Stripe(config.apis.metering.stripe, Clock(), None).verify(b"{}", "t=1,v1=00")
    except InvalidSignature:
        print(on_the_loop, "stripe" in sys.modules)

sys.addaudithook(hear)
asyncio.run(main())
"""


def test_the_first_webhook_holds_nobody_up() -> None:
    """Stripe's library is large, and loads its parts one by one."""
    assert subprocess.check_output([sys.executable, "-c", IMPORTS_ON_THE_LOOP], text=True) == "[] True\n"


@on_memory
async def test_localstripe_signs_as_stripe_does(shop: Shop, stripe: StandIn, localstripe: str) -> None:
    _, key = await shop.license()
    started = await stripe.pay(await page(shop, key, PRO))
    await tell(shop, started)
    hook = {"url": f"{shop.server.url}/api/webhooks/stripe", "secret": WEBHOOK_SECRET, "events": []}
    hook["events"] = ["customer.subscription.deleted"]
    async with shop.server.session.post(f"{localstripe}/_config/webhooks/homeport", json=hook) as answer:
        assert answer.status == 200
    await stripe.cancel(started["data"]["object"]["subscription"])

    async def ended() -> bool:
        return await state(shop, key) == ("free", 0)

    await until(ended, every=0.05)


async def test_as_many_ended_subscriptions_as_are_remembered(shop: Shop, stripe: StandIn) -> None:
    owner, key = await shop.license()
    metadata = {"user_id": owner.user_id, "type": "subscription", "tier": "pro"}
    for number in range(40):
        thing = {"id": f"sub_{number}", "status": "active", "metadata": metadata}
        await tell(shop, stripe.event("customer.subscription.updated", thing))
        if number:
            thing["id"] = f"sub_{number - 1}"
            await tell(shop, stripe.event("customer.subscription.deleted", thing))
    assert await state(shop, key) == ("pro", 1_000_000)
    [record] = (await shop.server.storage.find(Query(SUBSCRIBERS))).records
    assert len(record.decode()["subscriptions"]) == 33


# What is remembered


async def test_events_are_forgotten_and_payments_are_not(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    events = [await stripe.pay(await page(shop, key)), started := await stripe.pay(await page(shop, key, PRO))]
    events.append(await stripe.cancel(started["data"]["object"]["subscription"]))
    await tell(shop, *events)
    storage = shop.server.storage
    assert await _count(storage, EVENTS, CHECKOUTS) == [3, 1]
    billing = Billing(storage, shop.server.clock, shop.ledger)
    shop.server.move_to("2026-02-18T11:59:59Z")
    assert await billing.forget_old() == 0
    shop.server.move_to("2026-02-18T12:00:01Z")
    assert await billing.forget_old() == 3
    before = await state(shop, key)
    await tell(shop, *events, *reversed(events))
    assert await state(shop, key) == before == ("free", 1_000_000)


async def test_a_server_forgets_old_events_by_itself(shop: Shop, stripe: StandIn) -> None:
    _, key = await shop.license()
    await tell(shop, await stripe.pay(await page(shop, key)))
    shop.server.move_to("2026-02-20T00:00:00Z")

    async def forgotten() -> bool:
        return await _count(shop.server.storage, EVENTS) == [0]

    await until(forgotten)


async def _count(storage: Storage, *collections: Collection) -> list[int]:
    return [await storage.count(Query(collection)) for collection in collections]


# Whatever happens, in whatever order


class Story(NamedTuple):
    """What happened at Stripe, in order, and what it comes to."""

    events: Sequence[dict[str, Any]]
    tier: str
    balance: int


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Of one profile: purchases, some of which are told twice, and subscriptions that begin, change and end."""
    happened: list[dict[str, Any]] = []
    bought = 0

    def add(kind: str, thing: dict[str, Any]) -> None:
        number = len(happened)
        happened.append({"id": f"evt_{number}", "type": kind, "created": number, "data": {"object": thing}})

    for number in range(draw(st.integers(0, 2), label="purchases")):
        tokens = draw(st.integers(1, 10**6))
        metadata = {"type": "token_purchase", "tokens": str(tokens), "user_id": "u"}
        session = {"id": f"cs_{number}", "customer": "cus_1", "metadata": metadata}
        if draw(st.booleans(), label="collected later"):
            add("checkout.session.completed", session | {"payment_status": "unpaid"})
            add("checkout.session.async_payment_succeeded", session | {"payment_status": "paid"})
        else:
            add("checkout.session.completed", session | {"payment_status": "paid"})
        bought += tokens
    tiers = st.sampled_from(["pro", "enterprise"])
    live: dict[str, str] = {}
    subscriptions = [f"sub_{number}" for number in range(draw(st.integers(0, 3), label="subscriptions"))]
    todo = draw(st.lists(st.sampled_from(subscriptions), max_size=8)) if subscriptions else []
    begun: set[str] = set()
    ended: set[str] = set()
    for id in todo:
        if id in ended:
            continue
        tier = draw(tiers)
        metadata = {"type": "subscription", "tier": tier, "user_id": "u"}
        if id not in begun:
            begun.add(id)
            live[id] = tier
            session = {"id": f"cs_{id}", "subscription": id, "payment_status": "paid", "metadata": metadata}
            add("checkout.session.completed", session)
            continue
        status = draw(st.sampled_from(["active", "past_due", "unpaid", "deleted"]))
        thing = {"id": id, "status": status, "metadata": metadata, "customer": "cus_1"}
        live.pop(id, None)
        if status == "deleted":
            ended.add(id)
            add("customer.subscription.deleted", thing | {"status": "canceled"})
        else:
            add("customer.subscription.updated", thing)
            if status != "unpaid":
                live[id] = tier
    tier = "enterprise" if "enterprise" in live.values() else "pro" if live else "free"
    start = {"free": 0 if begun else 250_000, "pro": 1_000_000, "enterprise": 10_000_000}[tier]
    return Story(happened, tier, start + bought)


async def _told(url: str, events: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """What events come to, on a store of its own."""
    clock = MovableClock(parse_time("2025-11-20T12:00:00Z"))
    config = load_config(environ={}, overrides=SALES).apis.metering
    async with make_storage(url) as storage:
        await storage.declare(*_collections())
        ledger = Ledger(storage, clock, config)
        await storage.commit(ledger.opened("u", "u@example.com", "free"))
        billing = Billing(storage, clock, ledger)
        for event in events:
            if (read := read_event(event, config.stripe)) is not None:
                await billing.apply(read)
        profile = await ledger.profile("u")
        amounts = [record.decode()["tokens_amount"] async for record in walk(storage, entries_of("u"))]
        assert sum(amounts) == profile.tokens_balance
        return profile.subscription_tier, profile.tokens_balance


def _collections() -> Sequence[Collection]:
    from homeport.server.apis.metering import api

    return api.collections


@given(story=stories(), data=st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_what_events_come_to_does_not_depend_on_their_order(story: Story, data: st.DataObject) -> None:
    doubled = [*story.events, *data.draw(st.lists(st.sampled_from(story.events or [{}]), max_size=4))]
    order = data.draw(st.permutations(doubled))
    assert asyncio.run(_told("memory:", story.events)) == (story.tier, story.balance)
    assert asyncio.run(_told("memory:", [event for event in order if event])) == (story.tier, story.balance)


# Several servers, and servers that are killed


async def test_two_servers_are_told_of_one_payment(storage: Storage) -> None:
    """Each with locks of its own: the store decides."""
    config = load_config(environ={}, overrides=SALES).apis.metering
    await storage.declare(*_collections())
    ledger = Ledger(storage, Clock(), config)
    await storage.commit(ledger.opened("u", "u@example.com", "free"))
    metadata = {"type": "token_purchase", "tokens": "5", "user_id": "u"}
    paid = {"payment_status": "paid", "metadata": metadata}
    events = [
        {"id": f"evt_{n}", "type": "checkout.session.completed", "data": {"object": paid | {"id": f"cs_{n // 2}"}}}
        for n in range(8)
    ]
    billing = Billing(storage, Clock(), ledger)
    holding = storage.locks.hold
    storage.locks.hold = lambda keys: holding([f"{key} {id(asyncio.current_task())}" for key in keys])  # type: ignore[method-assign]  # as if each had a process of its own
    read = [read_event(event, config.stripe) for event in events]
    await asyncio.gather(*(billing.apply(event) for event in read * 2 if event))
    assert (await ledger.profile("u")).tokens_balance == 250_000 + 4 * 5


@pytest.mark.parametrize(
    ("back_end", "kills"),
    [
        pytest.param("sqlite", 2),
        pytest.param("file", 1),
        pytest.param("sqlite", 20, marks=pytest.mark.slow),
        pytest.param("file", 20, marks=pytest.mark.slow),
    ],
)
async def test_no_payment_is_lost_or_counted_twice_where_the_server_is_killed(
    launch: Launch, tmp_path: Path, back_end: str, kills: int
) -> None:
    random = Random(kills)
    url = f"{back_end}:{tmp_path / 'store'}"
    settings = ENDLESS | SALES
    environment = {f"HOMEPORT_{name.upper().replace('.', '__')}": str(value) for name, value in settings.items()}
    async with make_storage(url) as storage:
        await storage.declare(*_collections())
        config = load_config(environ={}, overrides=settings).apis.metering
        owner, key = await Licenses(storage, Clock(), Ledger(storage, Clock(), config)).create("alice@example.com")
    sent: list[bytes] = []
    acknowledged: set[bytes] = set()
    for _ in range(kills):
        process = await launch("--port", "0", "--storage", url, **environment)
        await process.ready()
        sent += [_payment(owner.user_id, len(sent) + number) for number in range(30)]
        told = [body for body in sent if body not in acknowledged or random.random() < 0.2]
        goal = len(acknowledged) + random.randint(1, 25)

        async def tell_one(body: bytes, process: Process = process, goal: int = goal) -> None:
            try:
                answer = await _post(process, body)
            except aiohttp.ClientError:
                return
            assert (answer.status, answer.json) == (200, RECEIVED)
            acknowledged.add(body)
            if len(acknowledged) >= goal:
                process.process.kill()

        await asyncio.gather(*(tell_one(body) for body in told))
        await process.process.wait()
    process = await launch("--port", "0", "--storage", url, **environment)
    await process.ready()
    left = (await process.get("/api/tokens/balance", headers=bearer(key))).json["tokens_balance"]
    assert len(acknowledged) <= left - 250_000 <= len(sent)
    for _ in range(2):
        for answer in await asyncio.gather(*(_post(process, body) for body in sent)):
            assert answer.status == 200
        balance = (await process.get("/api/tokens/balance", headers=bearer(key))).json
        assert balance["tokens_balance"] == 250_000 + len(sent)
    assert await process.stop() == 0


def _payment(user_id: str, number: int) -> bytes:
    metadata = {"type": "token_purchase", "tokens": "1", "user_id": user_id}
    thing = {"id": f"cs_{number}", "payment_status": "paid", "metadata": metadata}
    event = {"id": f"evt_{number}", "type": "checkout.session.completed", "data": {"object": thing}}
    return json.dumps(event).encode()


async def _post(process: Process, body: bytes) -> Answer:
    now = Clock().now() // 1_000_000
    headers = {"Content-Type": "application/json", "Stripe-Signature": sign(body, now)}
    return await process("POST", "/api/webhooks/stripe", data=body, headers=headers)
