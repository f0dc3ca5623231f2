"""Apple's push service: one notification for one device, by aioapns (Apple, "Sending notification requests to APNs").

The library takes a while to import: on first use. What it leaves open is settled here: a server that says nothing, an
answer without a reason, how long to wait after a refusal, and that connections share one provider token, of which Apple
takes a new one every 20 minutes at most.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aioapns.common import NotificationRequest, NotificationResult, PushType
from aioapns.connection import (
    APNsBaseClientProtocol,
    APNsKeyConnectionPool,
    APNsTLSClientProtocol,
    JWTAuthorizationHeaderProvider,
)

from .refusals import InvalidKey, Refused, Unreachable

if TYPE_CHECKING:
    from h2.settings import ChangedSetting, SettingCodes

    from ....config import ApnsConfig, Secret

ANSWER_SECONDS = 10.0
"""How long the server may take for a connection, and for an answer."""
_KEPT_SECONDS = 24 * 3600
"""How long Apple keeps a notification for a device that is off."""

logging.getLogger("aioapns").setLevel(logging.CRITICAL)  # who pushes says what went wrong, once


class Apns:
    """A client of the push service. Connects when there is something to send."""

    def __init__(self, config: ApnsConfig, key: Secret) -> None:
        """Reads files; takes a while."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2"])  # RFC 9113 3.2
        self._pool_of = partial(_Pool, config, key.reveal(), context)
        self._pool: _Pool | None = None

    async def push(self, token: str, message: dict[str, Any], collapse_id: str) -> None:
        """Sends a notification; one that is sent again with the same id is shown once.

        Raises `Refused`, `Unreachable` or `InvalidKey`.
        """
        pool = self._pool = self._pool or self._pool_of()
        pool.check_key()
        request = NotificationRequest(
            token, message, time_to_live=_KEPT_SECONDS, collapse_key=collapse_id, push_type=PushType.ALERT
        )
        try:
            connection = await pool.acquire()
            await connection.send_notification(request)
        except Refused:
            raise
        except Exception as error:  # aioapns lets through what asyncio, ssl, h2 and its own semaphores raise
            raise Unreachable(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Ends the connections."""
        if self._pool is not None:
            self._pool.close()


class _Pool(APNsKeyConnectionPool):
    def __init__(self, config: ApnsConfig, key: str, context: ssl.SSLContext) -> None:
        super().__init__(
            key, config.key_id or "", config.team_id or "", config.topic or "", max_connections=2, ssl_context=context
        )
        server = urlsplit(config.server)
        self.protocol_class = type(
            "Protocol", (_Protocol,), {"APNS_SERVER": server.hostname, "APNS_PORT": server.port or 443}
        )
        self._provider = JWTAuthorizationHeaderProvider(self.key, self.key_id, self.team_id)

    def check_key(self) -> None:
        """Raises `InvalidKey`."""
        try:
            self._provider.get_header()  # type: ignore[no-untyped-call]  # aioapns types part of its code
        except Exception as error:  # PyJWT and cryptography have many for it
            raise InvalidKey(type(error).__name__) from error

    async def create_connection(self) -> APNsBaseClientProtocol:
        factory = partial(
            self.protocol_class,
            self.apns_topic or "",
            self.loop,
            self.discard_connection,  # type: ignore[arg-type]  # aioapns says that it never returns
            self._provider,
        )
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._create_connection(factory)

    def close(self) -> None:
        for connection in tuple(self.connections):
            connection.close()


class _Protocol(APNsTLSClientProtocol):
    """A connection. Who is answered with anything but 200 gets `Refused`.

    Until it has seen a provider token, Apple takes one notification at a time, and then as many as it says: the
    library's count of them goes wrong where they become fewer.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._retry_after: dict[str, str] = {}
        self._lost = False
        self._under_way = 0
        self._most = 1
        self._room = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        """Whether another connection is needed: who finds no room on this one waits."""
        return self._lost

    async def send_notification(self, request: NotificationRequest) -> NotificationResult:
        while self._under_way >= self._most and not self._lost:
            self._room.clear()
            await self._room.wait()
        if self._lost:
            raise ConnectionError("the connection was lost")
        self._under_way += 1
        id = request.notification_id
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                result = await super().send_notification(request)
        except Exception:
            self.close()
            raise
        finally:
            self.requests.pop(id, None)  # a connection that is lost tells all who wait on it
            retry_after = self._retry_after.pop(id, "")
        if not result.is_successful:
            wait = int(retry_after) if retry_after.isdecimal() else None
            raise Refused(int(result.status), result.description or "", result.timestamp, wait)
        return result

    def on_response_received(self, headers: dict[bytes, bytes]) -> None:
        id = headers.get(b"apns-id", b"").decode()
        if id in self.requests and b"retry-after" in headers:
            self._retry_after[id] = headers[b"retry-after"].decode()
        super().on_response_received(headers)

    def on_remote_settings_changed(self, changed_settings: dict[SettingCodes, ChangedSetting]) -> None:
        super().on_remote_settings_changed(changed_settings)
        self._most = self.conn.remote_settings.max_concurrent_streams
        self._room.set()

    def on_stream_ended(self, stream_id: int) -> None:
        super().on_stream_ended(stream_id)
        self._under_way -= 1
        self._room.set()
        id = self.request_streams.pop(stream_id, "")
        status = self.request_statuses.pop(id, None)
        request = self.requests.get(id)
        if status is not None and request is not None and not request.done():  # refused without a reason
            request.set_result(NotificationResult(id, status))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()

    def close(self) -> None:
        """At once: a server that says nothing would not say goodbye either."""
        self._end()
        if self.inactivity_timer:
            self.inactivity_timer.cancel()
        if self.transport is not None:
            self.transport.abort()

    def _end(self) -> None:
        self._lost = True
        self._room.set()
