"""Slack's slash command, as Slack sends it (contracts/leaderboard.md, "Slack")."""

import asyncio
import hmac
import logging
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode

import pytest

from homeport.server import bcrypt_pool
from homeport.server.apis.leaderboard import slack
from homeport.storage import Query
from homeport.storage.times import SECOND, parse_time

from .conftest import Answer, Log, Serve, Served, on_memory
from .leaderboards import NOW, api_keys, entry, upload

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
ON = {"apis.leaderboard.slack_signing_secret": SECRET}
FORM = "application/x-www-form-urlencoded"
KEY = re.compile(r"ccusage_live_[A-Za-z0-9_-]{60}")
UNAUTHORIZED = {"success": False, "message": "Invalid or missing Slack signature", "code": "UNAUTHORIZED"}


@pytest.fixture(autouse=True)
def quick_hashes() -> Iterator[None]:
    """At the least cost that bcrypt knows; the cost of keys has tests of its own."""
    with patch.object(bcrypt_pool, "COST", 4):
        yield


def command(**changes: str) -> bytes:
    """What Slack posts for `/apikey` by alice."""
    form = {
        "token": "xyzz0WbapA4vBCDEFasx0q6G",
        "team_id": "T1DC2JH3J",
        "team_domain": "testteamnow",
        "channel_id": "G8PSS9T3V",
        "channel_name": "foobar",
        "user_id": "U2CERLKJA",
        "user_name": "alice",
        "command": "/apikey",
        "text": "",
        "response_url": "https://hooks.slack.com/commands/T1DC2JH3J/397700885554/96rGlfmibIGlgcZRskXaIFfN",
        "trigger_id": "398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
    }
    return urlencode(form | changes).encode()


def signed(body: bytes, at: float, secret: str = SECRET) -> dict[str, str]:
    """Slack's headers (docs.slack.dev, "Verifying requests from Slack"). ``at``: Unix seconds."""
    timestamp = str(int(at))
    digest = hmac.digest(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, "sha256").hex()
    return {"Content-Type": FORM, "X-Slack-Request-Timestamp": timestamp, "X-Slack-Signature": f"v0={digest}"}


class Workspace:
    """Slack, which has the command's URL and the signing secret. Each request is sent in a second of its own."""

    def __init__(self, server: Served) -> None:
        self.server = server

    @property
    def now(self) -> float:
        return self.server.clock.now() / SECOND

    async def post(self, body: bytes, headers: dict[str, str]) -> Answer:
        return await self.server("POST", "/slack/commands", data=body, headers=headers)

    async def apikey(self, **changes: str) -> str:
        """What the user is shown."""
        self.server.clock.advance(1)
        body = command(**changes)
        answer = await self.post(body, signed(body, self.now))
        assert answer.status == 200, answer.content
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.json.keys() == {"response_type", "text"}
        assert answer.json["response_type"] == "ephemeral"
        return str(answer.json["text"])

    async def key(self, **changes: str) -> str:
        """The key that the user is shown."""
        shown = await self.apikey(**changes)
        keys = KEY.findall(shown)
        assert len(keys) == 1, shown
        return str(keys[0])

    async def whose(self, key: str) -> str | None:
        """The username of a key, as a client asks for it; None where it is refused."""
        headers = {"Authorization": f"Bearer {key}"}
        answer = await self.server("POST", "/v1/sync", json=upload() | {"entries": []}, headers=headers)
        assert answer.status in (400, 401)
        return answer.json.get("username") if answer.status == 400 else None


@pytest.fixture
async def workspace(serve: Serve) -> Workspace:
    return Workspace(await serve(ON, now=NOW))


# The key


async def test_a_key_and_another_in_its_place(workspace: Workspace) -> None:
    shown = await workspace.apikey()
    first = KEY.findall(shown)[0]
    assert shown == (
        f"Your API key for `alice`:\n```{first}```\nGive it to your client: it is sent as `Authorization: Bearer …`. "
        "It is shown this once; `/apikey` again replaces it."
    )
    headers = {"Authorization": f"Bearer {first}"}
    assert (await workspace.server("POST", "/v1/sync", json=upload(entry()), headers=headers)).status == 200

    shown = await workspace.apikey()
    second = KEY.findall(shown)[0]
    assert shown == (
        f"Your new API key for `alice`:\n```{second}```\nThe old one has stopped working. "
        "Give it to your client: it is sent as `Authorization: Bearer …`. "
        "It is shown this once; `/apikey` again replaces it."
    )
    assert second != first
    assert [await workspace.whose(key) for key in (first, second)] == [None, "alice"]
    assert (await workspace.server.get("/v1/user/alice")).status == 200  # the data stays


@on_memory
async def test_it_says_where_the_server_is(serve: Serve) -> None:
    workspace = Workspace(await serve(ON | {"server.public_url": "https://sync.example.com"}, now=NOW))
    assert "Give it to your client, with the server https://sync.example.com: it is sent" in await workspace.apikey()


async def test_the_name_stays_when_it_changes_in_slack(workspace: Workspace) -> None:
    first = await workspace.key()
    second = await workspace.key(user_name="alice.renamed")
    assert [await workspace.whose(key) for key in (first, second)] == [None, "alice"]
    assert await workspace.whose(await workspace.key(user_name="x")) == "alice"


@pytest.mark.parametrize(
    ("slack_name", "username"),
    [
        pytest.param("a-l_i-C3", "a-l_i-C3", id="as it is"),
        pytest.param("alice.smith", "alice_smith", id="a dot"),
        pytest.param("Zoë O'Neil", "Zo__O_Neil", id="letters beyond ASCII, blanks, quotes"),
        pytest.param("\U0001f600\U0001f600\U0001f600", "___", id="nothing but signs"),
        pytest.param("x" * 50, "x" * 50, id="the longest"),
    ],
)
@on_memory
async def test_the_name(workspace: Workspace, slack_name: str, username: str) -> None:
    assert await workspace.whose(await workspace.key(user_name=slack_name)) == username


INVALID = "A username is 3 to 50 of A-Z, a-z, 0-9, _ and -. Ask who runs the server for a key of another name."


@pytest.mark.parametrize("name", ["al", "x", "x" * 51], ids=len)
@on_memory
async def test_a_name_that_nobody_may_have_is_refused_in_words(workspace: Workspace, name: str) -> None:
    assert await workspace.apikey(user_name=name) == f"There is no key for `{name}`: {INVALID}"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"user_id": "U99"}, id="another user"),
        pytest.param({"team_id": "T99"}, id="another workspace"),
        pytest.param({"user_id": "U99", "user_name": "Alice"}, id="but for case"),
        pytest.param({"user_id": "U99", "user_name": "ALICE"}, id="all but for case"),
    ],
)
async def test_a_name_that_anybody_else_holds_is_refused_in_words(workspace: Workspace, other: dict[str, str]) -> None:
    key = await workspace.key()
    name = other.get("user_name", "alice")
    assert await workspace.apikey(**other) == (
        f"The username `{name}` is somebody else's. Ask who runs the server for a key of another name."
    )
    assert await workspace.whose(key) == "alice"


@on_memory
async def test_a_user_that_was_made_otherwise_is_somebody_else(workspace: Workspace) -> None:
    async with api_keys(workspace.server.storage, workspace.server.clock) as keys:
        _, text = await keys.create("alice")
    assert "somebody else's" in await workspace.apikey()
    assert await workspace.whose(text) == "alice"


@on_memory
async def test_two_people_at_once_are_not_given_one_name(workspace: Workspace) -> None:
    bodies = [command(user_name="sam", user_id=f"U{number}") for number in range(5)]
    answers = await asyncio.gather(*(workspace.post(body, signed(body, workspace.now)) for body in bodies))
    assert [answer.status for answer in answers] == [200] * 5
    assert sorted(bool(KEY.search(answer.json["text"])) for answer in answers) == [False] * 4 + [True]


@pytest.mark.parametrize("changes", [{"text": "help"}, {"text": " rotate "}, {"command": "/other"}], ids=str)
@on_memory
async def test_other_words_are_answered_with_help(workspace: Workspace, changes: dict[str, str]) -> None:
    key = await workspace.key()
    assert await workspace.apikey(**changes) == (
        "`/apikey` gives you a key with which your client uploads your usage. If you have one already, it is replaced: "
        "the old one stops working. Only you see the answer."
    )
    assert await workspace.whose(key) == "alice"
    assert await workspace.whose(await workspace.key(text="  ")) == "alice"


# Who asks


@on_memory
async def test_the_example_in_slacks_documentation(serve: Serve) -> None:
    workspace = Workspace(await serve(ON, now="2018-07-12T18:36:58Z"))
    body = command(user_name="roadrunner", command="/webhook-collect")
    headers = {
        "Content-Type": FORM,
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    assert (await workspace.post(body, headers)).status == 200


def flipped(headers: dict[str, str]) -> dict[str, str]:
    """With another last digit in the signature."""
    signature = headers["X-Slack-Signature"]
    return headers | {"X-Slack-Signature": signature[:-1] + ("0" if signature[-1] != "0" else "1")}


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


BODY = command()
GENUINE = signed(BODY, parse_time(NOW) // SECOND)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"Content-Type": FORM}, BODY, id="nothing"),
        pytest.param(without(GENUINE, "X-Slack-Signature"), BODY, id="no signature"),
        pytest.param(without(GENUINE, "X-Slack-Request-Timestamp"), BODY, id="no timestamp"),
        pytest.param(flipped(GENUINE), BODY, id="another signature"),
        pytest.param(signed(BODY, parse_time(NOW) // SECOND, "x" * 32), BODY, id="another secret"),
        pytest.param(GENUINE, command(user_id="U99"), id="another body"),
        pytest.param(GENUINE, BODY + b"&text=x", id="a longer body"),
        pytest.param(GENUINE, b"", id="no body"),
        pytest.param(signed(b"\xff\xfe", parse_time(NOW) // SECOND), b"\xff\xfe", id="a body that is no text"),
        *(
            pytest.param(GENUINE | {"X-Slack-Request-Timestamp": text}, BODY, id=f"timestamp {text[:12]!a}")
            for text in (
                "",
                "now",
                "1e9",
                "-1",
                "+1",
                "1_000",
                "nan",
                "1766318400.0",
                "\uff11\uff17",
                "9" * 500,
            )
        ),
        *(
            pytest.param(GENUINE | {"X-Slack-Signature": text}, BODY, id=f"signature {text[:12]!a}")
            for text in (
                "",
                "v0=",
                "v1=" + "0" * 64,
                "v0=é" + "0" * 63,
                GENUINE["X-Slack-Signature"].upper(),
                "x" * 5000,
            )
        ),
    ],
)
@on_memory
async def test_what_slack_did_not_sign_is_refused(workspace: Workspace, headers: dict[str, str], body: bytes) -> None:
    answer = await workspace.post(body, headers)
    assert (answer.status, answer.json) == (401, UNAUTHORIZED)
    assert answer.headers["WWW-Authenticate"] == "Slack-Signature"
    assert (await workspace.post(BODY, GENUINE)).status == 200


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0, 200), (299, 200), (300, 200), (301, 401), (-300, 200), (-301, 401), (10**9, 401)],
)
@on_memory
async def test_a_timestamp_is_at_most_five_minutes_away(workspace: Workspace, seconds: int, status: int) -> None:
    """``seconds``: how late the request comes, after its timestamp."""
    workspace.server.clock.advance(400)
    headers = signed(BODY, workspace.now - seconds)
    assert (await workspace.post(BODY, headers)).status == status


@on_memory
async def test_the_same_request_is_taken_once(workspace: Workspace) -> None:
    clock = workspace.server.clock
    ahead = signed(BODY, workspace.now + 299)
    assert (await workspace.post(BODY, ahead)).status == 200
    genuine = signed(BODY, workspace.now)
    answers = await asyncio.gather(*(workspace.post(BODY, genuine) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401, 401]
    key = next(KEY.findall(answer.json["text"])[0] for answer in answers if answer.status == 200)
    for seconds in (1, 298.9, 0.1, 0.001, 298, 1, 60):  # each time it might be forgotten
        clock.advance(seconds)
        for headers in (genuine, ahead):
            answer = await workspace.post(BODY, headers)
            assert (answer.status, answer.json) == (401, UNAUTHORIZED)
    assert await workspace.whose(key) == "alice"
    assert await workspace.key()


async def test_a_request_that_another_server_on_the_store_has_answered_is_refused(serve: Serve) -> None:
    """Also one that was there before it."""
    before = Workspace(await serve(ON, now=NOW))
    headers, fresh = (signed(BODY, before.now - seconds) for seconds in (0, 60))
    assert (await before.post(BODY, headers)).status == 200
    after = Workspace(await serve(ON, now="2025-12-21T12:00:02Z"))
    assert (await after.post(BODY, headers)).status == 401
    assert (await after.post(BODY, fresh)).status == 200


async def test_what_is_too_old_is_forgotten(workspace: Workspace) -> None:
    storage = workspace.server.storage
    for _ in range(3):
        await workspace.apikey(text="help")
    assert await storage.count(Query(slack.REQUESTS)) == 3
    workspace.server.clock.advance(310)
    await workspace.apikey(text="help")
    assert await storage.count(Query(slack.REQUESTS)) == 1


@on_memory
async def test_bad_signatures_lock_nobody_out(serve: Serve) -> None:
    """Anybody can have Slack's addresses send them."""
    workspace = Workspace(await serve(ON | {"server.trusted_proxies": ["127.0.0.1"]}, now=NOW))
    through_slack = {"X-Forwarded-For": "198.51.100.7"}
    for _ in range(15):
        assert (await workspace.post(BODY, flipped(GENUINE) | through_slack)).status == 401
    assert (await workspace.post(BODY, GENUINE | through_slack)).status == 200


# What is no command


@pytest.mark.parametrize("name", ["command", "team_id", "user_id", "user_name"])
@on_memory
async def test_a_signed_request_that_lacks_something(workspace: Workspace, name: str) -> None:
    body = command(**{name: ""})
    answer = await workspace.post(body, signed(body, workspace.now))
    assert (answer.status, answer.json) == (
        400,
        {
            "success": False,
            "message": "Invalid request body",
            "code": "INVALID_REQUEST",
            "errors": [{"field": name, "message": "is required"}],
        },
    )


@pytest.mark.parametrize(
    ("method", "content_type", "size", "status", "code"),
    [
        pytest.param("GET", FORM, 0, 405, "METHOD_NOT_ALLOWED", id="GET"),
        pytest.param("POST", "application/json", 10, 415, "UNSUPPORTED_MEDIA_TYPE", id="JSON"),
        pytest.param("POST", FORM, 65_537, 413, "PAYLOAD_TOO_LARGE", id="too large"),
    ],
)
@on_memory
async def test_what_is_no_slash_command(
    workspace: Workspace, method: str, content_type: str, size: int, status: int, code: str
) -> None:
    headers = GENUINE | {"Content-Type": content_type}
    answer = await workspace.server(method, "/slack/commands", data=b"x" * size, headers=headers)
    assert (answer.status, answer.json["success"], answer.json["code"]) == (status, False, code)


@on_memory
async def test_it_is_off_without_a_signing_secret(serve: Serve) -> None:
    workspace = Workspace(await serve(now=NOW))
    for headers in (
        GENUINE,
        signed(BODY, workspace.now, "None"),
        {"Content-Type": FORM},
        {"Content-Type": "text/plain"},
    ):
        answer = await workspace.post(BODY, headers)
        assert (answer.status, answer.json) == (
            404,
            {"success": False, "message": "Not found", "code": "NOT_FOUND"},
        )


@on_memory
async def test_the_key_is_in_the_answer_alone(workspace: Workspace, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = [await workspace.key() for _ in range(2)]
    headers = {"Authorization": f"Bearer {keys[1]}"}
    told: list[Any] = [await workspace.server.get("/v1/user/data", headers=headers)]
    told += [await workspace.server.get("/metrics"), log.stream.getvalue(), caplog.text]
    for key in keys:
        secret = key.removeprefix("ccusage_live_")
        assert not [part for part in (secret[at : at + 8] for at in range(52)) if part in str(told)]
    assert SECRET not in str(told)
