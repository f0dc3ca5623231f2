"""How each operation is asked for, so that every request makes real use of it."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Generator
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from bench.arrivals import Answer, Ask, Steps
from bench.core import REPORT
from bench.leaderboard import body as days_used
from bench.leaderboard import days
from bench.site import ADMIN, CRON, FOLDERS, LICENSE, LICENSES, REDIRECT, SLACK, STRIPE, USERS, Site

NOT_MEASURED = {"metering.transcribe"}
"""It takes as long as its engine takes; the contract leaves it out."""
REPORTERS, RECORDS, SESSIONS = 100, 3_000, 10
LEAVING, DAYS = 100, 30
"""Users of the leaderboard who delete their data again and again; and the days that each user has."""

_APP = {"client_id": "desktop", "redirect_uri": REDIRECT}
_AUTHORIZE = _APP | {
    "response_type": "code",
    "state": "bench",
    "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    "code_challenge_method": "S256",
}
_VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
_NOTE = {"title": "Milk", "count": 2, "text": "x" * 200}
_SNAPSHOT = {
    "currentSession": {"resetsIn": "2 hr 42 min", "percentageUsed": 47},
    "weeklyLimits": {
        "allModels": {"resetsIn": "Thu 7:00 AM", "percentageUsed": 31},
        "sonnetOnly": {"resetsIn": "Sat 12:00 PM", "percentageUsed": 10},
    },
    "lastUpdated": "2026-01-25T03:17:41Z",
}
_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
_CODE = re.compile(rb"[?&]code=([^&\s]+)")
_LAST_DAYS = days(DAYS)

Recipe = Callable[[Site, int], Steps]
RECIPES: dict[str, Recipe] = {}


def of(*operations: str) -> Callable[[Recipe], Recipe]:
    """Makes a visit of several steps the recipe of some of them."""

    def add(recipe: Recipe) -> Recipe:
        RECIPES.update(dict.fromkeys(operations, recipe))
        return recipe

    return add


def _one(operation: str, request: Callable[[Site, int], dict[str, Any]]) -> Recipe:
    def steps(site: Site, number: int) -> Steps:
        yield site.ask(operation, **request(site, number))

    return steps


def _read(answer: Answer) -> Any:
    return json.loads(answer.body)


def _pick(of: list[str], number: int) -> str:
    return of[number % len(of)]


def _license(number: int) -> str:
    return LICENSE % (number % LICENSES)


def _user(number: int) -> str:
    """One who stays."""
    return f"user{number % (USERS - LEAVING):05}"


def _report(number: int) -> dict[str, Any]:
    at = time.gmtime(time.time() - 60 - number // REPORTERS)
    return REPORT | {
        "userKey": f"{number % REPORTERS:064x}",
        "hostname": f"M{number % 5}x.local",
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", at),
    }


def _event(site: Site, number: int) -> dict[str, Any]:
    """Of Claude Code: it asks for something, and goes on, in turns."""
    session = site.sessions[number // 2 % len(site.sessions)]
    kind = ("Notification", "UserPromptSubmit")[number % 2]
    event = {"session_id": f"agent of {session}", "hook_event_name": kind, "message": "Claude needs your permission"}
    return {"document": event, "headers": {"X-Homeport-Session": session}}


def _signed_by_stripe(number: int) -> dict[str, Any]:
    """That tokens are paid for."""
    metadata = {"type": "token_purchase", "tokens": "1000", "user_id": str(uuid4())}
    paid = {"id": f"cs_{number}", "object": "checkout.session", "payment_status": "paid", "metadata": metadata}
    event = {"id": f"evt_{number}", "object": "event", "type": "checkout.session.completed", "data": {"object": paid}}
    body, now = json.dumps(event).encode(), int(time.time())
    mac = hmac.new(STRIPE.encode(), b"%d." % now + body, sha256).hexdigest()
    return {"document": body, "headers": {"Stripe-Signature": f"t={now},v1={mac}"}}


def _signed_by_slack(number: int) -> dict[str, Any]:
    form = {"command": "/apikey", "text": "", "team_id": "T1", "user_id": f"U{number}", "user_name": f"slack{number}"}
    now = int(time.time())
    mac = hmac.new(SLACK.encode(), b"v0:%d:%b" % (now, urlencode(form).encode()), sha256).hexdigest()
    return {"form": form, "headers": {"X-Slack-Request-Timestamp": str(now), "X-Slack-Signature": f"v0={mac}"}}


def _websocket(message: dict[str, Any]) -> dict[str, Any]:
    """Says something when it has begun; masked with zeros."""
    text = json.dumps(message).encode()
    return {"headers": _UPGRADE, "first": bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text}


_records: dict[str, Any] = {"collection": "notes"}
ONE_STEP: dict[str, Callable[[Site, int], dict[str, Any]]] = {
    "system.live": lambda s, n: {},
    "system.ready": lambda s, n: {},
    "system.health": lambda s, n: {},
    "system.metrics": lambda s, n: {},
    "system.description": lambda s, n: {},
    "system.docs_page": lambda s, n: {},
    "system.list_keys": lambda s, n: {"bearer": ADMIN},
    "console_usage.sync": lambda s, n: {"document": _SNAPSHOT},
    "console_usage.read": lambda s, n: {},
    "device_usage.health": lambda s, n: {},
    "device_usage.sync": lambda s, n: {"document": _report(n)},
    "device_usage.stats": lambda s, n: {"user_key": f"{n % REPORTERS:064x}"},
    "device_usage.devices": lambda s, n: {"user_key": f"{n % REPORTERS:064x}"},
    "device_usage.history": lambda s, n: {"user_key": f"{n % REPORTERS:064x}"},
    "leaderboard.sync": lambda s, n: _days_of(s, n % (USERS - LEAVING)),
    "leaderboard.show_leaderboard": lambda s, n: {"query": f"period=all-time&date={_LAST_DAYS[0]}"},
    "leaderboard.leaderboard_page": lambda s, n: {"query": f"period=monthly&date={_LAST_DAYS[0]}"},
    "leaderboard.show_user": lambda s, n: {"username": _user(n)},
    "leaderboard.user_page": lambda s, n: {"username": _user(n)},
    "leaderboard.download_data": lambda s, n: {"bearer": _pick(s.keys[: USERS - LEAVING], n)},
    "leaderboard.slack_command": lambda s, n: _signed_by_slack(n),
    "sessions.list_projects": lambda s, n: {},
    "sessions.project_details": lambda s, n: {"id": s.project},
    "sessions.change_project": lambda s, n: {"id": s.project, "document": {"name": f"Bench {n}"}},
    "sessions.list_tickets": lambda s, n: {"id": s.project},
    "sessions.list_prefixes": lambda s, n: {"id": s.project},
    "sessions.sync_tickets": lambda s, n: {"id": s.project},
    "sessions.ticket_details": lambda s, n: {"id": _pick(s.tickets, n)},
    "sessions.show_content": lambda s, n: {"id": _pick(s.tickets, n)},
    "sessions.put_content": lambda s, n: {
        "id": _pick(s.tickets, n),
        "document": {"content": f"# Ticket {n}\n\n" + "What is to be done.\n" * 50},
    },
    "sessions.change_title": lambda s, n: {"id": _pick(s.tickets, n), "document": {"title": f"Ticket {n}"}},
    "sessions.show_history": lambda s, n: {"id": _pick(s.tickets, n)},
    "sessions.list_sessions": lambda s, n: {},
    "sessions.show_session": lambda s, n: {"id": _pick(s.sessions, n)},
    "sessions.sync_sessions": lambda s, n: {},
    "sessions.list_tmux_sessions": lambda s, n: {},
    "sessions.type_input": lambda s, n: {"id": _pick(s.sessions, n), "document": {"text": f"line {n}"}},
    "sessions.press_keys": lambda s, n: {"id": _pick(s.sessions, n), "document": {"keys": "Enter"}},
    "sessions.focus": lambda s, n: {"id": _pick(s.sessions, n)},
    "sessions.show_output": lambda s, n: {"id": _pick(s.sessions, n)},
    "sessions.claude_hook": _event,
    "sessions.list_notifications": lambda s, n: {},
    "sessions.count_notifications": lambda s, n: {},
    "sessions.live": lambda s, n: _websocket({"type": "subscribe", "sessionId": _pick(s.sessions, n)}),
    "metering.key_set": lambda s, n: {},
    "metering.server_metadata": lambda s, n: {},
    "metering.balance": lambda s, n: {"bearer": _license(n)},
    "metering.consume": lambda s, n: {"bearer": _license(n), "document": {"tokens_amount": 1}},
    "metering.transactions": lambda s, n: {"bearer": _license(n)},
    "metering.validate_license": lambda s, n: {
        "document": {"license_key": _license(n), "device_fingerprint": f"{n % LICENSES:064x}"}
    },
    "metering.create_checkout": lambda s, n: {"bearer": _license(n), "document": {"type": "token_purchase"}},
    "metering.stripe_webhook": lambda s, n: _signed_by_stripe(n),
    "metering.refresh_tokens": lambda s, n: {"bearer": CRON},
    "metering.authorize": lambda s, n: {"query": urlencode(_AUTHORIZE)},
    "collections.list_records": lambda s, n: {**_records, "query": "sort=-count&limit=100"},
    "collections.create": lambda s, n: {**_records, "document": _NOTE},
    "collections.read": lambda s, n: {**_records, "id": f"n{n % RECORDS}"},
    "collections.put": lambda s, n: {**_records, "id": f"n{n % RECORDS}", "document": _NOTE | {"count": n}},
    "collections.patch": lambda s, n: {**_records, "id": f"n{n % RECORDS}", "document": {"count": n}},
    "collections.batch": lambda s, n: {
        **_records,
        "document": {
            "operations": [
                {"op": "put", "id": f"n{(n * 20 + place) % RECORDS}", "record": _NOTE | {"count": n}}
                for place in range(20)
            ]
        },
    },
}
"""With what one request is made, for a number. Of a stream the first message is waited for."""
RECIPES |= {operation: _one(operation, request) for operation, request in ONE_STEP.items()}


def _days_of(site: Site, user: int) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"document": days_used(f"user{user:05}", _LAST_DAYS, at, user), "bearer": site.keys[user]}


@of("system.create_key", "system.rotate_key", "system.revoke_key")
def a_key(site: Site, number: int) -> Steps:
    made = yield site.ask("system.create_key", {"username": f"guest{number}"}, bearer=ADMIN)
    id = _read(made)["id"]
    yield site.ask("system.rotate_key", id=id, bearer=ADMIN)
    yield site.ask("system.revoke_key", id=id, bearer=ADMIN)


@of("device_usage.remove_device")
def a_device(site: Site, number: int) -> Steps:
    report = _report(number) | {"hostname": f"new-{number}"}
    yield site.ask("device_usage.sync", report)
    yield site.ask("device_usage.remove_device", user_key=report["userKey"], hostname=report["hostname"])


@of("leaderboard.delete_data")
def who_leaves(site: Site, number: int) -> Steps:
    user = USERS - LEAVING + number % LEAVING
    yield site.ask("leaderboard.sync", **_days_of(site, user))
    yield site.ask("leaderboard.delete_data", bearer=site.keys[user])


@of("sessions.create_project", "sessions.delete_project")
def a_project(site: Site, number: int) -> Steps:
    folder = site.folder / f"repositories/{number % FOLDERS}"
    made = yield site.ask(
        "sessions.create_project", {"name": "Guest", "repoPath": str(folder), "tmuxSession": f"guest{number % FOLDERS}"}
    )
    yield site.ask("sessions.delete_project", id=_read(made)["id"])


@of("sessions.create_ticket", "sessions.change_state", "sessions.reject", "sessions.approve", "sessions.delete_ticket")
def a_ticket(site: Site, number: int) -> Steps:
    made = yield site.ask("sessions.create_ticket", {"title": f"Guest {number}"}, id=site.project)
    id = _read(made)["id"]
    yield site.ask("sessions.change_state", {"state": "in_progress"}, id=id)
    yield site.ask("sessions.change_state", {"state": "review"}, id=id)
    yield site.ask("sessions.reject", {"feedback": "There are no tests."}, id=id)
    yield site.ask("sessions.change_state", {"state": "review"}, id=id)
    yield site.ask("sessions.approve", id=id)
    yield site.ask("sessions.delete_ticket", id=id)


@of("sessions.start_session", "sessions.stop_session")
def a_session(site: Site, number: int) -> Steps:
    started = yield site.ask("sessions.start_session", {}, id=site.project)
    yield site.ask("sessions.stop_session", {}, id=_read(started)["id"])


@of("sessions.start")
def a_session_on_a_ticket(site: Site, number: int) -> Steps:
    made = yield site.ask("sessions.create_ticket", {"title": f"Guest {number}"}, id=site.project)
    started = yield site.ask("sessions.start", id=_read(made)["id"])
    yield site.ask("sessions.stop_session", {"force": True}, id=_read(started)["session"]["id"])
    yield site.ask("sessions.delete_ticket", id=_read(made)["id"])


@of("sessions.register_device", "sessions.unregister_device")
def a_telephone(site: Site, number: int) -> Steps:
    token = f"{number:064x}"
    # Two APIs share the path, whose parameter has the name that one of them has for it.
    yield site.ask("sessions.register_device", {"token": token}, user_key="register")
    yield site.ask("sessions.unregister_device", user_key=token)


@of("sessions.read_notification", "sessions.dismiss_notification")
def a_notification(site: Site, number: int) -> Steps:
    yield site.ask("sessions.claude_hook", **_event(site, 2 * number))
    yield site.ask("sessions.claude_hook", **_event(site, 2 * number + 1))
    listed = yield site.ask("sessions.list_notifications")
    id = next(one["id"] for one in _read(listed)["data"] if one["id"] not in site.taken)
    site.taken.add(id)
    yield site.ask("sessions.read_notification", id=id)
    yield site.ask("sessions.dismiss_notification", id=id)


@of("sessions.read_all_notifications", "sessions.dismiss_all_notifications")
def all_notifications(site: Site, number: int) -> Steps:
    yield site.ask("sessions.claude_hook", **_event(site, 2 * number))
    yield site.ask("sessions.read_all_notifications")
    yield site.ask("sessions.claude_hook", **_event(site, 2 * number + 1))
    yield site.ask("sessions.dismiss_all_notifications")


@of("metering.grant_access", "metering.issue_token", "metering.revoke_token")
def an_app(site: Site, number: int) -> Steps:
    granted = yield site.ask("metering.grant_access", form=_AUTHORIZE | {"license_key": _license(number)})
    found = _CODE.search(granted.head)
    assert found is not None, granted.head
    redeem = _APP | {"grant_type": "authorization_code", "code": found[1].decode(), "code_verifier": _VERIFIER}
    issued = yield site.ask("metering.issue_token", form=redeem)
    token = _read(issued)["refresh_token"]
    yield site.ask("metering.revoke_token", form={"token": token, "client_id": "desktop"})


@of("collections.delete")
def a_record(site: Site, number: int) -> Steps:
    yield site.ask("collections.put", _NOTE, **_records, id=f"guest{number}")
    yield site.ask("collections.delete", **_records, id=f"guest{number}")


def _recent(site: Site) -> Generator[Ask, Answer, int]:
    """A version since which there were ten changes."""
    newest = yield site.ask("collections.list_records", **_records, query="limit=1")
    return int(_read(newest)["version"]) - 10


@of("collections.sync")
def who_was_offline(site: Site, number: int) -> Steps:
    since = yield from _recent(site)
    edits = [{"id": f"n{(number * 20 + place) % RECORDS}", "record": _NOTE | {"count": number}} for place in range(20)]
    yield site.ask("collections.sync", {"since": since, "changes": edits}, **_records)


@of("collections.changes")
def who_follows(site: Site, number: int) -> Steps:
    """By poll and by stream, in turns."""
    query = f"since={(yield from _recent(site))}"
    stream: dict[str, Any] = {"headers": {"Accept": "text/event-stream"}, "first": b""} if number % 2 else {}
    yield site.ask("collections.changes", **_records, query=query, **stream)


@of("collections.live_changes")
def who_listens(site: Site, number: int) -> Steps:
    since = yield from _recent(site)
    message = {"type": "subscribe", "collections": ["notes"], "since": since}
    yield site.ask("collections.live_changes", **_websocket(message))


def fill(site: Site) -> None:
    """Some thousand of what comes in by the API."""
    project = {"name": "Bench", "repoPath": str(site.folder / "repository"), "tmuxSession": "bench"}
    site.project = _read(site.answer("sessions.create_project", project))["id"]
    site.tickets = [ticket["id"] for ticket in _read(site.answer("sessions.list_tickets", id=site.project))]
    for _ in range(SESSIONS):
        site.sessions.append(_read(site.answer("sessions.start_session", {}, id=site.project))["id"])
    for operation, times in {
        "device_usage.sync": 3_000,
        "console_usage.sync": 100,
        "leaderboard.sync": USERS - LEAVING,
        "sessions.claude_hook": 400,
        "metering.consume": 3_000,
        "collections.put": RECORDS,
    }.items():
        site.send(RECIPES[operation](site, number) for number in range(times))
