"""Metering's licenses: who may call, how often, and what a key's text tells (contracts/metering.md, "Who")."""

import asyncio
import re
from hashlib import blake2b
from typing import Any
from unittest.mock import patch

import pytest

from homeport.server.apis.metering import licenses as module
from homeport.server.apis.metering.licenses import LICENSES, LicenseError, Licenses, checked_key, new_key
from homeport.storage import Query, Storage

from .conftest import Answer, Log, Serve, on_memory
from .licensed import ELSEWHERE, FINGERPRINT, Shop, bearer, open_shop

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
UNKNOWN = "AAAA-BBBB-CCCC-0000"
OTHER = "0" * 64
CONTRACT_LIMIT = {"apis.metering.rate_limit": "10/minute"}
PROXIED = CONTRACT_LIMIT | {"server.trusted_proxies": ["127.0.0.1/32"]}


@pytest.fixture
async def shop(serve: Serve) -> Shop:
    return await open_shop(serve)


def refusal(answer: Answer) -> tuple[int, Any]:
    return answer.status, answer.json


def unauthorized() -> tuple[int, Any]:
    return 401, {"success": False, "error": "Invalid or missing license key"}


# Keys


def test_new_keys_are_keys() -> None:
    keys = {checked_key(new_key()) for _ in range(1000)}
    assert len(keys) == 1000
    assert {*"".join(keys)} == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"}


@pytest.mark.parametrize(
    "key",
    ["", "ABCD-1234-EFGH", "abcd-1234-efgh-5678", "ABCD-1234-EFGH-5678\n", "ÀBCD-1234-EFGH-5678", "ABCD1234EFGH5678"],
    ids=ascii,
)
def test_no_keys(key: str) -> None:
    with pytest.raises(ValueError, match="XXXX-XXXX-XXXX-XXXX"):
        checked_key(key)


@pytest.mark.parametrize("email", ["a", "a@", "@b.c", "a b@c.d", "a@b..c", "a@-b.c", "a\n@b.c", f"{'a' * 251}@b.c"])
def test_no_emails(email: str) -> None:
    with pytest.raises(ValueError, match=r"a@example\.com"):
        module.checked_email(email)


async def test_a_key_opens_its_profile(shop: Shop) -> None:
    license_, key = await shop.license()
    assert re.fullmatch(r"[A-Z0-9]{4}(-[A-Z0-9]{4}){3}", key)
    answer = await shop.balance(key)
    assert (answer.status, answer.json["tokens_balance"]) == (200, 250_000)
    assert (await shop.ledger.profile(license_.user_id)).email == "alice@example.com"


async def test_the_store_and_the_log_have_no_key(shop: Shop, log: Log) -> None:
    _, key = await shop.license()
    assert (await shop.balance(key)).status == 200
    assert (await shop.validate(key)).status == 200
    async with shop.server.storage.snapshot() as snapshot:
        async for item in snapshot.changes:
            assert key not in repr(item)
    assert key not in log.stream.getvalue()


async def test_another_license_is_another_device_of_the_profile(shop: Shop) -> None:
    first, one = await shop.license("Alice@Example.com", tier="pro")
    second, two = await shop.license("alice@example.COM", device_name="Laptop")
    assert first.user_id == second.user_id
    assert first.device_id != second.device_id
    assert [(await shop.balance(key)).json["tokens_balance"] for key in (one, two)] == [1_000_000] * 2


async def test_a_profiles_tier_is_not_changed_by_a_license(shop: Shop) -> None:
    await shop.license(tier="pro")
    with pytest.raises(LicenseError, match="has the tier pro"):
        await shop.license(tier="free")
    await shop.license(tier="pro")


async def test_a_given_key_is_taken_once(shop: Shop) -> None:
    given = "ABCD-1234-EFGH-5678"
    assert (await shop.license(key=given))[1] == given
    with pytest.raises(LicenseError, match="with this key"):
        await shop.license("bob@example.com", key=given)
    assert len((await shop.server.storage.find(Query(LICENSES))).records) == 1


async def test_at_once(shop: Shop) -> None:
    """Servers that make the first licenses of a store and of a profile together agree on both."""
    storage, clock = shop.server.storage, shop.server.clock
    others = [Licenses(storage, clock, shop.ledger) for _ in range(5)]
    made = await asyncio.gather(*(licenses.create("alice@example.com") for licenses in others))
    assert len({license_.user_id for license_, _ in made}) == 1
    assert [(await shop.balance(key)).status for _, key in made] == [200] * 5


# Who may call


@on_memory
@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        pytest.param({}, "Bearer", id="nothing"),
        pytest.param({"Authorization": "Basic QUJDRA=="}, "Bearer", id="another scheme"),
        pytest.param({"X-API-Key": UNKNOWN}, "Bearer", id="another header"),
        pytest.param(bearer(UNKNOWN), 'Bearer error="invalid_token"', id="unknown"),
        pytest.param(bearer("x"), 'Bearer error="invalid_token"', id="malformed"),
        pytest.param(bearer("a.b.c"), 'Bearer error="invalid_token"', id="like a token"),
    ],
)
async def test_who_has_no_key_is_refused(shop: Shop, headers: dict[str, str], challenge: str) -> None:
    await shop.license()
    answer = await shop.server.get("/api/tokens/balance", headers=headers)
    assert refusal(answer) == unauthorized()
    assert answer.headers["WWW-Authenticate"] == challenge


async def test_a_key_that_is_no_text_is_refused(shop: Shop) -> None:
    head = b"GET /api/tokens/balance HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xe9\xff\r\n\r\n"
    assert refusal((await shop.server.raw(head))[0]) == unauthorized()


async def test_a_device_is_kept_out_at_once(shop: Shop) -> None:
    license_, key = await shop.license()
    _, other = await shop.license()
    await shop.licenses.deactivate(license_.license_id)
    assert refusal(await shop.balance(key)) == (403, {"success": False, "error": "Device not active"})
    assert (await shop.balance(other)).status == 200
    await shop.licenses.activate(license_.license_id)
    assert (await shop.balance(key)).status == 200


class Counting:
    """What a store is asked for."""

    def __init__(self, storage: Storage) -> None:
        self.asked: list[Any] = []
        get = storage.get

        async def counted(collection: Any, ids: Any) -> Any:
            self.asked.append((collection.name, len(ids)))
            return await get(collection, ids)

        self.patch = patch.object(storage, "get", counted)


@pytest.mark.parametrize("used", [False, True], ids=["a new store", "a store with licenses"])
async def test_malformed_and_unknown_keys_cost_the_same(shop: Shop, used: bool) -> None:
    """One digest and the same reads, whatever the text: what takes the same steps takes the same time."""
    if used:
        await shop.license()
    costs = []
    for key in (UNKNOWN, "ABCD-1234-EFGH-567", "abcd-1234-efgh-5678", "x" * 19, "é" * 19, "\0", ""):
        counting = Counting(shop.server.storage)
        with counting.patch, patch.object(module, "blake2b", wraps=blake2b) as digest:
            assert await shop.licenses.find(key) is None
        costs.append((counting.asked, digest.call_count))
    first, *rest = costs[1:] if used else costs  # the key of the hashes was read with the first
    assert all(cost == first for cost in rest)
    assert first[1] == 1


# How often


@on_memory
async def test_ten_requests_a_minute(serve: Serve) -> None:
    """Of a key, wherever they come from, and also where they are refused; another key has its own."""
    shop = await open_shop(serve, CONTRACT_LIMIT)
    (license_, key), (_, other) = await shop.license(), await shop.license()
    assert [(await shop.balance(key)).status for _ in range(5)] == [200] * 5
    await shop.licenses.deactivate(license_.license_id)
    assert [(await shop.balance(key)).status for _ in range(2)] == [403] * 2
    await shop.licenses.activate(license_.license_id)
    assert [(await shop.validate(key)).status for _ in range(3)] == [200] * 3
    for answer in (await shop.balance(key), await shop.validate(key)):
        assert refusal(answer) == (429, {"success": False, "error": "Rate limit exceeded"})
        assert answer.headers["Retry-After"] == "60"
    assert (await shop.balance(other)).status == 200
    shop.server.clock.advance(60)
    assert (await shop.balance(key)).status == 200


@on_memory
@pytest.mark.parametrize("how", ["header", "body"])
async def test_keys_cannot_be_guessed_at_a_rate(serve: Serve, how: str) -> None:
    """Ten a minute of an address, of whatever form, with every operation that takes a key."""
    shop = await open_shop(serve, PROXIED)
    _, key = await shop.license()

    async def guess(text: str, headers: dict[str, str]) -> int:
        if how == "body":
            return (await shop.validate(text, headers=headers)).status
        return (await shop.server.get("/api/tokens/balance", headers={**bearer(text), **headers})).status

    guesses = [f"AAAA-BBBB-CCCC-{n:04}" for n in range(5)] + [f"malformed {n}" for n in range(5)]
    assert {await guess(text, ELSEWHERE) for text in guesses} == {404 if how == "body" else 401}
    assert await guess(UNKNOWN, ELSEWHERE) == 429
    assert await guess(key, ELSEWHERE) == 429
    assert await guess(key, {"X-Forwarded-For": "203.0.113.8"}) == 200
    shop.server.clock.advance(60)
    assert await guess(key, ELSEWHERE) == 200


# Fingerprints


async def test_of_racing_machines_one_is_bound(shop: Shop) -> None:
    _, key = await shop.license()
    fingerprints = [f"{n:064x}" for n in range(8)]
    answers = await asyncio.gather(*(shop.validate(key, fingerprint) for fingerprint in fingerprints))
    assert sorted(answer.status for answer in answers) == [200] + [403] * 7
    winner = next(one for one, answer in zip(fingerprints, answers, strict=True) if answer.status == 200)
    for fingerprint in fingerprints:
        assert (await shop.validate(key, fingerprint)).status == (200 if fingerprint == winner else 403)


async def test_a_fingerprint_in_another_case_is_the_same(shop: Shop) -> None:
    _, key = await shop.license()
    assert (await shop.validate(key, FINGERPRINT)).status == 200
    assert (await shop.validate(key, FINGERPRINT.upper())).status == 200


async def test_an_inactive_device_is_not_bound(shop: Shop) -> None:
    license_, key = await shop.license()
    await shop.licenses.deactivate(license_.license_id)
    assert (await shop.validate(key, OTHER)).status == 403
    await shop.licenses.activate(license_.license_id)
    assert (await shop.validate(key)).status == 200


async def test_a_reset_license_is_bound_anew(shop: Shop) -> None:
    license_, key = await shop.license()
    assert (await shop.validate(key)).status == 200
    await shop.licenses.reset(license_.license_id)
    assert (await shop.validate(key, OTHER)).status == 200
    assert (await shop.validate(key)).status == 403


@on_memory
@pytest.mark.parametrize("change", ["activate", "deactivate", "reset"])
async def test_no_such_license(shop: Shop, change: str) -> None:
    with pytest.raises(LicenseError, match="there is no license x"):
        await getattr(shop.licenses, change)("x")
