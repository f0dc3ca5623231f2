"""Who may report, how often and how much: limits, registration, networks, and that they hold under concurrency."""

import asyncio
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from homeport.server.apis.device_usage.ledger import Ledger, user_id
from homeport.server.app import create_app
from homeport.server.config import load_config
from homeport.storage import Storage

from .conftest import KEY, Answer, Client, Log, Serve, Served, on_memory, report, until, user_key

PROXIED = {"server.trusted_proxies": ["127.0.0.1", "::1"]}


async def user(storage: Storage, key: str = KEY) -> dict[str, Any] | None:
    """What is kept of a user."""
    return dict(await Ledger(storage).users()).get(user_id(key))


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


# Rate limits


@on_memory
@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        pytest.param("203.0.113.7", "203.0.113.8", False, id="IPv4"),
        pytest.param("2001:db8::1", "2001:db8::ffff", True, id="one IPv6 network"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="two IPv6 networks"),
        pytest.param("203.0.113.7", "::ffff:203.0.113.7", True, id="IPv4 as IPv6"),
        pytest.param("203.0.113.7", "198.51.100.1, 203.0.113.7", True, id="what the client says of itself"),
        pytest.param("203.0.113.7", "203.0.113.7:5000", True, id="with a port"),
        pytest.param("203.0.113.7", "203.0.113.7, 127.0.0.1", True, id="two proxies"),
    ],
)
async def test_an_address_is_who_stands_before_the_proxies(serve: Serve, first: str, second: str, shared: bool) -> None:
    server = await serve(PROXIED | {"rate_limit": "2/hour"})
    for number in range(3):
        key = user_key(f"user {number}")
        answer = await server.sync(report(userKey=key), headers={"X-Forwarded-For": first})
        assert answer.status == (200 if number < 2 else 429)
    answer = await server.sync(report(userKey=user_key("other")), headers={"X-Forwarded-For": second})
    assert answer.status == (429 if shared else 200)


@on_memory
async def test_loopback_callers_have_no_address_limit(serve: Serve) -> None:
    server = await serve({"rate_limit": "2/hour"})
    for number in range(5):
        assert (await server.sync(report(userKey=user_key(f"user {number}")))).status == 200
    forwarded = [await server.sync(report(userKey=user_key("b")), headers={"Forwarded": "for=x"}) for _ in range(3)]
    assert [answer.status for answer in forwarded] == [200, 200, 429]  # nor is who comes by a proxy a loopback caller


@on_memory
async def test_a_refused_report_is_not_kept(serve: Serve) -> None:
    server = await serve({"rate_limit": "2/hour"})
    for hour in range(4):
        await server.sync(report(timestamp=f"2025-06-03T0{hour}:00:00Z"))
    server.clock.advance(3600)
    assert len(await server.history()) == 2


@on_memory
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/api/stats/{}", 404, id="stats"),
        pytest.param("GET", "/api/devices/{}", 200, id="devices"),
        pytest.param("GET", "/api/history/{}", 200, id="history"),
        pytest.param("DELETE", "/api/device/{}/M4x.local", 404, id="delete"),
    ],
)
async def test_an_unknown_key_is_a_guess_wherever_it_is_asked_for(
    serve: Serve, method: str, path: str, status: int
) -> None:
    server = await serve(PROXIED)
    there = {"X-Forwarded-For": "203.0.113.7"}
    await server.sync()
    for _ in range(12):  # a known one is none, even where it has nothing of the kind
        known = path.format(user_key()).replace("M4x.local", "other")
        assert (await server(method, known, headers=there)).status in (200, 404)
    for number in range(10):
        answer = await server(method, path.format(user_key(f"guess {number}")), headers=there)
        assert answer.status == status
    assert (await server(method, path.format(user_key("one more")), headers=there)).status == 429


@on_memory
async def test_guesses_at_keys(serve: Serve) -> None:
    """Ten a minute, from one address; loopback callers may ask on."""
    server = await serve(PROXIED)
    await server.sync()
    there: dict[str, Any] = {"headers": {"X-Forwarded-For": "203.0.113.7"}}
    for number in range(10):
        assert (await server.stats(user_key(f"guess {number}"), **there)).status == 404
    for answer in (
        await server.stats(user_key("guess 10"), **there),
        await server.stats(**there),  # a right one is no longer told from a wrong one
        await server.sync(**there),
    ):
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        assert answer.json["status"] == "error"
    assert (await server.stats(headers={"X-Forwarded-For": "203.0.113.8"})).status == 200
    for number in range(20):
        assert (await server.stats(user_key(f"guess {number}"))).status == 404
    server.clock.advance(59.999999)
    assert (await server.stats(**there)).status == 429
    server.clock.advance(0.000001)
    assert (await server.stats(**there)).status == 200


# Networks


@on_memory
@pytest.mark.parametrize(
    ("networks", "address", "status"),
    [
        pytest.param(["203.0.113.0/24"], "203.0.113.7", 200, id="within"),
        pytest.param(["203.0.113.0/24"], "203.0.114.7", 403, id="outside"),
        pytest.param(["203.0.113.7"], "203.0.113.7", 200, id="one address"),
        pytest.param(["203.0.113.0/24"], "::ffff:203.0.113.7", 200, id="IPv4 as IPv6"),
        pytest.param(["2001:db8::/32"], "2001:db8:5::1", 200, id="IPv6"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", 403, id="all of IPv4"),
        pytest.param(["203.0.113.0/24", "10.0.0.0/8"], "10.9.8.7", 200, id="the second"),
    ],
)
async def test_allowed_networks(serve: Serve, networks: list[str], address: str, status: int) -> None:
    server = await serve(PROXIED | {"allow_networks": networks})
    answer = await server.sync(headers={"X-Forwarded-For": address})
    assert answer.status == status
    assert await user(server.storage) == ({"devices": 1, "registered": False} if status == 200 else None)


@on_memory
async def test_networks_are_of_who_reports_not_of_who_looks_after_the_server(serve: Serve) -> None:
    server = await serve({"allow_networks": ["203.0.113.0/24"]})
    assert (await server.sync()).status == 403
    assert (await server.get("/")).status == 200


@on_memory
async def test_a_unix_socket_is_in_no_network(storage: Storage, log: Log, tmp_path: Path) -> None:
    overrides = {"storage.url": "memory:", "apis.device_usage.allow_networks": ["0.0.0.0/0", "::/0"]}
    runner = web.AppRunner(create_app(load_config(environ={}, overrides=overrides), storage=storage))
    with redirect_stderr(log.stream):
        await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "socket")).start()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "socket"))) as session:
        answer = await Client("http://localhost", session).sync()
    await runner.cleanup()
    assert (answer.status, answer.json["message"]) == (403, "This server does not take requests from your network")


# Registration


async def test_a_registered_user(serve: Serve) -> None:
    """Comes, reports, is removed, keeps what was reported, and may come back."""
    server = await serve({"registration": "closed"})
    ledger, id = Ledger(server.storage), user_id(KEY)
    assert await ledger.register(id, True)
    assert not await ledger.register(id, True)
    assert await user(server.storage) == {"devices": 0, "registered": True}
    assert (await server.stats()).status == 404
    assert (await server.sync()).status == 200
    assert await user(server.storage) == {"devices": 1, "registered": True}
    assert await ledger.register(id, False)
    assert not await ledger.register(id, False)
    for answer in (await server.sync(), await server.sync(report(hostname="mini.local"))):
        assert (answer.status, answer.json["message"]) == (403, "This user key is not registered here")
    assert await server.devices() == ["M4x.local"]
    assert await ledger.register(id, True)
    assert (await server.sync()).status == 200
    assert (await server("DELETE", f"/api/device/{KEY}/M4x.local")).status == 200
    assert await user(server.storage) == {"devices": 0, "registered": True}
    assert await ledger.register(id, False)
    assert await user(server.storage) is None


async def test_registration_is_for_reports_alone(serve: Serve) -> None:
    """What a user reported before it was closed can be seen and removed."""
    server = await serve()
    await server.sync()
    server = await serve({"registration": "closed"})
    assert (await server.sync()).status == 403
    assert (await server.stats()).status == 200
    assert len(await server.history()) == 1
    assert (await server("DELETE", f"/api/device/{KEY}/M4x.local")).status == 200
    assert await user(server.storage) is None


async def test_registered_users_count_as_users(serve: Serve) -> None:
    server = await serve({"registration": "closed", "max_users": 2})
    for name in ("a", "b"):
        await Ledger(server.storage).register(user_id(user_key(name)), True)
    assert (await server.sync(report(userKey=user_key("a")))).status == 200
    assert (await server.sync(report(userKey=user_key("c")))).status == 403


# Many at once


async def test_50_machines_of_one_user_at_once(server: Served) -> None:
    hosts = [f"m{number}" for number in range(50)]
    answers = await asyncio.gather(*(server.sync(report(hostname=host, usage__totalTokens=7)) for host in hosts))
    assert statuses(answers) == {200: 50}
    assert await user(server.storage) == {"devices": 50, "registered": False}
    assert (await server.stats()).json["totalTokens"] == 350
    assert sorted(await server.devices()) == sorted(hosts)


async def test_no_more_devices_than_allowed_however_they_come(serve: Serve) -> None:
    server = await serve({"max_devices_per_user": 10})
    hosts = [f"m{number}" for number in range(30)]
    answers = await asyncio.gather(*(server.sync(report(hostname=host)) for host in hosts))
    assert statuses(answers) == {200: 10, 403: 20}
    accepted = [host for host, answer in zip(hosts, answers, strict=True) if answer.status == 200]
    assert sorted(await server.devices()) == sorted(accepted)
    assert {kept["hostname"] for kept in await server.history()} == set(accepted)
    assert await user(server.storage) == {"devices": 10, "registered": False}


async def test_the_first_reports_of_a_last_device_at_once(serve: Serve) -> None:
    """None of them is taken for one device too many."""
    server = await serve({"max_devices_per_user": 1, "max_users": 1})
    bodies = [report(timestamp=f"2025-06-03T10:{minute:02}:00Z") for minute in range(20)]
    answers = await asyncio.gather(*map(server.sync, bodies))
    assert statuses(answers) == {200: 20}
    assert len(await server.history()) == 20
    assert await user(server.storage) == {"devices": 1, "registered": False}


async def test_no_more_users_than_allowed_however_they_come(serve: Serve) -> None:
    server = await serve({"max_users": 5})
    keys = [user_key(f"user {number}") for number in range(15)]
    answers = await asyncio.gather(*(server.sync(report(userKey=key)) for key in keys))
    assert statuses(answers) == {200: 5, 403: 10}
    assert len(await Ledger(server.storage).users()) == 5


async def test_one_report_many_times_at_once(server: Served) -> None:
    """Of two that are the same device's and instant's one is kept, whole."""
    bodies = [report(usage__totalTokens=number, usage__inputTokens=number) for number in range(30)]
    assert statuses(await asyncio.gather(*map(server.sync, bodies))) == {200: 30}
    (kept,) = await server.history()
    assert kept["usage"]["totalTokens"] == kept["usage"]["inputTokens"]
    assert (await server.stats()).json["totalTokens"] == kept["usage"]["totalTokens"]


async def test_the_count_of_devices_stays_right(server: Served) -> None:
    """While they come, go, come back, and fall silent."""

    async def machine(number: int) -> None:
        host = f"m{number % 10}"  # two of each
        for minute in range(6):
            await server.sync(report(hostname=host, timestamp=f"2025-06-03T10:0{minute}:{number:02}Z"))
            if minute % 3 == number % 3:
                await server("DELETE", f"/api/device/{KEY}/{host}")

    await asyncio.gather(*map(machine, range(20)))
    hosts = set(await server.devices())
    assert {kept["hostname"] for kept in await server.history()} == hosts
    assert await user(server.storage) == ({"devices": len(hosts), "registered": False} if hosts else None)


async def test_silent_devices_give_their_place_back(serve: Serve) -> None:
    server = await serve({"max_devices_per_user": 2})
    other = user_key("bob")
    await server.sync(report(hostname="silent"))
    await server.sync(report(hostname="alive"))
    await server.sync(report(hostname="silent too", userKey=other))
    assert (await server.sync(report(hostname="third"))).status == 403
    server.move_to("2025-09-05T00:00:00Z")
    await server.sync(report(hostname="alive", timestamp="2025-09-05T00:00:00Z"))
    server.clock.advance(24 * 3600)

    async def has_run() -> bool:
        return await Ledger(server.storage).users() == [(user_id(KEY), {"devices": 1, "registered": False})]

    await until(has_run)
    assert await server.devices() == ["alive"]
    assert [kept["timestamp"] for kept in await server.history()] == ["2025-09-05T00:00:00Z"]
    assert (await server.sync(report(hostname="third"))).status == 200


async def test_reports_that_come_while_old_ones_are_removed(serve: Serve) -> None:
    """Nothing that is new, or becomes so, is removed, and the count of devices is right."""
    first = await serve()
    hosts = [f"m{number:02}" for number in range(30)]
    await asyncio.gather(*(first.sync(report(hostname=host, timestamp="2025-01-01T00:00:00Z")) for host in hosts))
    server = await serve()  # removes them at start, while every second of them is heard again
    again = [report(hostname=host) for host in hosts[::2]]
    assert statuses(await asyncio.gather(*map(server.sync, again))) == {200: 15}

    async def has_run() -> bool:
        return len(await server.history()) == 15

    await until(has_run)
    await until(lambda: _counted(server, 15))
    assert sorted(await server.devices()) == hosts[::2]


async def _counted(server: Served, devices: int) -> bool:
    return await user(server.storage) == {"devices": devices, "registered": False}
