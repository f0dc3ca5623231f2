"""contracts/metering.md, "Who": license keys, what they open, and the machines that they are bound to; on every back
end."""

import re
from typing import Any

import pytest

from ..server.apis.conftest import Serve, on_memory
from ..server.apis.licensed import FINGERPRINT, Shop, bearer, open_shop

KEY = "ABCD-1234-EFGH-5678"


@pytest.fixture
async def shop(serve: Serve) -> Shop:
    return await open_shop(serve)


@pytest.mark.parametrize(("tier", "tokens"), [("free", 250_000), ("pro", 1_000_000), ("enterprise", 10_000_000)])
async def test_new_profiles_start_with_tokens(shop: Shop, tier: Any, tokens: int) -> None:
    license_, key = await shop.license(tier=tier)
    assert re.fullmatch(r"[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}", key)
    profile = await shop.ledger.profile(license_.user_id)
    assert (profile.email, profile.subscription_tier, profile.tokens_balance, profile.tokens_used_this_month) == (
        "alice@example.com",
        tier,
        tokens,
        0,
    )
    assert (license_.device_name, license_.is_active) == ("Desktop", True)
    assert (await shop.balance(key)).json["subscription_tier"] == tier


async def test_the_config_sets_tiers(serve: Serve) -> None:
    shop = await open_shop(serve, {"apis.metering.tiers.free": 7})
    _, key = await shop.license()
    assert (await shop.balance(key)).json["tokens_balance"] == 7


async def test_validate(shop: Shop) -> None:
    license_, key = await shop.license(tier="pro", device_name="Laptop", key=KEY)
    for _ in range(2):  # the first binds it
        answer = await shop.validate(key)
        assert (answer.status, answer.json) == (
            200,
            {
                "valid": True,
                "user_id": license_.user_id,
                "device_id": license_.device_id,
                "tier": "pro",
                "storage_limit_mb": 50,
                "user_name": "alice",
                "message": "License is valid for Laptop",
            },
        )


async def test_validate_refuses(shop: Shop) -> None:
    license_, key = await shop.license()
    assert (await shop.validate(key)).status == 200

    async def refusal(key: str, fingerprint: str = FINGERPRINT) -> tuple[int, Any]:
        answer = await shop.validate(key, fingerprint)
        return answer.status, answer.json

    unknown = (404, {"success": False, "error": "Unknown license key"})
    assert await refusal("AAAA-BBBB-CCCC-0000") == unknown
    assert await refusal("no key at all") == unknown
    bound = (403, {"success": False, "error": "License is bound to another device"})
    assert await refusal(key, "0" * 64) == bound
    await shop.licenses.deactivate(license_.license_id)
    inactive = (403, {"success": False, "error": "Device not active"})
    assert await refusal(key) == await refusal(key, "0" * 64) == inactive
    await shop.licenses.activate(license_.license_id)
    assert await refusal(key, "0" * 64) == bound
    await shop.licenses.reset(license_.license_id)
    assert (await shop.validate(key, "0" * 64)).status == 200
    assert await refusal(key) == bound


@on_memory
@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param({"device_fingerprint": FINGERPRINT}, "license_key is required", id="no key"),
        pytest.param({"license_key": KEY}, "device_fingerprint is required", id="no fingerprint"),
        pytest.param(
            {"license_key": KEY, "device_fingerprint": "0" * 63},
            "device_fingerprint must be 64 hexadecimal digits",
            id="too short",
        ),
        pytest.param(
            {"license_key": KEY, "device_fingerprint": "g" * 64},
            "device_fingerprint must be 64 hexadecimal digits",
            id="no digits",
        ),
        pytest.param(
            {"license_key": 5, "device_fingerprint": FINGERPRINT},
            "license_key must be a string of 1 to 255 characters",
            id="a number",
        ),
        pytest.param([], "body must be an object", id="a list"),
    ],
)
async def test_validate_of_a_bad_body(shop: Shop, body: Any, error: str) -> None:
    answer = await shop.server("POST", "/api/license/validate", json=body)
    assert (answer.status, answer.json) == (400, {"success": False, "error": error})


@on_memory
@pytest.mark.parametrize("headers", [{}, bearer("AAAA-BBBB-CCCC-0000"), bearer("no key at all")], ids=str)
async def test_without_a_key(shop: Shop, headers: dict[str, str]) -> None:
    await shop.license()
    answer = await shop.server.get("/api/tokens/balance", headers=headers)
    assert (answer.status, answer.json) == (401, {"success": False, "error": "Invalid or missing license key"})


async def test_a_device_that_is_not_active(shop: Shop) -> None:
    license_, key = await shop.license()
    await shop.licenses.deactivate(license_.license_id)
    answer = await shop.balance(key)
    assert (answer.status, answer.json) == (403, {"success": False, "error": "Device not active"})


@on_memory
async def test_ten_requests_a_minute_of_a_key(serve: Serve) -> None:
    shop = await open_shop(serve, {"apis.metering.rate_limit": "10/minute"})
    _, key = await shop.license()
    answers = [await shop.balance(key) for _ in range(11)]
    assert [answer.status for answer in answers] == [200] * 10 + [429]
    assert answers[-1].json == {"success": False, "error": "Rate limit exceeded"}
    assert answers[-1].headers["Retry-After"] == "60"
