"""contracts/metering.md, the tokens: balance, spending, the ledger, the monthly refresh and Idempotency-Key, sentence
by sentence and every example whole, on every back end. Licenses, transcription, Stripe and OAuth have tests of their
own."""

import asyncio
import re
from typing import Any

import pytest

from homeport.storage import StorageFull

from ..server.apis.conftest import Answer, Serve, on_memory, until
from ..server.apis.licensed import Shop, bearer, open_shop

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NOW = "2025-11-20T12:00:00Z"
SECRET = {"apis.metering.cron_secret": "the secret of cron"}
CRON = {"Authorization": "Bearer the secret of cron"}


class Buyer:
    """Who holds a license."""

    def __init__(self, shop: Shop, key: str, user_id: str) -> None:
        self.shop = shop
        self.key = key
        self.user_id = user_id

    async def get(self, path: str) -> Answer:
        return await self.shop.get(path, self.key)

    async def consume(self, tokens: object = 1000, *, once: str | None = None, **more: Any) -> Answer:
        headers = {**bearer(self.key)} | ({} if once is None else {"Idempotency-Key": once})
        body = {"tokens_amount": tokens, **more}
        return await self.shop.server("POST", "/api/tokens/consume", json=body, headers=headers)

    async def balance(self) -> int:
        return int((await self.get("/api/tokens/balance")).json["tokens_balance"])

    async def transactions(self, query: str = "") -> Any:
        answer = await self.get(f"/api/tokens/transactions{query}")
        assert answer.status == 200, answer.content
        return answer.json


async def buyer(serve: Serve, tier: str = "free", *, now: str = NOW, **settings: Any) -> Buyer:
    given = {f"apis.metering.{name.replace('__', '.')}": value for name, value in settings.items()}
    shop = await open_shop(serve, given | SECRET, now=now)
    return await another(shop, "alice@example.com", tier)


async def another(shop: Shop, email: str, tier: str = "free") -> Buyer:
    made, key = await shop.license(email, tier=tier)
    return Buyer(shop, key, made.user_id)


async def refresh(shop: Shop) -> int:
    answer = await shop.server("POST", "/api/cron/refresh-tokens", headers=CRON)
    assert (answer.status, answer.json.keys()) == (200, {"success", "refreshed"})
    return int(answer.json["refreshed"])


# GET /api/tokens/balance


async def test_balance(serve: Serve) -> None:
    alice = await buyer(serve)
    await alice.consume(200_000)
    answer = await alice.get("/api/tokens/balance")
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "tokens_balance": 50000,
            "tokens_used_this_month": 200000,
            "subscription_tier": "free",
            "minutes_remaining": 133,
            "token_refresh_date": None,
            "warnings": [
                {
                    "level": "medium",
                    "threshold": 80,
                    "message": "Low balance: 50,000 tokens remaining",
                    "percentage_used": 80,
                }
            ],
        },
    )


@on_memory
@pytest.mark.parametrize(
    ("spent", "warning"),
    [
        pytest.param(0, None, id="nothing spent"),
        pytest.param(79_999, None, id="below 80"),
        pytest.param(80_000, ("medium", 80, "20,000", 80), id="80"),
        pytest.param(89_999, ("medium", 80, "10,001", 89), id="below 90"),
        pytest.param(90_000, ("high", 90, "10,000", 90), id="90"),
        pytest.param(94_999, ("high", 90, "5,001", 94), id="below 95"),
        pytest.param(95_000, ("critical", 95, "5,000", 95), id="95"),
        pytest.param(99_999, ("critical", 95, "1", 99), id="one left"),
        pytest.param(100_000, ("critical", 95, "0", 100), id="none left"),
    ],
)
async def test_the_highest_threshold_that_is_crossed_alone(
    serve: Serve, spent: int, warning: tuple[str, int, str, int] | None
) -> None:
    alice = await buyer(serve, tiers__free=100_000)
    if spent:
        await alice.consume(spent)
    warnings = (await alice.get("/api/tokens/balance")).json["warnings"]
    if warning is None:
        assert warnings == []
        return
    level, threshold, left, gone = warning
    message = f"Low balance: {left} tokens remaining"
    assert warnings == [{"level": level, "threshold": threshold, "message": message, "percentage_used": gone}]


@on_memory
async def test_bought_tokens_above_the_starting_balance_are_no_reason_to_warn(serve: Serve) -> None:
    alice = await buyer(serve)
    await alice.shop.ledger.purchase(alice.user_id, 1_000_000, "Purchase")
    await alice.consume(250_000)
    answer = (await alice.get("/api/tokens/balance")).json
    assert (answer["tokens_balance"], answer["minutes_remaining"], answer["warnings"]) == (1_000_000, 2666, [])


@on_memory
async def test_a_tier_that_begins_with_nothing_has_lost_nothing(serve: Serve) -> None:
    alice = await buyer(serve, tiers__free=0)
    answer = (await alice.get("/api/tokens/balance")).json
    assert (answer["tokens_balance"], answer["minutes_remaining"], answer["warnings"]) == (0, 0, [])


@on_memory
@pytest.mark.parametrize(
    ("tier", "balance", "date"),
    [
        ("free", 250_000, None),
        ("pro", 1_000_000, "2025-12-01T00:00:00Z"),
        ("enterprise", 10_000_000, "2025-12-01T00:00:00Z"),
    ],
)
async def test_what_a_profile_begins_with(serve: Serve, tier: str, balance: int, date: str | None) -> None:
    alice = await buyer(serve, tier)
    answer = (await alice.get("/api/tokens/balance")).json
    assert (answer["tokens_balance"], answer["tokens_used_this_month"]) == (balance, 0)
    assert (answer["subscription_tier"], answer["token_refresh_date"]) == (tier, date)
    [first] = (await alice.transactions())["transactions"]
    assert (first["transaction_type"], first["tokens_amount"], first["tokens_balance_after"]) == (
        "monthly_refresh",
        balance,
        balance,
    )


@on_memory
@pytest.mark.parametrize(
    ("left", "rate", "minutes"), [(374, 375, 0), (375, 375, 1), (1124, 375, 2), (1124, 100, 11), (1, 1, 1)]
)
async def test_minutes_remaining_are_whole(serve: Serve, left: int, rate: int, minutes: int) -> None:
    alice = await buyer(serve, tiers__free=left, tokens_per_minute=rate)
    assert (await alice.get("/api/tokens/balance")).json["minutes_remaining"] == minutes


async def test_balances_are_shown_after_reservations(serve: Serve) -> None:
    alice = await buyer(serve)
    reservation = await alice.shop.ledger.reserve(alice.user_id, 375, "Transcription")
    assert await alice.balance() == 249_625
    await alice.shop.ledger.release(reservation)
    assert await alice.balance() == 250_000


# POST /api/tokens/consume


async def test_consume(serve: Serve) -> None:
    alice = await buyer(serve)
    answer = await alice.consume(1000, description="Feature usage")
    id = answer.json["transaction_id"]
    assert UUID.fullmatch(id)
    assert (answer.status, answer.json) == (
        200,
        {"success": True, "tokens_consumed": 1000, "tokens_balance": 249000, "transaction_id": id},
    )
    assert b"." not in answer.content


async def test_insufficient_tokens(serve: Serve) -> None:
    alice = await buyer(serve, tiers__free=100)
    answer = await alice.consume(375)
    assert (answer.status, answer.json) == (
        402,
        {
            "success": False,
            "error": "Insufficient tokens",
            "tokens_required": 375,
            "tokens_balance": 100,
            "tokens_shortfall": 275,
            "message": "Need 375 tokens, you have 100 tokens, shortfall: 275 tokens",
            "required_tokens": 375,
            "balance_tokens": 100,
        },
    )
    assert await alice.balance() == 100
    assert len((await alice.transactions())["transactions"]) == 1


@on_memory
async def test_numbers_in_messages_have_thousands_commas(serve: Serve) -> None:
    alice = await buyer(serve)
    message = (await alice.consume(1_250_000)).json["message"]
    assert message == "Need 1,250,000 tokens, you have 250,000 tokens, shortfall: 1,000,000 tokens"


@on_memory
@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param({}, "tokens_amount is required", id="no amount"),
        pytest.param({"tokens_amount": 0}, "tokens_amount must be", id="nothing"),
        pytest.param({"tokens_amount": -1}, "tokens_amount must be", id="negative"),
        pytest.param({"tokens_amount": 10**9 + 1}, "tokens_amount must be", id="too many"),
        pytest.param({"tokens_amount": 1.5}, "tokens_amount must be", id="a fraction"),
        pytest.param({"tokens_amount": "1000"}, "tokens_amount must be", id="a text"),
        pytest.param({"tokens_amount": True}, "tokens_amount must be", id="a boolean"),
        pytest.param({"tokens_amount": None}, "tokens_amount must be", id="null"),
        pytest.param({"tokens_amount": 1, "description": "x" * 501}, "description must", id="long description"),
        pytest.param({"tokens_amount": 1, "description": 7}, "description must", id="description no text"),
        pytest.param({"tokens_amount": 1, "description": "a\x00b"}, "description must", id="control characters"),
        pytest.param([1], "body must be an object", id="no object"),
    ],
)
async def test_a_bad_body(serve: Serve, body: object, error: str) -> None:
    alice = await buyer(serve)
    answer = await alice.shop.server("POST", "/api/tokens/consume", json=body, headers=bearer(alice.key))
    assert (answer.status, answer.json["success"]) == (400, False)
    assert answer.json["error"].startswith(error)
    assert await alice.balance() == 250_000


@on_memory
@pytest.mark.parametrize("amount", [1, 10**9, 1000.0])
async def test_amounts(serve: Serve, amount: float) -> None:
    alice = await buyer(serve, tiers__free=10**9)
    answer = await alice.consume(amount, description="x" * 500, unknown="dropped")
    assert (answer.status, answer.json["tokens_consumed"]) == (200, amount)
    assert b"." not in answer.content


@on_memory
async def test_a_store_that_is_full_deducts_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await buyer(serve)

    async def full(_: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as context:
        context.setattr(alice.shop.server.storage, "commit", full)
        answers = await asyncio.gather(*(alice.consume(1) for _ in range(3)))
    assert [(answer.status, answer.json) for answer in answers] == [
        (507, {"success": False, "error": "Internal server error"})
    ] * 3
    assert (await alice.consume(1)).json["tokens_balance"] == 249_999


# GET /api/tokens/transactions


async def test_transactions(serve: Serve) -> None:
    alice = await buyer(serve)
    shop = alice.shop
    spent = (await alice.consume(1000, description="Feature usage")).json["transaction_id"]
    shop.server.move_to("2025-11-20T12:00:01.5Z")
    await shop.ledger.purchase(alice.user_id, 500, "Purchase")
    reservation = await shop.ledger.reserve(alice.user_id, 375, "Transcription")
    await shop.ledger.release(reservation)
    found = await alice.transactions()
    assert found.keys() == {"success", "transactions", "next"}
    assert (found["success"], found["next"]) == (True, None)
    rows = found["transactions"]
    assert [set(row) for row in rows] == [
        {
            "transaction_id",
            "transaction_type",
            "tokens_amount",
            "tokens_balance_after",
            "description",
            "created_at",
        }
    ] * 5
    early, late = "2025-11-20T12:00:00.000Z", "2025-11-20T12:00:01.500Z"
    assert [tuple(row.values())[1:] for row in rows] == [
        ("refund", 375, 249_500, "Given back: Transcription", late),
        ("usage", -375, 249_125, "Transcription", late),
        ("purchase", 500, 249_500, "Purchase", late),
        ("usage", -1000, 249_000, "Feature usage", early),
        ("monthly_refresh", 250_000, 250_000, "Starting balance: free", early),
    ]
    assert rows[3]["transaction_id"] == spent
    assert rows[1]["transaction_id"] == reservation.transaction_id
    assert all(UUID.fullmatch(row["transaction_id"]) for row in rows)


async def test_transactions_page_by_page(serve: Serve) -> None:
    alice = await buyer(serve)
    bob = await another(alice.shop, "bob@example.com")
    await asyncio.gather(*(alice.consume(1) for _ in range(10)), *(bob.consume(1) for _ in range(3)))
    balances: list[int] = []
    cursor = ""
    while True:
        page = await alice.transactions(f"?limit=4{cursor}")
        balances += [row["tokens_balance_after"] for row in page["transactions"]]
        if page["next"] is None:
            break
        assert len(page["transactions"]) == 4
        cursor = f"&after={page['next']}"
    assert balances == [250_000 - 10 + n for n in range(11)]


@on_memory
@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("limit=0", "limit must be"),
        ("limit=1001", "limit must be"),
        ("limit=x", "limit must be"),
        ("after=x", "after must be the next of the page before"),
        ("after=W10", "after must be the next of the page before"),
    ],
)
async def test_a_bad_page(serve: Serve, query: str, error: str) -> None:
    alice = await buyer(serve)
    answer = await alice.get(f"/api/tokens/transactions?{query}")
    assert (answer.status, answer.json["success"]) == (400, False)
    assert answer.json["error"].startswith(error)


# POST /api/cron/refresh-tokens


async def test_refresh(serve: Serve) -> None:
    alice = await buyer(serve, "pro")
    bob = await another(alice.shop, "bob@example.com")
    await alice.shop.ledger.purchase(alice.user_id, 5000, "Purchase")
    await alice.consume(1_001_000)
    await bob.consume(1000)
    assert await refresh(alice.shop) == 0
    alice.shop.server.move_to("2025-12-01T00:00:00Z")
    await until(lambda: _has(alice, 1_004_000))
    answer = (await alice.get("/api/tokens/balance")).json
    assert (answer["tokens_used_this_month"], answer["token_refresh_date"]) == (0, "2026-01-01T00:00:00Z")
    answer = (await bob.get("/api/tokens/balance")).json
    assert (answer["tokens_balance"], answer["tokens_used_this_month"]) == (249_000, 0)
    assert await refresh(alice.shop) == 0
    last = (await alice.transactions("?limit=1"))["transactions"][0]
    assert (last["transaction_type"], last["tokens_amount"]) == ("monthly_refresh", 1_000_000)
    assert last["description"] == "Monthly refresh: 2025-12"


async def _has(buyer: Buyer, tokens: int) -> bool:
    return await buyer.balance() == tokens


async def test_an_outside_cron_is_told_how_many_were_refreshed(serve: Serve) -> None:
    alice = await buyer(serve, "pro", refresh_schedule="0 0 1 1 *")
    for number in range(11):
        await another(alice.shop, f"{number}@example.com", "pro" if number % 2 else "free")
    await alice.consume(1000)
    alice.shop.server.move_to("2025-12-03T00:00:00Z")
    assert await alice.balance() == 999_000
    assert await refresh(alice.shop) == 12
    assert await alice.balance() == 1_000_000
    assert await refresh(alice.shop) == 0


@on_memory
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="without"),
        pytest.param({"Authorization": "Bearer another"}, 401, id="another"),
        pytest.param({"Authorization": "Basic the secret of cron"}, 401, id="another scheme"),
        pytest.param({"X-API-Key": "the secret of cron"}, 401, id="another header"),
        pytest.param(CRON, 200, id="the secret"),
    ],
)
async def test_who_may_refresh(serve: Serve, headers: dict[str, str], status: int) -> None:
    shop = (await buyer(serve)).shop
    answer = await shop.server("POST", "/api/cron/refresh-tokens", headers=headers)
    assert (answer.status, answer.json["success"]) == (status, status == 200)
    assert status == 200 or answer.json["error"] == "Invalid or missing cron secret"


@on_memory
@pytest.mark.parametrize("headers", [{}, CRON, {"Authorization": "Bearer "}])
async def test_nobody_may_refresh_where_no_secret_is_set(serve: Serve, headers: dict[str, str]) -> None:
    shop = await open_shop(serve)
    answer = await shop.server("POST", "/api/cron/refresh-tokens", headers=headers)
    assert (answer.status, answer.json["success"]) == (403, False)
    assert "CRON_SECRET is not set" in answer.json["error"]


# Idempotency-Key


async def test_the_same_key_gives_the_first_answer_again(serve: Serve) -> None:
    alice = await buyer(serve)
    first = await alice.consume(1000, once="k", description="x")
    await alice.consume(1)
    again = await alice.consume(1000.0, once="k", description="x", unknown="dropped")
    assert (again.status, again.content) == (first.status, first.content)
    assert await alice.balance() == 248_999
    alice.shop.server.move_to("2025-11-21T11:59:59.999Z")
    assert (await alice.consume(1000, once="k", description="x")).content == first.content
    alice.shop.server.move_to("2025-11-21T12:00:00Z")
    assert (await alice.consume(1000, once="k", description="x")).json["tokens_balance"] == 247_999


@pytest.mark.parametrize(
    "other", [{"tokens": 1001}, {"tokens": 1000, "description": "y"}], ids=["another amount", "another description"]
)
async def test_the_same_key_with_another_request(serve: Serve, other: dict[str, Any]) -> None:
    alice = await buyer(serve)
    await alice.consume(1000, once="k")
    answer = await alice.consume(**other, once="k")
    assert (answer.status, answer.json) == (
        422,
        {"success": False, "error": "This Idempotency-Key was used with another request"},
    )
    assert await alice.balance() == 249_000


async def test_a_refusal_for_want_of_tokens_is_kept(serve: Serve) -> None:
    alice = await buyer(serve, tiers__free=100)
    first = await alice.consume(375, once="k")
    await alice.shop.ledger.purchase(alice.user_id, 1000, "Purchase")
    again = await alice.consume(375, once="k")
    assert (again.status, again.content) == (402, first.content)
    assert (await alice.consume(375, once="l")).json["tokens_balance"] == 725


async def test_other_errors_are_not_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await buyer(serve)

    async def full(_: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as context:
        context.setattr(alice.shop.server.storage, "commit", full)
        assert (await alice.consume(1, once="k")).status == 507
    assert (await alice.consume(0, once="k")).status == 400
    assert (await alice.consume(1, once="k")).json["tokens_balance"] == 249_999


async def test_keys_are_each_profiles_own_and_all_its_devices(serve: Serve) -> None:
    alice = await buyer(serve)
    bob = await another(alice.shop, "bob@example.com")
    phone = await another(alice.shop, "alice@example.com")
    first = await alice.consume(1, once="k")
    assert (await phone.consume(1, once="k")).content == first.content
    assert (await bob.consume(1, once="k")).json["transaction_id"] != first.json["transaction_id"]


@on_memory
@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_bad_key(serve: Serve, key: str) -> None:
    alice = await buyer(serve)
    answer = await alice.consume(1, once=key)
    assert (answer.status, answer.json) == (
        400,
        {"success": False, "error": "Idempotency-Key must be 1 to 255 characters"},
    )


async def test_while_the_first_is_running(serve: Serve) -> None:
    alice = await buyer(serve)
    answers = await asyncio.gather(*(alice.consume(1000, once="k") for _ in range(20)))
    bodies = {answer.content for answer in answers if answer.status == 200}
    running = [answer for answer in answers if answer.status != 200]
    assert len(bodies) == 1
    for answer in running:
        assert (answer.status, answer.headers["Retry-After"]) == (409, "1")
        assert answer.json == {"success": False, "error": "A request with this Idempotency-Key is running"}
    assert await alice.balance() == 249_000


# Many at a time


async def test_fifty_spenders_of_one_balance(serve: Serve) -> None:
    """Each gets an answer of its own, in the order in which they were served; who comes too late is refused."""
    alice = await buyer(serve, tiers__free=30)
    answers = await asyncio.gather(*(alice.consume(1) for _ in range(50)))
    spent = [answer.json for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    assert sorted(body["tokens_balance"] for body in spent) == list(range(30))
    assert len({body["transaction_id"] for body in spent}) == 30
    assert [(answer.status, answer.json["tokens_balance"]) for answer in refused] == [(402, 0)] * 20
    rows = (await alice.transactions())["transactions"]
    assert [row["tokens_balance_after"] for row in rows] == list(range(31))
    ids = {row["tokens_balance_after"]: row["transaction_id"] for row in rows}
    assert all(ids[body["tokens_balance"]] == body["transaction_id"] for body in spent)
