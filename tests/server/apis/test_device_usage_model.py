"""Whatever machines report, in any order, late, again or at once: what is answered equals a small model."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.storage.times import DAY, parse_time

from .conftest import Serve, Served, on_memory, report, user_key

# Some begin as others do, or look like how a store might tell them apart.
HOSTS = ["a", "a/b", "a/", "a%2Fb", "A", "b", "🖥", "2025-06-03T10:00:00Z"]
_numbers = itertools.count()


@dataclass
class Model:
    """What a user's answers are made of: the reports by device and instant."""

    reports: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def sync(self, body: dict[str, Any]) -> None:
        self.reports[body["hostname"], parse_time(body["timestamp"])] = body

    def remove(self, host: str) -> bool:
        mine = [key for key in self.reports if key[0] == host]
        for key in mine:
            del self.reports[key]
        return bool(mine)

    def newest(self) -> list[dict[str, Any]]:
        return list({key[0]: self.reports[key] for key in sorted(self.reports, key=lambda key: key[1])}.values())

    def stats(self) -> Any:
        rows = [
            {"hostname": body["hostname"], "lastSeen": body["timestamp"], "totalTokens": body["usage"]["totalTokens"]}
            for body in self.newest()
        ]
        costs = [body["costs"].get("actual") or body["costs"]["opus"] for body in self.newest()]
        return {
            "devices": sorted(rows, key=lambda row: (-row["totalTokens"], row["hostname"])),
            "totalTokens": sum(row["totalTokens"] for row in rows),
            "totalCost": sum(map(Fraction, map(repr, costs)), Fraction()),
        }

    def history(self, host: str | None, begin: int, end: int) -> list[tuple[int, str, Any]]:
        """Instant, host and tokens; newest first."""
        found = [
            (instant, name, body["usage"]["totalTokens"])
            for (name, instant), body in self.reports.items()
            if host in (None, name) and begin <= instant < end
        ]
        return sorted(found, key=lambda row: -row[0])


def spelled(instant: int, offset: int, style: str) -> str:
    """A timestamp of minutes since midnight, in one of many ways."""
    zone = timezone(timedelta(minutes=offset))
    time = (datetime(2025, 6, 3, tzinfo=UTC) + timedelta(minutes=instant)).astimezone(zone)
    match style:
        case "Z":
            return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case "none":
            return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.000")
    return time.isoformat(timespec="microseconds")


counts = st.integers(0, 3) | st.integers(0, 2**53 - 1)
costs = st.sampled_from([0, 0.1, 0.2, 0.3, 1, 15.11, 1e-7, 999_999_999.99]) | st.floats(0, 1e9)
timestamps = st.builds(
    spelled, st.integers(0, 5).map(lambda n: 100 * n), st.integers(-700, 700), st.sampled_from(["Z", "none", "offset"])
)


@st.composite
def syncs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    body = report(hostname=draw(st.sampled_from(HOSTS)), timestamp=draw(timestamps), usage__totalTokens=draw(counts))
    body["costs"] = {"opus": draw(costs), "sonnet": 0, "haiku": 0}
    if draw(st.booleans()):
        body["costs"]["actual"] = draw(costs)
    return "sync", body


removals = st.tuples(st.just("remove"), st.sampled_from(HOSTS))
steps = st.lists(syncs() | syncs() | syncs() | removals, max_size=25)


async def compare(server: Served, key: str, model: Model) -> None:
    """All that can be asked of a user."""
    answer = await server.stats(key)
    if model.reports:
        assert answer.json == model.stats()
    else:
        assert answer.status == 404
    heard = {body["hostname"]: parse_time(body["timestamp"]) for body in model.newest()}
    devices = await server.devices(key)
    assert sorted(devices) == sorted(heard)
    assert [heard[host] for host in devices] == sorted(heard.values(), reverse=True)


async def compare_history(server: Served, key: str, model: Model, limit: int, host: str | None, hour: int) -> None:
    """Of an hour and later, and before it, page by page."""
    split = parse_time(f"2025-06-03T0{hour}:00:00Z")
    query = f"limit={limit}" + ("" if host is None else f"&hostname={quote(host, safe='')}")
    for bounds, begin, end in (("from", split, split + DAY), ("to", 0, split)):
        kept = await server.history(f"{query}&{bounds}=2025-06-03T0{hour}:00:00Z", key)
        found = [(parse_time(k["timestamp"]), k["hostname"], k["usage"]["totalTokens"]) for k in kept]
        assert [row[0] for row in found] == [row[0] for row in model.history(host, begin, end)]
        assert sorted(found) == sorted(model.history(host, begin, end))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    script=steps,
    limit=st.integers(1, 4),
    host=st.none() | st.sampled_from(HOSTS),
    hour=st.integers(0, 9),
    in_parallel=st.booleans(),
)
async def test_answers_equal_a_model(
    server: Served, script: list[tuple[str, Any]], limit: int, host: str | None, hour: int, in_parallel: bool
) -> None:
    key, model = user_key(f"model {next(_numbers)}"), Model()

    async def do(step: tuple[str, Any]) -> None:
        what, subject = step
        if what == "sync":
            assert (await server.sync(subject | {"userKey": key})).status == 200
        else:
            answer = await server("DELETE", f"/api/device/{key}/{quote(subject, safe='')}")
            assert answer.status == (200 if removed else 404)

    for batch in batches(script) if in_parallel else ([step] for step in script):
        for what, subject in batch:
            if what == "sync":
                model.sync(subject)
            else:
                removed = model.remove(subject)
        await asyncio.gather(*map(do, batch))
    await compare(server, key, model)
    await compare_history(server, key, model, limit, host, hour)


def batches(script: list[tuple[str, Any]]) -> Iterable[list[tuple[str, Any]]]:
    """Steps that may be done at once, because their order does not matter."""
    batch: list[tuple[str, Any]] = []
    for step in script:
        if step[0] == "remove" or any(same_report(step[1], other) for _, other in batch if _ == "sync"):
            yield batch
            batch = []
        if step[0] == "remove":
            yield [step]
        else:
            batch.append(step)
    yield batch


def same_report(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["hostname"] == other["hostname"] and parse_time(one["timestamp"]) == parse_time(other["timestamp"])


@on_memory
@pytest.mark.parametrize(
    ("amounts", "total"),
    [
        pytest.param([0.1] * 3, "0.3", id="three times 0.1"),
        pytest.param([0.1, 0.2], "0.3", id="0.1 and 0.2"),
        pytest.param([1.1, 2.2, 3.3, 4.4], "11", id="1.1 to 4.4"),
        pytest.param([999_999_999.99] * 90 + [0.01] * 10, "89999999999.20", id="a hundred devices"),
        pytest.param([1e9, 1e-9, 0.12345678901234566], "1000000000.12345679001234566", id="many decimals"),
        pytest.param([1e9, 5e-18, 0.1], "1000000000.100000000000000005", id="far apart"),
        pytest.param([123456789.12345679] * 7, "864197523.86419753", id="as many digits as a double has"),
        pytest.param([1e9, 2.5e-30], "1000000000.0000000000000000000000000000025", id="more digits than 28"),
    ],
)
async def test_costs_add_up_as_decimals(serve: Serve, amounts: list[float], total: str) -> None:
    server = await serve()
    for number, cost in enumerate(amounts):
        assert (await server.sync(report(hostname=f"m{number}", costs__actual=cost))).status == 200
    assert (await server.stats()).json["totalCost"] == Decimal(total)


async def test_tokens_add_up_beyond_what_a_double_holds(server: Served) -> None:
    amounts = [2**53 - 1 - number for number in range(40)]
    for number, tokens in enumerate(amounts):
        await server.sync(report(hostname=f"m{number}", usage__totalTokens=tokens))
    answer = (await server.stats()).json
    assert answer["totalTokens"] == sum(amounts)
    assert [row["totalTokens"] for row in answer["devices"]] == amounts


async def test_a_history_is_read_while_it_grows(server: Served) -> None:
    """No report that was there at its beginning is missed or told twice."""

    async def push(minutes: range) -> None:
        for minute in minutes:
            time = f"2025-06-03T{minute // 60:02}:{minute % 60:02}:00Z"
            await asyncio.gather(*(server.sync(report(hostname=host, timestamp=time)) for host in ("a", "b", "a/b")))

    await push(range(0, 40, 2))
    before = {(kept["hostname"], kept["timestamp"]) for kept in await server.history()}
    pages, _ = await asyncio.gather(server.history("limit=3"), push(range(1, 40, 2)))
    read = [(kept["hostname"], kept["timestamp"]) for kept in pages]
    assert len(set(read)) == len(read)
    assert set(read) >= before
    assert len(before) == 60
