"""Console usage under many scrapers and widgets, over restarts, and with every kind of body."""

import asyncio
import copy
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.console_usage.history import SNAPSHOTS
from homeport.server.validation import Schemas
from homeport.storage import DeleteWhere, Query
from homeport.storage.times import DAY, MINUTE, format_instant, format_time, parse_time

from .conftest import Launch, Serve, Served
from .console_usage import KEY, NOW, get, post, posted, snapshot


@pytest.fixture
async def server(serve: Serve) -> Served:
    return await serve(
        {"apis.console_usage.keep_versions": KEEP_VERSIONS, "apis.console_usage.keep_days": KEEP_DAYS}, now=NOW
    )


# Bodies

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def _is_limit(value: Any, partial: bool) -> bool:
    if not isinstance(value, dict):
        return False
    resets: Any = value.get("resetsIn")
    used: Any = value.get("percentageUsed")
    return isinstance(resets, str) and (partial or resets != "") and type(used) in (int, float) and 0 <= used <= 100


def is_snapshot(body: Any) -> bool:
    """What the contract says, in other words than the schema."""
    if not isinstance(body, dict):
        return False
    partial = body.get("isPartial", False)
    session, weekly = body.get("currentSession"), body.get("weeklyLimits")
    errors = body.get("extractionErrors", {})
    if not isinstance(partial, bool) or not isinstance(errors, dict):
        return False
    if (session is None or weekly is None) if not partial else (session is None and weekly is None):
        return False
    if session is not None and not _is_limit(session, partial):
        return False
    if weekly is not None and not (
        isinstance(weekly, dict) and all(_is_limit(weekly.get(name), partial) for name in ("allModels", "sonnetOnly"))
    ):
        return False
    updated = body.get("lastUpdated")
    return (
        isinstance(updated, str)
        and _RFC3339.fullmatch(updated) is not None
        and all(isinstance(error, str) for error in errors.values())
    )


ODD: st.SearchStrategy[Any] = st.sampled_from(
    [..., None, True, False, 0, 100, 100.5, -1, 47.5, "", "x", [], {}, {"a": 1}, {"a": "b"}, "2026-01-25T03:17:41Z"]
)
PLACES: list[tuple[str, ...]] = [("isPartial",), ("extractionErrors",), ("lastUpdated",), ("unknown",)]
_LIMITS: list[tuple[str, ...]] = [("currentSession",), ("weeklyLimits", "allModels"), ("weeklyLimits", "sonnetOnly")]
for _limit in _LIMITS:
    PLACES += [_limit[:1], _limit, (*_limit, "resetsIn"), (*_limit, "percentageUsed")]


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """The contract's snapshot, whole or partial, with up to three members put out of order."""
    body: dict[str, Any] = snapshot(isPartial=draw(st.booleans()))
    for place, value in draw(st.lists(st.tuples(st.sampled_from(PLACES), ODD), max_size=3)):
        holder: Any = body
        for step in place[:-1]:
            holder = holder.get(step) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        if value is ...:
            holder.pop(place[-1], None)
        else:
            holder[place[-1]] = copy.deepcopy(value)
    return body


CHECKER = Schemas().checker("console_usage#/$defs/Snapshot")


@settings(max_examples=3 * settings().max_examples)
@given(bodies() | ODD.filter(lambda value: value is not ...))
def test_a_body_is_taken_when_the_contract_says_so(body: Any) -> None:
    assert CHECKER.is_valid(body) is is_snapshot(body)
    if not is_snapshot(body):
        problem = CHECKER.problems(body)[0]
        assert problem.field == "body" or problem.path[0] in body or problem.message == "is required"


# Whatever is posted, and whenever


@dataclass
class Model:
    """What is kept: number, when it was accepted, and the body, oldest first."""

    kept: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    number: int = 0

    def post(self, body: dict[str, Any], now: int) -> None:
        self.number += 1
        self.kept.append((self.number, now, body))
        self.age(now)

    def age(self, now: int) -> None:
        self.kept = [one for one in self.kept[-KEEP_VERSIONS:-1] if one[1] >= now - KEEP_DAYS * DAY] + self.kept[-1:]

    def reading(self, at: int, now: int) -> dict[str, Any]:
        """What a widget gets of the one at a place, from 0."""
        number, accepted, body = self.kept[at]
        donors = [body for _, _, body in (*reversed(self.kept[: at + 1]), *reversed(self.kept))]
        reading = copy.deepcopy(body)
        for section in ("currentSession", "weeklyLimits"):
            found = [d[section] for d in donors if d.get(section) is not None]
            if reading.get(section) is None and found:
                reading[section] = copy.deepcopy(found[0])
        for path in RESETS:
            limit = _follow(reading, path)
            if limit is not None and not limit["resetsIn"]:
                texts = [donor["resetsIn"] for d in donors if (donor := _follow(d, path)) and donor["resetsIn"]]
                limit["resetsIn"] = texts[0] if texts else ""
        minutes = Decimal(now - parse_time(body["lastUpdated"])) / MINUTE
        age = int(max(minutes, Decimal()).to_integral_value(ROUND_HALF_UP))
        info = {
            "current": at + 1,
            "total": len(self.kept),
            "timestamp": format_time(accepted),
            "filename": f"console-usage-{number}.json",
        }
        return reading | {"isStale": age > 10, "ageMinutes": age, "source": "ec2-sync", "versionInfo": info}


def _follow(body: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        body = body and body.get(step)
    return body


KEEP_VERSIONS, KEEP_DAYS = 5, 1
RESETS = [("currentSession",), ("weeklyLimits", "allModels"), ("weeklyLimits", "sonnetOnly")]


@st.composite
def gaps(draw: st.DrawFn) -> dict[str, Any]:
    """A snapshot that lacks some of what it may lack."""
    used = draw(st.integers(0, 100))
    body = snapshot(isPartial=True)
    for path in RESETS:
        name = f"{path[-1]} {used}"
        _follow(body, path).update(resetsIn=draw(st.sampled_from([name, ""])), percentageUsed=used)
    missing = draw(st.sampled_from([None, None, "currentSession", "weeklyLimits"]))
    if missing:
        body[missing] = None
        if draw(st.booleans()):
            del body[missing]
    return body


minutes = st.sampled_from([0, 1, 11, 60, 600, 1440]) | st.integers(0, 3000)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(script=st.lists(st.tuples(gaps(), minutes, st.integers(-5, 20)), min_size=1, max_size=12))
async def test_answers_equal_a_model(server: Served, script: list[tuple[dict[str, Any], int, int]]) -> None:
    await server.storage.commit([DeleteWhere(Query(SNAPSHOTS))])
    model = Model()
    server.move_to(NOW)
    for body, later, old in script:
        now = server.clock.now()
        body = body | {"lastUpdated": format_instant(now - old * MINUTE // 2)}
        assert (await post(server, body)).status == 200
        model.post(body, now)
        server.clock.advance(later * 60)
    now = server.clock.now()
    model.age(now)
    total = len(model.kept)
    assert (await get(server)).json == model.reading(total - 1, now)
    for at, (_, accepted, _) in enumerate(model.kept):
        reading = model.reading(at, now)
        assert (await get(server, f"?version={at + 1}")).json == reading
        assert (await get(server, f"?version={at - total}")).json == reading
        same = max(place for place, one in enumerate(model.kept) if one[1] == accepted)
        answer = await get(server, f"?timestamp={format_instant(accepted)}")
        assert answer.json == model.reading(same, now)
    assert (await get(server, f"?version={total + 1}")).status == 400


# Many at once


@pytest.mark.parametrize("keep", [100, 1])
async def test_twenty_at_once_are_twenty_versions(serve: Serve, keep: int) -> None:
    server = await serve({"apis.console_usage.keep_versions": keep}, now=NOW)
    await posted(server)
    reading = asyncio.create_task(_read_until_there_are(server, 21))
    answers = await asyncio.gather(
        *(post(server, snapshot(currentSession__percentageUsed=used)) for used in range(1, 21))
    )
    assert {answer.status for answer in answers} == {200}
    await reading
    kept = min(keep, 21)
    found = [(await get(server, f"?version={version}")).json for version in range(1, kept + 1)]
    infos = [version["versionInfo"] for version in found]
    assert [(info["current"], info["total"]) for info in infos] == [(at, kept) for at in range(1, kept + 1)]
    assert [info["filename"] for info in infos] == [f"console-usage-{n}.json" for n in range(22 - kept, 22)]
    if keep == 100:
        assert {version["currentSession"]["percentageUsed"] for version in found} == {47, *range(1, 21)}


async def _read_until_there_are(server: Served, count: int) -> None:
    """Widgets never see anything but a whole version, and never an older one than before."""
    newest = 0
    while newest < count:
        answer = await get(server)
        assert answer.status == 200
        info = answer.json["versionInfo"]
        assert info["current"] == info["total"]
        number = int(re.sub(r"\D", "", info["filename"]))
        assert number >= newest
        newest = number


# Whole processes


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
async def test_from_scraper_to_widget(launch: Launch, tmp_path: Path, back_end: str) -> None:
    """With the key, by the system's clock, over a kill and a stop, on what is kept on disk."""
    url, key = f"{back_end}:{tmp_path / 'store'}", {"X-API-Key": KEY}
    settings = {"CLAUDE_SYNC_API_KEY": KEY, "HOMEPORT_APIS__CONSOLE_USAGE__KEEP_VERSIONS": "2"}
    for start in range(3):
        process = await launch("--port", "0", "--storage", url, "--log-format", "json", **settings)
        await process.ready()
        for number in (2 * start + 1, 2 * start + 2):
            updated = datetime.now(UTC) - timedelta(minutes=7)
            body = snapshot(currentSession__percentageUsed=number, lastUpdated=updated.isoformat())
            assert (await post(process, body)).json["message"] == "Missing API key"
            assert (await post(process, body, headers=key)).json["message"] == "Usage data synced"
            answer = await get(process)
            assert answer.json.pop("versionInfo")["filename"] == f"console-usage-{number}.json"
            assert answer.json.items() >= (body | {"isStale": False, "ageMinutes": 7, "source": "ec2-sync"}).items()
            assert answer.headers["Cache-Control"] == "public, max-age=30"
            assert answer.headers["Last-Modified"] == format_datetime(updated, usegmt=True)
            assert (await get(process, headers={"If-None-Match": answer.headers["ETag"]})).status == 304
        assert answer.json["versionInfo"]["total"] == 2
        if back_end == "file":
            assert json.loads((tmp_path / "store" / "console-usage-synced.json").read_text()) == body
        if start == 0:
            await process.kill()
        else:
            assert await process.stop() == 0
            assert "console_usage: on; CLAUDE_SYNC_API_KEY: set" in process.log
            assert process.log.count("the data is 420 seconds old") == 2
        assert KEY not in process.log


async def test_without_a_key_the_start_warns(launch: Launch) -> None:
    process = await launch("--port", "0", "--storage", "memory:", "--log-format", "json")
    await process.ready()
    assert (await post(process)).status == 200
    assert await process.stop() == 0
    (line,) = [line for line in process.log.splitlines() if "CLAUDE_SYNC_API_KEY" in line]
    event = json.loads(line)
    assert event["level"] == "warning"
    assert event["event"].startswith("console_usage: on; CLAUDE_SYNC_API_KEY is not set: only this machine may post")
