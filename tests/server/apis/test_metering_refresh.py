"""The monthly refresh: by the schedule, at start where it was missed, and once, whatever the clock does."""

import asyncio
from typing import Any

import pytest

from homeport.server.apis.metering.audit import audit
from homeport.server.apis.metering.documents import PROFILES, next_month
from homeport.storage import Query, Storage, StorageFull, walk

from .conftest import Log, Serve, Served, on_memory, until
from .licensed import Shop, open_shop

TIERS = {f"apis.metering.tiers.{tier}": tokens for tier, tokens in (("free", 100), ("pro", 150), ("enterprise", 400))}


async def shop_with(serve: Serve, *tiers: str, now: str = "2025-11-20T12:00:00Z", **settings: Any) -> Shop:
    """A server with a profile for each tier, named by its number, of which each has spent 30 tokens."""
    given = TIERS | {f"apis.metering.{name}": value for name, value in settings.items()}
    shop = await open_shop(serve, given, now=now)
    for number, tier in enumerate(tiers):
        made, _ = await shop.license(f"{number}@example.com", tier=tier)
        await shop.ledger.consume(made.user_id, 30, "", lambda _: ())
    return shop


async def balances(storage: Storage) -> dict[str, tuple[int, int, str]]:
    """By email, what is left, what was used this month, and the month."""
    profiles = [record.decode() async for record in walk(storage, Query(PROFILES))]
    return {p["email"][0]: (p["tokens_balance"], p["tokens_used_this_month"], p["month"]) for p in profiles}


async def settled(storage: Storage, month: str) -> dict[str, tuple[int, int]]:
    """What is left and what was used, once the month has begun for everybody."""

    async def begun() -> bool:
        return {at for *_, at in (await balances(storage)).values()} == {month}

    await until(begun)
    return {name: (left, used) for name, (left, used, _) in (await balances(storage)).items()}


async def quiet(server: Served) -> None:
    """Gives jobs time to do what they should not."""
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert {problem async for _, problem in audit(server.storage)} <= {None}


async def test_the_servers_own_schedule(serve: Serve) -> None:
    shop = await shop_with(serve, "free", "pro", "enterprise")
    shop.server.move_to("2025-11-30T23:59:59.999Z")
    await quiet(shop.server)
    assert await settled(shop.server.storage, "2025-11") == {"0": (70, 30), "1": (120, 30), "2": (370, 30)}
    shop.server.move_to("2025-12-01T00:00:00Z")
    assert await settled(shop.server.storage, "2025-12") == {"0": (70, 0), "1": (150, 0), "2": (400, 0)}


async def test_one_that_was_missed_is_made_up_for_at_start(serve: Serve) -> None:
    shop = await shop_with(serve, "free", "pro")
    later = await shop_with(serve, now="2026-02-14T00:00:00Z")
    assert await settled(later.server.storage, "2026-02") == {"0": (70, 0), "1": (150, 0)}
    assert await balances(shop.server.storage) == {"0": (70, 0, "2026-02"), "1": (150, 0, "2026-02")}


async def test_several_servers_and_restarts_refresh_once(serve: Serve) -> None:
    shop = await shop_with(serve, *["pro"] * 20)
    servers = [shop, *[await shop_with(serve) for _ in range(3)]]
    for one in servers:
        one.server.move_to("2025-12-01T00:00:00Z")
    await settled(shop.server.storage, "2025-12")
    await shop_with(serve, now="2025-12-01T00:00:00Z")
    await quiet(shop.server)
    profiles = [record.decode() async for record in walk(shop.server.storage, Query(PROFILES))]
    assert [profile["entries"] for profile in profiles] == [3] * 20


async def test_a_clock_that_goes_back_and_forth(serve: Serve) -> None:
    shop = await shop_with(serve, "pro", now="2025-12-31T23:59:59Z")
    for time in ("2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2025-11-01T00:00:00Z"):
        shop.server.move_to(time)
        assert await settled(shop.server.storage, "2026-01") == {"0": (150, 0)}
        await quiet(shop.server)
    [record] = (await shop.server.storage.find(Query(PROFILES))).records
    assert record.decode()["entries"] == 3
    assert (await shop.ledger.profile(record.id)).token_refresh_date == "2026-02-01T00:00:00Z"


async def test_another_day_of_the_month(serve: Serve) -> None:
    """A start before it is not the time for it, however new the month."""
    shop = await shop_with(serve, "pro", now="2025-11-20T00:00:00Z", refresh_schedule="30 4 15 * *")
    server = (await shop_with(serve, now="2025-12-10T00:00:00Z", refresh_schedule="30 4 15 * *")).server
    await quiet(server)
    assert await balances(shop.server.storage) == {"0": (120, 30, "2025-11")}
    server.move_to("2025-12-15T04:30:00Z")
    assert await settled(server.storage, "2025-12") == {"0": (150, 0)}


async def test_one_that_breaks_off_goes_on_where_it_was(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """After five minutes, and nobody is refreshed twice."""
    shop = await shop_with(serve, *["pro"] * 100)
    storage = shop.server.storage
    commit, left = storage.commit, 70

    async def failing(writes: Any) -> Any:
        nonlocal left
        if left == 0:
            raise StorageFull("no room")
        left -= 1
        return await commit(writes)

    monkeypatch.setattr(storage, "commit", failing)
    shop.server.move_to("2025-12-01T00:00:00Z")

    async def broken_off() -> bool:
        return "it is tried again in five minutes" in log.stream.getvalue()

    await until(broken_off)
    months = [record.decode()["month"] async for record in walk(storage, Query(PROFILES))]
    assert 0 < months.count("2025-12") <= 70
    left = 1_000_000
    shop.server.clock.advance(300)
    await settled(storage, "2025-12")
    assert [record.decode()["entries"] async for record in walk(storage, Query(PROFILES))] == [3] * 100
    assert {problem async for _, problem in audit(storage)} == {None}


@on_memory
async def test_the_loop_is_free_meanwhile(serve: Serve) -> None:
    shop = await shop_with(serve)
    storage = shop.server.storage
    for start in range(0, 2000, 100):
        names = range(start, start + 100)
        await storage.commit([write for n in names for write in shop.ledger.opened(f"{n}", f"{n}@x.y", "pro")])
    shop.server.move_to("2025-12-01T00:00:00Z")
    loop = asyncio.get_running_loop()
    longest = 0.0
    while (await storage.get(PROFILES, ["999"]))["999"].decode()["month"] != "2025-12":
        begin = loop.time()
        await asyncio.sleep(0)
        longest = max(longest, loop.time() - begin)
    assert longest < 0.25  # a loaded machine; all of them at a time take as long as a second


@pytest.mark.parametrize(
    ("month", "following"),
    [("2025-11", "2025-12"), ("2025-12", "2026-01"), ("2026-01", "2026-02"), ("9998-12", "9999-01")],
)
def test_the_month_after_one(month: str, following: str) -> None:
    assert next_month(month) == following
