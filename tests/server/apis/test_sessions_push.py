"""Push notifications, as a push service on this machine gets them and answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from homeport.server.apis.sessions.notifications import apns
from homeport.server.apis.sessions.notifications.devices import DEVICES
from homeport.server.apis.sessions.notifications.push import ATTEMPTS, MAX_WAITING, Pusher
from homeport.server.clock import MovableClock
from homeport.server.config import ApnsConfig, Secret
from homeport.storage import Put, Query, Storage, StorageUnavailable
from homeport.storage.memory import MemoryStorage
from homeport.storage.times import parse_time

from .apns import KEY_ID, TEAM_ID, TOPIC, Pushed, Say, Service, p8, push_service
from .conftest import until

KEY, PUBLIC_KEY = p8()
ONE, TWO = "1a" * 32, "2b" * 32
NOW = "2025-12-30T18:00:00.000Z"
DATA = {"notification_id": "0194", "type": "waiting_input"}


class Pushing:
    """A pusher at work, and the service that it sends to."""

    def __init__(self, service: Service, storage: Storage, config: ApnsConfig) -> None:
        self.service = service
        self.storage = storage
        self.clock = MovableClock(parse_time(NOW))
        self.pusher = Pusher(config, storage, self.clock)
        self.send = self.pusher.send

    async def register(self, *tokens: str, at: str = NOW) -> None:
        await self.storage.commit([Put(DEVICES, token, {"platform": "ios", "updatedAt": at}) for token in tokens])

    async def devices(self) -> list[str]:
        return [record.id for record in (await self.storage.find(Query(DEVICES))).records]

    async def pushes(self, count: int, seconds: float = 1) -> list[Pushed]:
        """So many notifications, in all; the clock goes on by so many seconds whenever somebody waits for it."""
        waiting = asyncio.create_task(self.service.until(count))
        async with asyncio.timeout(30):
            while not waiting.done():
                await asyncio.wait([waiting], timeout=0.01)
                self.clock.advance(seconds)
        return waiting.result()


Start = Callable[..., Awaitable[Pushing]]


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with push_service(tmp_path) as (service, trusted):
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        yield service


@pytest.fixture
async def start(service: Service) -> AsyncIterator[Start]:
    tasks = []
    storage = MemoryStorage()
    async with storage:
        await storage.declare(DEVICES)

        async def begin(*, key: str | None = KEY, server: str = "") -> Pushing:
            config = ApnsConfig(
                key=Secret(key) if key else None,
                key_id=KEY_ID,
                team_id=TEAM_ID,
                topic=TOPIC,
                server=server or service.url,
            )
            pushing = Pushing(service, storage, config)
            tasks.append(asyncio.create_task(pushing.pusher.run()))
            return pushing

        yield begin
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)


async def test_what_a_device_is_sent(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.send("Waiting for input", "CSM-001 asks “proceed?”", DATA)
    (pushed,) = await pushing.service.until(1)
    headers = pushed.headers
    assert (headers[":method"], headers[":scheme"], headers[":path"]) == ("POST", "https", f"/3/device/{ONE}")
    assert (headers["apns-topic"], headers["apns-push-type"], headers["host"]) == (TOPIC, "alert", "localhost")
    assert len(headers["apns-id"]) == len(headers["apns-collapse-id"]) == 36
    assert 0 < int(headers["apns-expiration"]) - time.time() <= 24 * 3600
    assert pushed.payload == {
        "aps": {
            "alert": {"title": "Waiting for input", "body": "CSM-001 asks “proceed?”"},
            "sound": "default",
        },
        **DATA,
    }
    assert jwt.get_unverified_header(pushed.jwt) == {"alg": "ES256", "kid": KEY_ID, "typ": "JWT"}
    claims = jwt.decode(pushed.jwt, PUBLIC_KEY, ["ES256"], options={"require": ["iss", "iat"]}, issuer=TEAM_ID)
    assert set(claims) == {"iss", "iat"}
    assert abs(claims["iat"] - time.time()) < 60


async def test_every_device_is_sent_to_over_one_connection_with_one_provider_token(start: Start) -> None:
    pushing = await start()
    tokens = [f"{number:064x}" for number in range(600)]  # more than a page of them, and than are sent to at once
    await pushing.register(*tokens)
    pushing.send("a", "b", {})
    pushed = await pushing.service.until(600)
    assert sorted(one.token for one in pushed) == tokens
    assert pushing.service.connections == 1
    assert len({one.jwt for one in pushed}) == 1
    assert len({one.headers["apns-collapse-id"] for one in pushed}) == 1


async def test_a_later_connection_has_the_same_provider_token(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, Say(goaway=True))
    pushing.send("a", "b", {})
    first, second = await pushing.pushes(2)
    assert pushing.service.connections == 2
    assert first.jwt == second.jwt


async def test_a_long_text_is_cut(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.send("T" * 101, "\0" * 501, {})
    (pushed,) = await pushing.service.until(1)
    alert = pushed.payload["aps"]["alert"]
    assert alert == {"title": "T" * 99 + "…", "body": "\0" * 499 + "…"}


# What the service says


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Say(410, "Unregistered"), id="unregistered"),
        pytest.param(Say(410, "Unregistered", timestamp=parse_time(NOW) // 1000), id="unregistered since"),
        pytest.param(Say(410), id="gone without a reason"),
        pytest.param(Say(410, "ExpiredToken"), id="expired"),
    ],
)
async def test_a_device_that_is_gone_is_removed(start: Start, answer: Say) -> None:
    pushing = await start()
    await pushing.register(ONE, TWO)
    pushing.service.will(ONE, answer)
    pushing.send("a", "b", {})

    async def removed() -> bool:
        return await pushing.devices() == [TWO]

    await until(removed)
    pushing.send("c", "d", {})
    assert [pushed.token for pushed in (await pushing.service.until(3))[2:]] == [TWO]


async def test_a_device_that_has_registered_since_it_was_gone_stays(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, Say(410, "Unregistered", timestamp=parse_time(NOW) // 1000 - 1))
    pushing.send("a", "b", {})
    await pushing.service.until(1)
    pushing.send("c", "d", {})
    await pushing.service.until(2)
    assert await pushing.devices() == [ONE]


async def test_a_device_that_registers_while_it_is_sent_to_stays(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, Say(500, "InternalServerError"), Say(410, "Unregistered"))
    pushing.send("a", "b", {})
    await pushing.service.until(1)
    await pushing.register(ONE)
    await pushing.pushes(2)
    pushing.send("c", "d", {})
    await pushing.pushes(3)
    assert await pushing.devices() == [ONE]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Say(429, "TooManyRequests"), id="429"),
        pytest.param(Say(500, "InternalServerError"), id="500"),
        pytest.param(Say(500), id="500 without a reason"),
        pytest.param(Say(503, "ServiceUnavailable"), id="503"),
        pytest.param(Say(None), id="silence"),
        pytest.param(Say(goaway=True), id="GOAWAY"),
    ],
)
async def test_what_may_pass_is_tried_again(start: Start, monkeypatch: pytest.MonkeyPatch, answer: Say) -> None:
    monkeypatch.setattr(apns, "ANSWER_SECONDS", 0.3)
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, answer, answer)
    pushing.send("a", "b", {})
    pushed = await pushing.pushes(3)
    assert len({one.headers["apns-collapse-id"] for one in pushed}) == 1, "a device shows it once"
    assert {one.token for one in pushed} == {ONE}
    assert await pushing.devices() == [ONE]


@pytest.mark.parametrize(("header", "seconds"), [({}, 1), ({"retry-after": "7"}, 7), ({"retry-after": "soon"}, 1)])
async def test_how_long_it_waits(start: Start, header: dict[str, str], seconds: int) -> None:
    pushing = await start()
    await pushing.register(ONE, TWO)
    pushing.service.will(ONE, Say(429, "TooManyRequests", header))
    pushing.send("a", "b", {})
    await pushing.service.until(2)
    pushing.clock.advance(seconds - 0.001)
    pushing.send("c", "d", {})
    assert len(await pushing.service.until(4)) == 4, "the others, and what comes later, do not wait for it"
    pushing.clock.advance(0.001)
    assert (await pushing.service.until(5))[4].payload["aps"]["alert"]["title"] == "a"


async def test_it_gives_up(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, *[Say(500, "InternalServerError")] * ATTEMPTS)
    pushing.send("a", "b", {})
    await pushing.pushes(ATTEMPTS, seconds=200)
    pushing.send("c", "d", {})
    pushed = await pushing.pushes(ATTEMPTS + 1)
    assert pushed[-1].payload["aps"]["alert"]["title"] == "c"
    assert f"given up after {ATTEMPTS} attempts: 500 InternalServerError" in caplog.text
    assert ONE[:6] in caplog.text
    assert ONE[:8] not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Say(400, "BadDeviceToken"), id="a token of Apple's other server"),
        pytest.param(Say(400, "DeviceTokenNotForTopic"), id="topic"),
        pytest.param(Say(413, "PayloadTooLarge"), id="too large"),
        pytest.param(Say(429, "TooManyRequests", {"retry-after": "86400"}), id="not today"),
    ],
)
async def test_what_will_not_pass_is_given_up_at_once(
    start: Start, answer: Say, caplog: pytest.LogCaptureFixture
) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, answer)
    pushing.send("a", "b", {})

    async def given_up() -> bool:
        return f"given up after 1 attempts: {answer.status} {answer.reason}" in caplog.text

    await until(given_up)
    assert await pushing.devices() == [ONE]


# What is wrong with our side


async def test_a_key_that_apple_refuses_is_told_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pushing = await start()
    await pushing.register(ONE)
    refused = Say(403, "InvalidProviderToken")
    pushing.service.will(ONE, refused, refused, Say(), refused)
    for number in range(1, 5):
        pushing.send("a", "b", {})
        await pushing.service.until(number)

    async def told_again() -> bool:
        return caplog.text.count("Apple refuses the key: 403 InvalidProviderToken") == 2

    await until(told_again)
    assert len(pushing.service.pushed) == 4, "none was tried again"
    assert await pushing.devices() == [ONE]


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("no key", id="no key"),
        pytest.param(p8(ec.SECP384R1())[0], id="another curve"),
        pytest.param(KEY.replace("PRIVATE", "PUBLIC"), id="mislabelled"),
    ],
)
async def test_a_key_that_is_none_is_told_once(start: Start, key: str, caplog: pytest.LogCaptureFixture) -> None:
    pushing = await start(key=key)
    await pushing.register(ONE, TWO)
    pushing.send("a", "b", {})

    async def told() -> bool:
        return "apis.sessions.apns.key is no signing key" in caplog.text

    await until(told)
    pushing.send("c", "d", {})
    await asyncio.sleep(0.05)
    assert caplog.text.count("apis.sessions.apns.key") == 1
    assert key[30:60] not in caplog.text or len(key) < 30
    assert not pushing.service.pushed


async def test_without_a_key_nothing_is_sent(start: Start) -> None:
    pushing = await start(key=None)
    await pushing.register(ONE)
    pushing.send("a", "b", {})
    await asyncio.sleep(0.05)
    assert not pushing.service.connections


async def test_nobody_is_there(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(30):
        unused = await asyncio.start_server(lambda *_: None, "localhost", 0)
        url = f"https://localhost:{unused.sockets[0].getsockname()[1]}"
        unused.close()
        await unused.wait_closed()
    pushing = await start(server=url)
    await pushing.register(ONE)
    pushing.send("a", "b", {})

    async def given_up() -> bool:
        pushing.clock.advance(200)
        return f"given up after {ATTEMPTS} attempts: no answer" in caplog.text

    await until(given_up)


async def test_a_server_that_is_not_trusted_gets_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    pushing = await start()
    await pushing.register(ONE)
    pushing.send("a", "b", {})

    async def given_up() -> bool:
        pushing.clock.advance(200)
        return f"given up after {ATTEMPTS} attempts: no answer" in caplog.text

    await until(given_up)
    assert not pushing.service.pushed


async def test_of_too_many_the_oldest_are_dropped(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pushing = await start()
    await pushing.register(ONE)
    for number in range(MAX_WAITING + 5):  # before anything else has its turn
        pushing.send(str(number), "b", {})
    pushed = await pushing.service.until(MAX_WAITING)
    assert {one.payload["aps"]["alert"]["title"] for one in pushed} == {str(n) for n in range(5, MAX_WAITING + 5)}
    assert "5 push notifications were dropped" in caplog.text


async def test_a_store_that_is_away_for_a_moment(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pushing = await start()
    await pushing.register(ONE)

    async def away(_: Any) -> Any:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(pushing.storage, "find", away)
        pushing.send("a", "b", {})

        async def told() -> bool:
            return "a push notification is lost" in caplog.text

        await until(told)
    pushing.send("c", "d", {})
    (pushed,) = await pushing.service.until(1)
    assert pushed.payload["aps"]["alert"]["title"] == "c"


async def test_it_stops_while_the_service_is_silent(start: Start) -> None:
    pushing = await start()
    await pushing.register(ONE)
    pushing.service.will(ONE, Say(None))
    pushing.send("a", "b", {})
    await pushing.service.until(1)  # and the fixture stops it now


def test_on_the_loop_of_a_server_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`homeport serve` runs on uvloop, whose transports are of other classes."""
    monkeypatch.setattr(apns, "ANSWER_SECONDS", 0.3)

    async def push_to_a_silent_service() -> None:
        async with push_service(tmp_path) as (service, trusted), MemoryStorage() as storage:
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            await storage.declare(DEVICES)
            config = ApnsConfig(key=Secret(KEY), key_id=KEY_ID, team_id=TEAM_ID, topic=TOPIC, server=service.url)
            pushing = Pushing(service, storage, config)
            running = asyncio.create_task(pushing.pusher.run())
            await pushing.register(ONE)
            service.will(ONE, Say(None), Say(500))
            pushing.send("a", "b", {})
            await pushing.pushes(3)
            assert service.connections == 2
            running.cancel()
            await asyncio.wait([running])

    uvloop.run(push_to_a_silent_service())
