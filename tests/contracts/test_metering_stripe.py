"""contracts/metering.md on Stripe, sentence by sentence."""

from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest

from ..server.apis.conftest import Answer, Log, Serve, on_memory
from ..server.apis.licensed import Shop, bearer, open_shop
from ..server.apis.stripe_stand_in import (
    PRICES,
    SALES,
    StandIn,
    deliver,
    localstripe,
    open_stand_in,
    signature,
)

__all__ = ["localstripe"]

AT = 1_763_640_000
"""What the clock shows, in seconds since the epoch."""
RECEIVED = {"received": True}
USER = "01970e2c-7b1a-7f3e-9d7d-2a41d65f0c11"


@pytest.fixture
async def stripe(localstripe: str) -> AsyncIterator[StandIn]:
    async with open_stand_in(localstripe) as stand_in:
        yield stand_in


@pytest.fixture
async def shop(serve: Serve, stripe: StandIn) -> Shop:
    return await open_shop(serve, SALES | {"apis.metering.stripe.api_base": stripe.url})


@pytest.fixture
async def closed(serve: Serve) -> Shop:
    """A shop whose Stripe is not there, and need not be."""
    return await open_shop(serve, SALES | {"apis.metering.stripe.api_base": "http://127.0.0.1:1"})


async def order(shop: Shop, key: str | None, body: Any, **headers: str) -> Answer:
    given = {**bearer(key), **headers}
    return await shop.server("POST", "/api/stripe/create-checkout", json=body, headers=given)


def refused(answer: Answer, status: int, error: str) -> None:
    assert (answer.status, answer.json) == (status, {"success": False, "error": error})


# POST /api/stripe/create-checkout


async def test_a_purchase_of_tokens(shop: Shop, stripe: StandIn) -> None:
    owner, key = await shop.license("alice@example.com")
    answer = await order(shop, key, {"type": "token_purchase"})
    url = answer.json["checkout_url"]
    assert (answer.status, answer.json) == (200, {"success": True, "checkout_url": url})
    assert url.startswith("https://checkout.stripe.com/")
    [(asked, _)] = stripe.orders
    assert asked == {
        "mode": "payment",
        "line_items": [{"price": "price_tokens", "quantity": "1"}],
        "client_reference_id": owner.user_id,
        "metadata": {"type": "token_purchase", "tokens": "1000000", "user_id": owner.user_id},
        "customer_email": "alice@example.com",
        "customer_creation": "always",
        "success_url": f"{shop.server.url}",
        "cancel_url": f"{shop.server.url}",
    }


@pytest.mark.parametrize("tier", ["pro", "enterprise"])
@on_memory
async def test_a_subscription(shop: Shop, stripe: StandIn, tier: str) -> None:
    owner, key = await shop.license("alice@example.com")
    answer = await order(shop, key, {"type": "subscription", "tier": tier})
    assert answer.json == {"success": True, "checkout_url": answer.json["checkout_url"]}
    metadata = {"type": "subscription", "tier": tier, "user_id": owner.user_id}
    [(asked, _)] = stripe.orders
    assert asked == {
        "mode": "subscription",
        "line_items": [{"price": PRICES[tier], "quantity": "1"}],
        "client_reference_id": owner.user_id,
        "metadata": metadata,
        "subscription_data": {"metadata": metadata},
        "customer_email": "alice@example.com",
        "success_url": f"{shop.server.url}",
        "cancel_url": f"{shop.server.url}",
    }


@on_memory
async def test_prices_tokens_and_urls_are_the_configurations(serve: Serve, stripe: StandIn) -> None:
    shop = await open_shop(
        serve,
        SALES
        | {
            "apis.metering.stripe.api_base": stripe.url,
            "apis.metering.stripe.tokens": 5_000,
            "apis.metering.stripe.token_price": PRICES["pro"],
            "apis.metering.stripe.success_url": "https://app.example.com/thanks",
            "server.public_url": "https://sync.example.com/homeport",
        },
    )
    _, key = await shop.license()
    assert (await order(shop, key, {"type": "token_purchase"})).status == 200
    [(asked, _)] = stripe.orders
    assert asked["line_items"] == [{"price": PRICES["pro"], "quantity": "1"}]
    assert asked["metadata"]["tokens"] == "5000"
    assert asked["success_url"] == "https://app.example.com/thanks"
    assert asked["cancel_url"] == "https://sync.example.com/homeport"


TYPES = 'type must be one of "token_purchase", "subscription"'
TIERS = 'tier must be one of "pro", "enterprise"'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param({}, "type is required", id="nothing"),
        pytest.param({"type": "gift"}, TYPES, id="unknown type"),
        pytest.param({"type": None}, TYPES, id="null"),
        pytest.param({"type": ["subscription"]}, TYPES, id="a list"),
        pytest.param({"type": "subscription"}, "tier is required", id="no tier"),
        pytest.param({"type": "subscription", "tier": "free"}, TIERS, id="free"),
        pytest.param({"type": "subscription", "tier": "gold"}, TIERS, id="unknown tier"),
        pytest.param({"type": "subscription", "tier": ""}, TIERS, id="empty tier"),
        pytest.param({"type": "token_purchase", "tier": "gold"}, TIERS, id="unknown tier of a purchase"),
    ],
)
@on_memory
async def test_an_unknown_type_or_tier(closed: Shop, body: Any, error: str) -> None:
    _, key = await closed.license()
    refused(await order(closed, key, body), 400, error)


@pytest.mark.parametrize(
    ("missing", "body"),
    [
        ("secret_key", {"type": "token_purchase"}),
        ("token_price", {"type": "token_purchase"}),
        ("pro_price", {"type": "subscription", "tier": "pro"}),
        ("enterprise_price", {"type": "subscription", "tier": "enterprise"}),
    ],
)
@on_memory
async def test_without_a_key_or_a_price(serve: Serve, missing: str, body: Any) -> None:
    shop = await open_shop(serve, {name: value for name, value in SALES.items() if not name.endswith(f".{missing}")})
    _, key = await shop.license()
    refused(await order(shop, key, body), 503, "Payments are not configured")


@on_memory
async def test_who_may_buy(closed: Shop) -> None:
    owner, key = await closed.license()
    for wrong in (None, "ABCD-1234-EFGH-5678"):
        refused(await order(closed, wrong, {"type": "token_purchase"}), 401, "Invalid or missing license key")
    await closed.licenses.deactivate(owner.license_id)
    refused(await order(closed, key, {"type": "token_purchase"}), 403, "Device not active")


@on_memory
async def test_how_often(serve: Serve) -> None:
    shop = await open_shop(serve, {"apis.metering.rate_limit": "10/minute"})
    _, key = await shop.license()
    for _ in range(10):
        assert (await order(shop, key, {"type": "token_purchase"})).status == 503
    answer = await order(shop, key, {"type": "token_purchase"})
    refused(answer, 429, "Rate limit exceeded")
    assert answer.headers["Retry-After"] == "60"


# POST /api/webhooks/stripe: signatures


BODY = b'{"id": "evt_1", "type": "customer.created", "data": {"object": {}}}'
GOOD = signature(BODY, AT)
TIME, _, MAC = GOOD.partition(",")

GENUINE = {
    "now": GOOD,
    "299 seconds ago": signature(BODY, AT - 299),
    "a little in the future": signature(BODY, AT + 5),
    "of two secrets, one is ours": f"{TIME},v1={'0' * 64},{MAC}",
    "with another scheme": f"{TIME},v0={'0' * 64},{MAC}",
}
FORGED: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "nonsense": "nonsense",
    "no time": MAC,
    "no signature": TIME,
    "a time that is none": f"t=now,{MAC}",
    "a time of many digits": f"t={'1' * 5000},{MAC}",
    "another secret's": signature(BODY, AT, "whsec_other"),
    "an empty secret's": signature(BODY, AT, ""),
    "another body's": signature(BODY + b" ", AT),
    "another time's": f"t={AT - 1},{MAC}",
    "an older scheme's": GOOD.replace("v1=", "v0="),
    "not ASCII": f"{TIME},v1=ä",
    "301 seconds old": signature(BODY, AT - 301),
    "a day old": signature(BODY, AT - 86_400),
}


async def post(shop: Shop, header: str | None, body: bytes | BytesIO = BODY) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if header is not None:
        headers["Stripe-Signature"] = header
    return await shop.server("POST", "/api/webhooks/stripe", data=body, headers=headers)


@pytest.mark.parametrize("name", GENUINE)
@on_memory
async def test_genuine_signatures(closed: Shop, name: str) -> None:
    answer = await post(closed, GENUINE[name])
    assert (answer.status, answer.json) == (200, RECEIVED)


@pytest.mark.parametrize("name", FORGED)
@on_memory
async def test_forged_signatures(closed: Shop, name: str) -> None:
    refused(await post(closed, FORGED[name]), 400, "Invalid signature")


@on_memory
async def test_a_signature_is_over_the_bytes_that_came(closed: Shop) -> None:
    spaced = BODY.replace(b": ", b":  ")
    refused(await post(closed, GOOD, spaced), 400, "Invalid signature")
    refused(await post(closed, signature(b"\xff", AT), b"\xff"), 400, "Invalid signature")
    refused(await post(closed, signature(b"", AT), b""), 400, "body is not JSON: Input data was truncated")


@on_memory
async def test_without_a_webhook_secret_nothing_is_genuine(serve: Serve) -> None:
    shop = await open_shop(serve)
    for header in (GOOD, signature(BODY, AT, ""), None):
        refused(await post(shop, header), 400, "Invalid signature")


@on_memory
async def test_signatures_age_by_the_servers_clock(closed: Shop) -> None:
    for time, status in [("2025-11-20T12:04:59Z", 200), ("2025-11-20T12:05:01Z", 400), ("2031-01-01T00:00:00Z", 400)]:
        closed.server.move_to(time)
        assert (await post(closed, GOOD)).status == status


@on_memory
async def test_forgeries_do_not_lock_stripe_out(serve: Serve) -> None:
    shop = await open_shop(serve, SALES | {"server.trusted_proxies": ["127.0.0.1"]})
    headers = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.7", "Host": "127.0.0.1"}
    for _ in range(30):
        answer = await shop.server("POST", "/api/webhooks/stripe", data=BODY, headers=headers)
        assert answer.status == 400
    answer = await shop.server("POST", "/api/webhooks/stripe", data=BODY, headers=headers | {"Stripe-Signature": GOOD})
    assert (answer.status, answer.json) == (200, RECEIVED)


# What is signed and yet no event of ours


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({"id": "evt_1", "type": "invoice.paid", "data": {"object": {}}}, id="unknown"),
        pytest.param({"id": "evt_1", "type": "checkout.session.expired", "data": {"object": {}}}, id="expired"),
        pytest.param({"id": "evt_1", "object": "v2.core.event", "type": "v2.x", "created": "2025"}, id="thin"),
        pytest.param({"id": "evt_1", "type": 7}, id="a number"),
        pytest.param({}, id="none"),
        pytest.param([], id="no object"),
    ],
)
@on_memory
async def test_unknown_events(closed: Shop, event: Any) -> None:
    answer = await deliver(closed.server, event)
    assert (answer.status, answer.json) == (200, RECEIVED)


@pytest.mark.parametrize("kind", ["checkout.session.completed", "customer.subscription.updated"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"id": None}, id="no id"),
        pytest.param({"data": None}, id="no data"),
        pytest.param({"data": {"object": []}}, id="no object"),
        pytest.param({"data": {"object": {"id": "x", "customer": 5}}}, id="a customer that is none"),
        pytest.param({"data": {"object": {"id": "x", "metadata": {"tokens": 5}}}}, id="metadata that is no text"),
        pytest.param({"created": "now"}, id="a time that is none"),
    ],
)
@on_memory
async def test_what_stripe_would_never_send(closed: Shop, kind: str, changes: dict[str, Any]) -> None:
    event = {"id": "evt_1", "type": kind, "created": AT, "data": {"object": {"id": "x"}}} | changes
    refused(await deliver(closed.server, event), 400, "The event is not as Stripe's are")


@on_memory
async def test_signed_nonsense(closed: Shop) -> None:
    for body in (b"{", b"nonsense", b"[" * 200 + b"]" * 200, b'{"id": NaN}'):
        assert (await deliver(closed.server, body)).status == 400
    answer = await closed.server("POST", "/api/webhooks/stripe", data=b"a=b", headers={"Content-Type": "text/plain"})
    assert answer.status == 415
    assert (await post(closed, "", BytesIO(b" " * (1 << 20) + b"{}"))).status == 413


# What events do


def paid(user_id: str, event: str = "evt_1", session: str = "cs_1", **changes: Any) -> dict[str, Any]:
    """Tokens were bought. ``changes`` are members of the session."""
    metadata = {"type": "token_purchase", "tokens": "1000000", "user_id": user_id}
    thing = {"id": session, "payment_status": "paid", "client_reference_id": user_id, "metadata": metadata} | changes
    return {"id": event, "type": "checkout.session.completed", "created": AT, "data": {"object": thing}}


async def state(shop: Shop, key: str) -> tuple[str, int]:
    balance = (await shop.balance(key)).json
    return balance["subscription_tier"], balance["tokens_balance"]


async def test_a_payment_is_credited(closed: Shop) -> None:
    owner, key = await closed.license()
    answer = await deliver(closed.server, paid(owner.user_id))
    assert (answer.status, answer.json) == (200, RECEIVED)
    assert await state(closed, key) == ("free", 1_250_000)
    entries = (await closed.get("/api/tokens/transactions", key)).json["transactions"]
    assert [(entry["transaction_type"], entry["tokens_amount"]) for entry in entries] == [
        ("purchase", 1_000_000),
        ("monthly_refresh", 250_000),
    ]


@pytest.mark.parametrize("status", ["unpaid", "no_payment_required", None])
@on_memory
async def test_what_is_not_paid_yet_is_credited_once_it_is(closed: Shop, status: str | None) -> None:
    owner, key = await closed.license()
    first = paid(owner.user_id, payment_status=status)
    assert (await deliver(closed.server, first)).json == RECEIVED
    assert await state(closed, key) == ("free", 250_000)
    second = paid(owner.user_id, "evt_2") | {"type": "checkout.session.async_payment_succeeded"}
    for event in (second, first, second):
        assert (await deliver(closed.server, event)).json == RECEIVED
        assert await state(closed, key) == ("free", 1_250_000)


@pytest.mark.parametrize(
    ("tokens", "gained"),
    [
        pytest.param("1", 1, id="least"),
        pytest.param("1000000000000", 1_000_000_000_000, id="most"),
        *(
            pytest.param(tokens, 0, id=repr(tokens))
            for tokens in (
                "0",
                "-5",
                "+5",
                "1.5",
                "1e6",
                "1_000",
                " 5",
                "5\n",
                "",
                "\u0665",
                "1000000000001",
                "9" * 5000,
            )
        ),
    ],
)
@on_memory
async def test_how_many_tokens(closed: Shop, log: Log, tokens: str, gained: int) -> None:
    owner, key = await closed.license()
    metadata = {"type": "token_purchase", "tokens": tokens}
    assert (await deliver(closed.server, paid(owner.user_id, metadata=metadata))).json == RECEIVED
    assert await state(closed, key) == ("free", 250_000 + gained)
    assert ("no number of tokens" in log.stream.getvalue()) == (gained == 0)


@on_memory
async def test_a_checkout_that_is_not_ours(closed: Shop) -> None:
    owner, key = await closed.license()
    for metadata in (None, {}, {"type": "t-shirt"}, {"tokens": "5"}, {"type": "subscription", "tier": "gold"}):
        assert (await deliver(closed.server, paid(owner.user_id, metadata=metadata))).json == RECEIVED
    assert await state(closed, key) == ("free", 250_000)


async def test_an_unknown_profile(closed: Shop, log: Log) -> None:
    _, key = await closed.license()
    standing = {"id": "sub_1", "status": "canceled", "metadata": {"user_id": USER, "tier": "pro"}}
    for event in (
        paid(USER),
        paid("", client_reference_id=None, metadata={"type": "token_purchase", "tokens": "5"}),
        paid(USER, metadata={"type": "subscription", "tier": "pro"}, subscription="sub_1"),
        {"id": "evt_2", "type": "customer.subscription.deleted", "data": {"object": standing}},
        {"id": "evt_3", "type": "customer.subscription.updated", "data": {"object": {"id": "sub_2", "customer": "c"}}},
    ):
        answer = await deliver(closed.server, event)
        assert (answer.status, answer.json) == (200, RECEIVED)
    assert await state(closed, key) == ("free", 250_000)
    lines = [line for line in log.stream.getvalue().splitlines() if line.startswith("the Stripe event")]
    assert len(lines) == 5
    assert lines[0] == f"the Stripe event evt_1 is of a profile that is not there: '{USER}'"


async def test_a_subscription_from_its_start_to_its_end(shop: Shop, stripe: StandIn) -> None:
    """Bought tokens stay."""
    _, key = await shop.license()
    page = (await order(shop, key, {"type": "token_purchase"})).json["checkout_url"]
    assert (await deliver(shop.server, await stripe.pay(page))).json == RECEIVED
    page = (await order(shop, key, {"type": "subscription", "tier": "pro"})).json["checkout_url"]
    started = await stripe.pay(page)
    subscription = started["data"]["object"]["subscription"]
    assert (await deliver(shop.server, started)).json == RECEIVED
    assert await state(shop, key) == ("pro", 2_000_000)
    assert (await shop.balance(key)).json["token_refresh_date"] == "2025-12-01T00:00:00Z"
    assert (await deliver(shop.server, await stripe.switch(subscription, "enterprise"))).json == RECEIVED
    assert await state(shop, key) == ("enterprise", 11_000_000)
    assert (await deliver(shop.server, await stripe.cancel(subscription))).json == RECEIVED
    assert await state(shop, key) == ("free", 1_000_000)
    assert (await shop.balance(key)).json["token_refresh_date"] is None


@pytest.mark.parametrize(
    ("status", "tier"),
    [
        ("active", "pro"),
        ("trialing", "pro"),
        ("past_due", "pro"),
        ("unpaid", "free"),
        ("paused", "free"),
        ("canceled", "free"),
        ("incomplete", "pro"),
        ("of the future", "pro"),
    ],
)
@on_memory
async def test_the_status_of_a_subscription(closed: Shop, status: str, tier: str) -> None:
    owner, key = await closed.license()
    metadata = {"type": "subscription", "tier": "pro", "user_id": owner.user_id}
    await deliver(closed.server, paid(owner.user_id, subscription="sub_1", metadata=metadata))
    thing = {"id": "sub_1", "status": status, "metadata": metadata}
    event = {"id": "evt_2", "type": "customer.subscription.updated", "created": AT + 1, "data": {"object": thing}}
    assert (await deliver(closed.server, event)).json == RECEIVED
    assert await state(closed, key) == (tier, 1_000_000 if tier == "pro" else 0)
