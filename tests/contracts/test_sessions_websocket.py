"""contracts/sessions.md, "WebSocket", sentence by sentence: both dialects, whole messages, by a real client."""

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homeport.server import live
from homeport.server.apis.sessions.events import EVENTS
from homeport.server.apis.sessions.notifications.notifying import notify
from homeport.storage.times import format_time, parse_time

from ..server.apis.conftest import NOW, Serve, Served, on_memory
from ..server.apis.sessions_kit import OpenDesk
from ..server.apis.sockets import SESSION_ID, Closed, Socket, Steered, connect, steered

TIMESTAMP = format_time(parse_time(NOW))
TICKET_ID = "01a20184-e37c-7524-827d-a9213b79ad60"
KEY = "correct horse"
SUBSCRIBE = {"flat": '{"type":"subscribe"}', "envelope": '{"type":"session:subscribe","payload":{}}'}
"""Messages that tell a dialect and are refused."""

pytestmark = on_memory


@pytest.fixture
async def server(serve: Serve) -> Served:
    return await serve({"apis.enabled": ["sessions"]})


@pytest.fixture
async def sessions(open_desk: OpenDesk, tmp_path: Path) -> Steered:
    return await steered(open_desk, tmp_path)


async def speak(socket: Socket, dialect: str) -> None:
    """Lets a client be known as one that speaks a dialect."""
    await socket.client.send_str(SUBSCRIBE[dialect])
    await socket.until("error")


# Events


def tell_status(server: Served) -> None:
    server.app[EVENTS].status(SESSION_ID, "running", "paused")


def tell_waiting(server: Served) -> None:
    server.app[EVENTS].waiting(SESSION_ID, True, "permission_prompt")


def tell_ticket(server: Served) -> None:
    server.app[EVENTS].ticket_state(TICKET_ID, "in_progress", "review", "auto", "session_completed")


EVENT_CASES = [
    pytest.param(
        tell_status,
        "session:status",
        {"sessionId": SESSION_ID, "status": "paused"},
        {"sessionId": SESSION_ID, "previousStatus": "running", "newStatus": "paused", "timestamp": TIMESTAMP},
    ),
    pytest.param(
        tell_waiting,
        "session:waiting",
        {"sessionId": SESSION_ID, "waiting": True, "reason": "permission_prompt"},
        {"sessionId": SESSION_ID, "waiting": True, "reason": "permission_prompt", "timestamp": TIMESTAMP},
    ),
    pytest.param(
        tell_ticket,
        "ticket:state",
        {"ticketId": TICKET_ID, "state": "review"},
        {
            "ticketId": TICKET_ID,
            "previousState": "in_progress",
            "newState": "review",
            "trigger": "auto",
            "reason": "session_completed",
            "timestamp": TIMESTAMP,
        },
    ),
]


@pytest.mark.parametrize(("tell", "kind", "flat", "payload"), EVENT_CASES)
@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_an_event_goes_to_every_client_in_its_dialect(
    server: Served, path: str, tell: Any, kind: str, flat: dict[str, Any], payload: dict[str, Any]
) -> None:
    async with connect(server, path) as new, connect(server, path) as one, connect(server, path) as other:
        await speak(one, "flat")
        await speak(other, "envelope")
        tell(server)
        assert await one.next() == {"type": kind, **flat}
        assert await other.next() == {"type": kind, "payload": payload}
        assert await new.next() == {"type": kind, **flat, "payload": payload}


async def test_a_notification_goes_to_every_client(server: Served) -> None:
    async with connect(server) as new, connect(server) as one, connect(server) as other:
        await speak(one, "flat")
        await speak(other, "envelope")
        kept = await notify(server.app, "waiting_input", "Which port?", title="Claude asks", session_id=SESSION_ID)
        flat = {"notification": {"id": kept["id"], "type": "waiting_input", "message": "Which port?"}}
        payload = {"id": kept["id"], "title": "Claude asks", "body": "Which port?", "timestamp": TIMESTAMP}
        assert await one.next() == {"type": "notification", **flat}
        assert await other.next() == {"type": "notification", "payload": payload}
        assert await new.next() == {"type": "notification", **flat, "payload": payload}


# Messages


@pytest.mark.parametrize("message", ['{"type":"ping"}', '{"type":"ping","payload":{}}'])
async def test_ping(server: Served, message: str) -> None:
    async with connect(server) as socket:
        await socket.client.send_str(message)
        assert await socket.next() == {"type": "pong", "payload": {"timestamp": TIMESTAMP}}


async def test_a_bare_ping_is_of_both_dialects(server: Served) -> None:
    async with connect(server) as socket:
        await socket.flat("ping")
        await socket.next()
        tell_status(server)
        assert set(await socket.next()) == {"type", "sessionId", "status", "payload"}
        await socket.envelope("ping")
        await socket.next()
        tell_status(server)
        assert set(await socket.next()) == {"type", "payload"}


BAD = [
    pytest.param("{", "PARSE_ERROR", id="half"),
    pytest.param("", "PARSE_ERROR", id="empty"),
    pytest.param("subscribe", "PARSE_ERROR", id="a word"),
    pytest.param('{"type":NaN}', "PARSE_ERROR", id="NaN"),
    pytest.param('{"type":"\\ud800"}', "PARSE_ERROR", id="half of a surrogate pair"),
    pytest.param("[" * 30_000, "PARSE_ERROR", id="open brackets"),
    pytest.param("[" * 1000 + "]" * 1000, "PARSE_ERROR", id="nested too deep"),
    pytest.param(b"\xff\xfe", "PARSE_ERROR", id="bytes"),
    pytest.param("{}", "INVALID_MESSAGE", id="no type"),
    pytest.param("[]", "INVALID_MESSAGE", id="a list"),
    pytest.param("null", "INVALID_MESSAGE", id="null"),
    pytest.param('{"type":7}', "INVALID_MESSAGE", id="a number for a type"),
    pytest.param('{"type":["ping"]}', "INVALID_MESSAGE", id="a list for a type"),
    pytest.param('{"type":"shout"}', "INVALID_MESSAGE", id="unknown type"),
    pytest.param('{"type":"pong","payload":{}}', "INVALID_MESSAGE", id="a type of the server's"),
]


@pytest.mark.parametrize(("message", "code"), BAD)
async def test_what_cannot_be_understood_is_answered_in_both(server: Served, message: Any, code: str) -> None:
    async with connect(server) as socket:
        send = socket.client.send_bytes if isinstance(message, bytes) else socket.client.send_str
        await send(message)
        answer = await socket.next()
        text = answer["message"]
        assert text
        assert answer == {"type": "error", "code": code, "message": text, "payload": {"code": code, "message": text}}
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"


FLAT_ERRORS = [
    pytest.param({"type": "subscribe"}, "INVALID_MESSAGE", id="subscribe to nothing"),
    pytest.param({"type": "subscribe", "sessionId": 7}, "INVALID_MESSAGE", id="subscribe to a number"),
    pytest.param({"type": "subscribe", "payload": {"sessionId": SESSION_ID}}, "INVALID_MESSAGE", id="in an envelope"),
    pytest.param({"type": "unsubscribe"}, "INVALID_MESSAGE", id="unsubscribe from nothing"),
    pytest.param({"type": "subscribe", "sessionId": SESSION_ID}, "SESSION_NOT_FOUND", id="unknown"),
    pytest.param({"type": "subscribe", "sessionId": "nope"}, "SESSION_NOT_FOUND", id="no uuid"),
]
ENVELOPE_ERRORS = [
    pytest.param("session:subscribe", {}, "INVALID_MESSAGE", id="subscribe to nothing"),
    pytest.param("session:subscribe", {"sessionId": SESSION_ID}, "SESSION_NOT_FOUND", id="unknown"),
    pytest.param("session:unsubscribe", {"sessionId": None}, "INVALID_MESSAGE", id="unsubscribe from null"),
    pytest.param("session:input", {"sessionId": SESSION_ID}, "INVALID_MESSAGE", id="no text"),
    pytest.param("session:keys", {"sessionId": SESSION_ID, "keys": ["C-c"]}, "INVALID_MESSAGE", id="a list of keys"),
    pytest.param("session:input", {"sessionId": SESSION_ID, "text": "x"}, "NOT_SUBSCRIBED", id="input"),
    pytest.param("session:keys", {"sessionId": SESSION_ID, "keys": "C-c"}, "NOT_SUBSCRIBED", id="keys"),
    pytest.param("pty:attach", {"sessionId": SESSION_ID, "cols": 80}, "INVALID_MESSAGE", id="no rows"),
    pytest.param("pty:attach", {"sessionId": SESSION_ID, "cols": 0, "rows": 24}, "INVALID_MESSAGE", id="no columns"),
    pytest.param("pty:attach", {"sessionId": SESSION_ID, "cols": 80, "rows": 1001}, "INVALID_MESSAGE", id="many rows"),
    pytest.param("pty:attach", {"sessionId": SESSION_ID, "cols": 80, "rows": 24}, "SESSION_NOT_FOUND", id="attach"),
    pytest.param("pty:data", {"sessionId": SESSION_ID, "data": "x"}, "NOT_SUBSCRIBED", id="data"),
    pytest.param("pty:resize", {"sessionId": SESSION_ID, "cols": 1, "rows": 1}, "NOT_SUBSCRIBED", id="resize"),
]


@pytest.mark.parametrize(("message", "code"), FLAT_ERRORS)
async def test_errors_in_the_flat_dialect(server: Served, message: dict[str, Any], code: str) -> None:
    async with connect(server) as socket:
        await socket.client.send_json(message)
        answer = await socket.next()
        assert answer == {"type": "error", "code": code, "message": answer["message"]}
        assert answer["message"]


@pytest.mark.parametrize(("kind", "payload", "code"), ENVELOPE_ERRORS)
async def test_errors_in_the_envelope(server: Served, kind: str, payload: dict[str, Any], code: str) -> None:
    async with connect(server) as socket:
        await socket.envelope(kind, **payload)
        answer = await socket.next()
        assert answer == {"type": "error", "payload": {"code": code, "message": answer["payload"]["message"]}}
        assert answer["payload"]["message"]


@pytest.mark.parametrize("payload", [None, 7, [], "x"])
async def test_a_payload_that_is_no_object(server: Served, payload: Any) -> None:
    async with connect(server) as socket:
        await socket.client.send_json({"type": "session:subscribe", "payload": payload})
        assert (await socket.next())["payload"]["code"] == "INVALID_MESSAGE"


async def test_messages_above_the_rate_are_refused_and_no_reason_to_close(server: Served) -> None:
    async with connect(server) as socket, connect(server) as other:
        for _ in range(103):
            await socket.flat("ping")
        answers = [await socket.next() for _ in range(103)]
        assert [answer["type"] for answer in answers] == ["pong"] * 100 + ["error"] * 3
        assert answers[-1]["code"] == answers[-1]["payload"]["code"] == "RATE_LIMITED"
        await other.flat("ping")
        assert (await other.next())["type"] == "pong"
        server.clock.advance(9.9)
        await socket.flat("ping")
        assert (await socket.next())["type"] == "error"
        server.clock.advance(0.2)
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"


# Output


async def test_the_flat_dialect(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await socket.flat("subscribe", sessionId=id)
        message = await socket.next()
        assert message == {"type": "session:output", "sessionId": id, "output": message["output"]}
        kept = message["output"]
        assert (kept or await socket.printed("ready\n")).endswith("ready\n")
        await sessions.desk.type(id, "hé")
        assert (await socket.printed("got hé\n")).startswith("hé\n")
        await socket.flat("unsubscribe", sessionId=id)
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"
        await sessions.desk.type(id, "bye")
        status = await socket.next()
        assert status == {"type": "session:status", "sessionId": id, "status": "completed"}


async def test_the_envelope(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await socket.envelope("session:subscribe", sessionId=id)
        subscribed = await socket.next()
        lines = subscribed["payload"]["bufferLines"]
        assert subscribed == {"type": "subscribed", "payload": {"sessionId": id, "bufferLines": lines}}
        if lines == [""]:
            await socket.printed("ready\n")
        else:
            assert lines == ["ready", ""]
        await socket.envelope("session:input", sessionId=id, text="first")
        message = await socket.next()
        payload = {"sessionId": id, "lines": message["payload"]["lines"], "raw": True}
        assert message == {"type": "session:output", "payload": payload}
        assert all("\n" not in line for line in payload["lines"])
        if "got first" not in payload["lines"]:
            await socket.printed("got first\n")
        await socket.envelope("session:keys", sessionId=id, keys="a b Enter")
        await socket.printed("got ab\n")
        await socket.envelope("session:unsubscribe", sessionId=id)
        assert await socket.next() == {"type": "unsubscribed", "payload": {"sessionId": id}}
        await socket.envelope("session:input", sessionId=id, text="x")
        assert (await socket.next())["payload"]["code"] == "NOT_SUBSCRIBED"
        await socket.envelope("session:subscribe", sessionId=id.upper())
        assert "got ab" in (await socket.next())["payload"]["bufferLines"]
        await socket.envelope("session:input", sessionId=id, text="bye")
        status = await socket.until("session:status")
        timestamp = status["payload"]["timestamp"]
        payload = {"sessionId": id, "previousStatus": "running", "newStatus": "completed", "timestamp": timestamp}
        assert status == {"type": "session:status", "payload": payload}


async def test_the_terminal(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await socket.envelope("pty:attach", sessionId=id, cols=80, rows=24)
        assert await socket.next() == {"type": "pty:attached", "payload": {"sessionId": id, "cols": 80, "rows": 24}}
        await socket.measured(id, rows=24, columns=80)
        await socket.envelope("pty:resize", sessionId=id, cols=100, rows=30)
        await socket.measured(id, rows=30, columns=100)
        await socket.envelope("pty:detach", sessionId=id)
        assert await socket.until("pty:detached") == {"type": "pty:detached", "payload": {"sessionId": id}}
        await socket.envelope("pty:attach", sessionId=id, cols=80, rows=24)
        await socket.until("pty:attached")
        await socket.envelope("pty:data", sessionId=id, data="bye\r")
        assert await socket.until("pty:exit") == {"type": "pty:exit", "payload": {"sessionId": id, "exitCode": 0}}


# Who may, and how it ends


async def close_code(server: Served, path: str = "/ws", **options: Any) -> int:
    """How the server closes, whatever is said."""
    async with connect(server, path, **options) as socket:
        with pytest.raises(Closed) as closed:
            await socket.flat("ping")
            await socket.next()
    code: int = closed.value.args[0]
    return code


async def is_open(server: Served, path: str = "/ws", **options: Any) -> bool:
    async with connect(server, path, **options) as socket:
        await socket.flat("ping")
        return bool((await socket.next())["type"] == "pong")


BEYOND = {"X-Forwarded-For": "192.0.2.1"}
"""A caller who does not come from this machine."""


async def test_who_may(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions"], "apis.sessions.api_key": KEY})
    assert await is_open(server)
    assert await is_open(server, "/", headers={"X-API-Key": KEY})
    assert await is_open(server, "/ws?apiKey=correct%20horse")
    assert await is_open(server, "/ws?apiKey=correct%20horse", headers=BEYOND)
    assert await is_open(server, headers={"X-API-Key": KEY, **BEYOND})
    assert await close_code(server, headers=BEYOND) == 4001
    assert await close_code(server, "/?apiKey=wrong", headers=BEYOND) == 4001
    assert await close_code(server, "/?apiKey=wrong") == 4001
    assert await close_code(server, headers={"X-API-Key": "wrong"}) == 4001


async def test_without_a_key_only_this_machine(server: Served) -> None:
    assert await is_open(server)
    assert await close_code(server, headers=BEYOND) == 4001
    assert await close_code(server, "/?apiKey=wrong") == 4001


async def test_loopback_may_be_closed_too(serve: Serve) -> None:
    settings = {"apis.sessions.api_key": KEY, "apis.sessions.key_on_loopback": True}
    server = await serve({"apis.enabled": ["sessions"], **settings})
    assert await close_code(server) == 4001
    assert await is_open(server, "/?apiKey=correct%20horse")


async def test_guesses_are_counted(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions"], "apis.sessions.api_key": KEY})
    for _ in range(10):
        assert await close_code(server, "/?apiKey=wrong", headers=BEYOND) == 4001
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await close_code(server, "/?apiKey=wrong", headers=BEYOND)
    assert refused.value.status == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Origin": "https://evil.example"}, 403, id="a page from elsewhere"),
        pytest.param({"Origin": "null"}, 403, id="a sandboxed page"),
        pytest.param({"Host": "evil.example"}, 421, id="a name that was made to mean this machine"),
        pytest.param({"Host": "evil.example", "Origin": "http://evil.example"}, 421, id="and its page"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_pages_from_elsewhere_are_refused_before_the_upgrade(
    server: Served, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await is_open(server, path, headers=headers)
    assert refused.value.status == status


async def test_a_page_of_this_machine_may(server: Served) -> None:
    assert await is_open(server, "/", headers={"Origin": "http://localhost:5173"})


async def test_a_message_may_have_64_kb(server: Served) -> None:
    async with connect(server) as socket:
        message = '{"type":"ping","padding":"%s"}'
        await socket.client.send_str(message % ("x" * (64 * 1024 - len(message) + 2)))
        assert (await socket.next())["type"] == "pong"
        await socket.client.send_str(message % ("x" * (64 * 1024 - len(message) + 3)))
        with pytest.raises(Closed, match="1009"):
            await socket.next()


async def test_a_server_that_stops_says_so(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions"]})
    async with connect(server) as socket:
        await server.app.shutdown()
        with pytest.raises(Closed, match="1001"):
            await socket.next()


async def test_pings(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", live.HEARTBEAT_SECONDS / 1000)
    async with connect(server, autoping=False) as socket:
        assert (await socket.client.receive()).type is aiohttp.WSMsgType.PING
    assert live.HEARTBEAT_SECONDS * 1000 * 2 == 30


# The path that is also device usage's


async def test_the_page_at_the_root_stays(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions", "device_usage"]})
    page = await server.get("/")
    assert (page.status, page.json["status"]) == (200, "healthy")
    assert (await server("HEAD", "/")).status == 200
    assert await is_open(server, "/")
    assert (await server.get("/ws")).status == 426


async def test_without_sessions_an_upgrade_is_an_ordinary_get(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["device_usage"]})
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    answer = await server.get("/", headers=headers)
    assert (answer.status, answer.json["status"]) == (200, "healthy")
    assert (await server.get("/ws", headers=headers)).status == 404


async def test_no_key_is_in_the_log(serve: Serve, log: Any) -> None:
    server = await serve({"apis.enabled": ["sessions"], "apis.sessions.api_key": KEY})
    await is_open(server, "/ws?apiKey=correct%20horse")
    await close_code(server, "/?apiKey=battery-staple")
    logged = log.stream.getvalue()
    assert not re.search("horse|staple", logged)
