"""Push notifications to every registered device. Who has something to tell never waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from .....storage import Query, Record, walk
from .....storage.times import SECOND
from ....ids import new_id
from ....keys import CLOCK, CONFIG, STORAGE
from ....tasks import stop
from ..texts import shortened
from .devices import DEVICES, forget
from .refusals import InvalidKey, Refused, Unreachable

if TYPE_CHECKING:
    from .....storage import Storage
    from ....clock import Clock
    from ....config import ApnsConfig
    from .apns import Apns

log = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""How many notifications may wait; of more the oldest are dropped."""
_AT_ONCE = 200
"""How many devices are being sent to, those that will be tried again included."""
ATTEMPTS = 8
"""How often one notification is sent to one device, after 1, 2, 4, ... seconds."""
_LONGEST_PAUSE = 600
"""Seconds; a server that wants a longer one is not asked again."""
_TITLE, _BODY = 100, 500
"""Characters: a payload may have 4,096 bytes, and a character takes up to six."""


class Push(NamedTuple):
    """A notification: what Apple is sent, and what tells it from others there."""

    message: dict[str, Any]
    id: str


class Pusher:
    """Sends to every registered device, in the background; without a key for Apple's service, to none."""

    def __init__(self, config: ApnsConfig, storage: Storage, clock: Clock) -> None:
        self._config = config
        self._storage = storage
        self._clock = clock
        self._waiting: deque[Push] = deque(maxlen=MAX_WAITING)
        self._dropped = 0
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._apns: Apns | None = None
        self._key_refused = False

    def send(self, title: str, body: str, data: dict[str, str]) -> None:
        """Tells every device; returns at once. ``data`` are further members of the payload, none of them ``aps``."""
        if self._config.key is None:
            return
        if len(self._waiting) == MAX_WAITING:
            self._dropped += 1
        alert = {"title": shortened(title, _TITLE), "body": shortened(body, _BODY)}
        self._waiting.append(Push({"aps": {"alert": alert, "sound": "default"}, **data}, new_id()))
        self._wake.set()

    async def run(self) -> None:
        """Sends what waits, until cancelled."""
        try:
            async with asyncio.TaskGroup() as deliveries:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while self._waiting:
                        if self._dropped:
                            log.warning("%d push notifications were dropped: too many waited", self._dropped)
                            self._dropped = 0
                        await self._fan_out(self._waiting.popleft(), deliveries)
        finally:
            if self._apns is not None:
                self._apns.close()

    async def _fan_out(self, push: Push, deliveries: asyncio.TaskGroup) -> None:
        """Begins to send to each device; waits where too many are being sent to."""
        try:
            async for device in walk(self._storage, Query(DEVICES)):
                if self._apns is None:
                    self._apns = await asyncio.to_thread(_open, self._config)
                await self._slots.acquire()
                task = deliveries.create_task(self._deliver(push, device))
                task.add_done_callback(lambda _: self._slots.release())
        except Exception:
            log.exception("a push notification is lost")

    async def _deliver(self, push: Push, device: Record) -> None:
        try:
            await self._try(push, device)
        except Exception:
            log.exception("a push notification to %s failed", _shortened_token(device.id))

    async def _try(self, push: Push, device: Record) -> None:
        assert self._apns is not None
        who, why = _shortened_token(device.id), ""
        for attempt in range(ATTEMPTS):
            pause = 2**attempt
            try:
                await self._apns.push(device.id, push.message, push.id)
                self._key_refused = False
                return
            except InvalidKey as error:
                self._refuse_key(f"apis.sessions.apns.key is no signing key of Apple's: {error}")
                return
            except Unreachable as error:
                why = f"no answer: {error}"
            except Refused as error:
                why = str(error)
                if error.status == 410:  # not a BadDeviceToken: at the wrong one of Apple's two servers all are
                    await self._remove(device, error)
                    return
                if error.status == 403:
                    self._refuse_key(f"Apple refuses the key: {error}")
                    return
                if error.status != 429 and error.status < 500:
                    break
                pause = max(pause, error.retry_after or 0)
                if pause > _LONGEST_PAUSE:
                    break
            if attempt + 1 < ATTEMPTS:
                await self._clock.wait_until(self._clock.now() + pause * SECOND)
        log.warning("a push notification to %s is given up after %d attempts: %s", who, attempt + 1, why)

    async def _remove(self, device: Record, error: Refused) -> None:
        """Forgets a device that is gone, unless it has registered since."""
        if await forget(self._storage, device, error.since):
            log.info("device %s is removed: %s", _shortened_token(device.id), error)

    def _refuse_key(self, message: str) -> None:
        """Says it once, until a push succeeds."""
        if not self._key_refused:
            log.error("push notifications cannot be sent: %s", message)
        self._key_refused = True


PUSHER = web.AppKey("sessions_pusher", Pusher)
"""Set when the application starts."""


@asynccontextmanager
async def pushing(app: web.Application) -> AsyncIterator[None]:
    """The application's `Pusher`, while it runs."""
    pusher = app[PUSHER] = Pusher(app[CONFIG].apis.sessions.apns, app[STORAGE], app[CLOCK])
    task = asyncio.create_task(pusher.run(), name="push notifications")
    try:
        yield
    finally:
        await stop(task)


def _open(config: ApnsConfig) -> Apns:
    from .apns import Apns  # with its library it takes a while to import

    assert config.key is not None
    return Apns(config, config.key)


def _shortened_token(token: str) -> str:
    """Enough to tell a device by, too little to send to it."""
    return f"{token[:6]}…"
