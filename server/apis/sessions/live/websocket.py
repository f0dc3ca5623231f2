"""The WebSocket: what happens to every client, and what a session prints to those that subscribe to it
(contracts/sessions.md, "WebSocket")."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, WSMsgType, web

from .....storage.times import format_time
from ....auth import guard, websocket_key
from ....errors import ApiError, ServiceUnavailable, Unauthorized, as_api_error
from ....keys import CLOCK
from ....live import LIVE, WRONG_KEY, MessageRate
from ....turns import Turns
from .. import messages
from ..api import admit, api, sentence
from ..events import EVENTS
from ..messages import Dialect
from ..running.runner import RUNNER
from ..tmux.keys import keys_of
from ..tmux.output import Output
from .commands import Command, Input, Keys, Ping, PtyAttach, PtyData, PtyDetach, PtyResize, Subscribe, Unsubscribe, hear
from .terminals import Terminals

if TYPE_CHECKING:
    from ....request import ApiRequest
    from ....streams import SocketStream

MAX_CLIENTS = 500
"""An event is written to all of them in one turn of the loop."""
MAX_SUBSCRIPTIONS = 500
"""Of one client."""
MAX_BUFFERED = 4 << 20
"""Bytes that may wait for a client; as many characters, while it is being sent what is kept of a session."""
_PINGS = 2
"""A ping every so many heartbeats: every 30 seconds."""
_PIECE = 900_000
"""Bytes of a session's kept text in one message: many clients take no more than 1 MiB."""
_CODES = {400: "INVALID_MESSAGE", 404: "SESSION_NOT_FOUND"}
"""Of errors that have none; of others the name of the status."""

_output = lru_cache(maxsize=8)(messages.output)
"""Each subscriber's listener gets the same text."""


@guard("bearer", "api_key", optional=True)
async def _whoever(request: ApiRequest) -> bool:
    """Lets everybody in, since pages see only how an open WebSocket is closed; whether the client may stay."""
    try:
        admit(request, websocket_key(request))
    except Unauthorized:
        request.guess = True
        return False
    return True


@api.websocket("/", errors=(503,), auth=_whoever)
@api.websocket("/ws", errors=(503,), auth=_whoever)
async def live(request: ApiRequest) -> web.StreamResponse:
    """A client's messages and the server's, until one of them closes."""
    app = request.app
    if len(app[EVENTS]) >= MAX_CLIENTS:
        raise ServiceUnavailable("There are too many live connections")
    async with app[LIVE].socket(request, max_buffered=MAX_BUFFERED, every=_PINGS) as stream:
        if request.caller:
            client = Client(stream, app)
            try:
                with app[EVENTS].heard_by(client.tell):
                    await client.listen()
            finally:
                client.leave()
        else:
            stream.end(WRONG_KEY, "Missing or invalid API key")
            async for _ in stream.response:
                pass
    return stream.response


class Client:
    """One WebSocket."""

    def __init__(self, stream: SocketStream, app: web.Application) -> None:
        self.stream = stream
        self._clock = app[CLOCK]
        self._runner = app[RUNNER]
        self._dialect: Dialect = "both"
        self._rate = MessageRate(self._clock)
        self._subscriptions: dict[str, _Subscription] = {}
        self._terminals = Terminals(stream, self.tell)

    def tell(self, message: messages.Message) -> None:
        """Sends a message, in the client's dialect; a client that reads too slowly is cut off."""
        if self.stream.full:
            self.stream.end(WSCloseCode.TRY_AGAIN_LATER, "reads too slowly")
        self.stream.write(message.frame(self._dialect))

    async def listen(self) -> None:
        """Does what the client says, one message after the other, until the connection ends."""
        async for message in self.stream.response:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await self._take(message.data)
                await self.stream.drained()

    def leave(self) -> None:
        """Lets go of what the client had."""
        for session_id in tuple(self._subscriptions):
            self._unsubscribe(session_id)
        self._terminals.detach_all()

    async def _take(self, data: str | bytes) -> None:
        try:
            self._rate.count()
            heard = hear(data)
            self._dialect = heard.dialect or self._dialect
            await self._obey(heard.command())
        except Exception as error:  # noqa: BLE001  # whatever a message does, the next one may do better
            refusal = as_api_error(error)
            code = refusal.code or _CODES.get(refusal.status) or refusal.status.name
            self.tell(messages.error(code, sentence(refusal)))

    async def _obey(self, command: Command) -> None:
        match command:
            case Ping():
                self.tell(messages.pong(format_time(self._clock.now())))
            case Subscribe(session_id):
                await self._subscribe(session_id)
            case Unsubscribe(session_id):
                self._unsubscribe(session_id)
                if self._dialect != "flat":
                    self.tell(messages.enveloped("unsubscribed", sessionId=session_id))
            case Input(session_id, text):
                self._check_subscribed(session_id)
                await self._runner.type(session_id, text)
            case Keys(session_id, keys):
                self._check_subscribed(session_id)
                await self._runner.keys(session_id, keys_of(keys))
            case PtyAttach(session_id, columns, rows):
                await self._terminals.attach(session_id, await self._runner.target(session_id), columns, rows)
            case PtyData(session_id, text):
                await self._terminals.write(session_id, text)
            case PtyResize(session_id, columns, rows):
                self._terminals.resize(session_id, columns, rows)
            case PtyDetach(str(session_id)):
                self._terminals.detach(session_id)
                self.tell(messages.enveloped("pty:detached", sessionId=session_id))
            case PtyDetach():
                for session_id in self._terminals.detach_all():
                    self.tell(messages.enveloped("pty:detached", sessionId=session_id))

    async def _subscribe(self, session_id: str) -> None:
        """Sends what is kept of a session's output, and from then on what comes."""
        output = await self._runner.output(session_id)
        self._unsubscribe(session_id)
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise ApiError(f"A client may subscribe to {MAX_SUBSCRIPTIONS} sessions at a time", status=409)
        subscription = self._subscriptions[session_id] = _Subscription(self, session_id, output)
        pieces = subscription.begin()
        if self._dialect != "flat":
            first = next(pieces).split("\n")
            self.tell(messages.enveloped("subscribed", sessionId=session_id, bufferLines=first))
        await subscription.catch_up(pieces)

    def _unsubscribe(self, session_id: str) -> None:
        if subscription := self._subscriptions.pop(session_id, None):
            subscription.end()

    def _check_subscribed(self, session_id: str) -> None:
        if session_id not in self._subscriptions:
            raise ApiError("Subscribe to the session first", status=409, code="NOT_SUBSCRIBED")


class _Subscription:
    """A session's output on its way to a client."""

    def __init__(self, client: Client, session_id: str, output: Output) -> None:
        self._client = client
        self._session_id = session_id
        self._output = output
        self._behind: list[str] | None = []
        """What came while the client is being sent what is kept."""

    def begin(self) -> Iterator[str]:
        """The kept text, in pieces, at least one; nothing that comes from now on is missed."""
        kept = self._output.attach(self._heard)
        if self._output.complete:
            self._output = Output()  # of many sessions that have ended, all that they printed would stay in memory
        return _pieces(kept)

    async def catch_up(self, pieces: Iterator[str]) -> None:
        """Sends the pieces as the client takes them, then what came meanwhile; after that, what comes as it does."""
        stream, turns = self._client.stream, Turns()
        for piece in pieces:
            self._client.tell(messages.output(self._session_id, piece))
            await turns.wrote(len(piece))
            await stream.drained()
        while self._behind and stream.open:
            came = "".join(self._behind)
            self._behind.clear()
            self._client.tell(messages.output(self._session_id, came))
            await stream.drained()
        self._behind = None

    def end(self) -> None:
        self._output.detach(self._heard)

    def _heard(self, text: str) -> None:
        if self._behind is None:
            self._client.tell(_output(self._session_id, text))
            return
        self._behind.append(text)
        if sum(map(len, self._behind)) > MAX_BUFFERED:
            self._client.stream.end(WSCloseCode.TRY_AGAIN_LATER, "reads too slowly")
            self._behind.clear()


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most `_PIECE` bytes, cut between lines where there are some."""
    data = text.encode()
    while len(data) > _PIECE:
        cut = data.rfind(b"\n", 0, _PIECE) + 1 or _PIECE
        while data[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        yield data[:cut].decode()
        data = data[cut:]
    yield data.decode()
