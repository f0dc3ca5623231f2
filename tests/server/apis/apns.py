"""A push service on this machine that speaks as Apple's does: HTTP/2 over TLS, one stream a notification."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes, Settings

_STREAMS = SettingCodes.MAX_CONCURRENT_STREAMS
KEY_ID, TEAM_ID, TOPIC = "ABC123DEFG", "DEF123GHIJ", "com.example.sessions"


def p8(curve: ec.EllipticCurve | None = None) -> tuple[str, Any]:
    """The text of a signing key, and the public key to it."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return text.decode(), key.public_key()


@dataclass
class Pushed:
    """A notification as it came."""

    headers: dict[str, str]
    payload: Any

    @property
    def token(self) -> str:
        return self.headers[":path"].rpartition("/")[2]

    @property
    def jwt(self) -> str:
        scheme, _, token = self.headers["authorization"].partition(" ")
        assert scheme == "bearer"
        return token


@dataclass
class Say:
    """An answer. ``status`` None: none at all; ``goaway``: the connection ends instead."""

    status: int | None = 200
    reason: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timestamp: int | None = None
    goaway: bool = False


class Service:
    """Answers each device's notifications as it was told to, in turn; then with 200."""

    def __init__(self) -> None:
        self.url = ""
        self.pushed: list[Pushed] = []
        self.connections = 0
        self.streams = {1: 100, 50: 3}
        """How many notifications at a time it takes once so many have come; at first one."""
        self._answers: dict[str, list[Say]] = defaultdict(list)
        self._came = asyncio.Event()

    def will(self, token: str, *answers: Say) -> None:
        self._answers[token].extend(answers)

    async def until(self, count: int) -> list[Pushed]:
        """Waits until so many notifications have come, in all."""
        async with asyncio.timeout(30):
            while len(self.pushed) < count:
                self._came.clear()
                await self._came.wait()
        return self.pushed

    def answer(self, pushed: Pushed) -> Say:
        self.pushed.append(pushed)
        self._came.set()
        told = self._answers[pushed.token]
        return told.pop(0) if told else Say()


class _Connection(asyncio.Protocol):
    def __init__(self, service: Service, open_: set[asyncio.BaseTransport]) -> None:
        self._service = service
        self._open = open_
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.local_settings = Settings(client=False, initial_values={_STREAMS: 1})
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        self._service.connections += 1
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._open.add(transport)
        self._h2.initiate_connection()
        self._transport.write(self._h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._requests[event.stream_id] = (dict(_texts(event.headers)), bytearray())
            elif isinstance(event, DataReceived):
                self._requests[event.stream_id][1].extend(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                headers, body = self._requests.pop(event.stream_id)
                self._say(event.stream_id, headers, self._service.answer(Pushed(headers, json.loads(body))))
                if most := self._service.streams.get(len(self._service.pushed)):
                    self._h2.update_settings({_STREAMS: most})
        self._transport.write(self._h2.data_to_send())

    def _say(self, stream: int, request: dict[str, str], say: Say) -> None:
        if say.goaway:
            self._h2.close_connection(last_stream_id=0)
        elif say.status is not None:
            head = {":status": str(say.status), "apns-id": request["apns-id"], **say.headers}
            body = {"reason": say.reason, "timestamp": say.timestamp}
            told = {name: value for name, value in body.items() if value is not None}
            self._h2.send_headers(stream, list(head.items()), end_stream=not told)
            if told:
                self._h2.send_data(stream, json.dumps(told).encode(), end_stream=True)


def _texts(headers: Iterable[Any]) -> Iterable[tuple[str, str]]:
    return ((str(name), str(value)) for name, value in headers)


@asynccontextmanager
async def push_service(folder: Path) -> AsyncIterator[tuple[Service, Path]]:
    """The service, and a file with the certificate of who vouches for it."""
    authority = trustme.CA()
    trusted = folder / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    service, open_ = Service(), set[asyncio.BaseTransport]()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(service, open_), "localhost", 0, ssl=context
    )
    service.url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield service, trusted
    finally:
        for transport in tuple(open_):
            transport.abort()  # type: ignore[attr-defined]  # it is that of a connection
        server.close()
        await server.wait_closed()
