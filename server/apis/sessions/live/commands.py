"""What clients say on the WebSocket, in two dialects (contracts/sessions.md, "WebSocket").

The type of a message tells which one a client speaks: ``subscribe`` and ``unsubscribe`` are flat, ``session:…`` and
``pty:…`` are the envelope's, whatever else stands in them. A ``ping`` is the envelope's where it has a ``payload``;
without one it is the same in both and tells nothing, as does a message of an unknown type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from .....storage.documents import InvalidDocument, decode
from ....errors import ApiError
from ..messages import Dialect

MAX_COLUMNS = MAX_ROWS = 1000
"""Of a terminal."""

_SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Columns = Annotated[int, msgspec.Meta(ge=1, le=MAX_COLUMNS)]
_Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]


class Command(msgspec.Struct, rename="camel", frozen=True):
    """What a client wants."""


class OfSession(Command, frozen=True):
    session_id: _SessionId


class Ping(Command, frozen=True):
    pass


class Subscribe(OfSession, frozen=True):
    pass


class Unsubscribe(OfSession, frozen=True):
    pass


class Input(OfSession, frozen=True):
    text: str


class Keys(OfSession, frozen=True):
    keys: str


class PtyAttach(OfSession, frozen=True):
    cols: _Columns
    rows: _Rows


class PtyData(OfSession, frozen=True):
    data: str


class PtyResize(OfSession, frozen=True):
    cols: _Columns
    rows: _Rows


class PtyDetach(Command, frozen=True):
    """Without a session all of the client's terminals are meant."""

    session_id: _SessionId | None = None


_FLAT: Mapping[str, type[Command]] = {"subscribe": Subscribe, "unsubscribe": Unsubscribe, "ping": Ping}
_ENVELOPE: Mapping[str, type[Command]] = {
    "session:subscribe": Subscribe,
    "session:unsubscribe": Unsubscribe,
    "session:input": Input,
    "session:keys": Keys,
    "pty:attach": PtyAttach,
    "pty:data": PtyData,
    "pty:resize": PtyResize,
    "pty:detach": PtyDetach,
    "ping": Ping,
}


class Heard(NamedTuple):
    """A message of a known type. ``dialect``: None where it tells none."""

    dialect: Dialect | None
    kind: type[Command]
    fields: Any

    def command(self) -> Command:
        """What it says; the session's id as the store has it, since clients may write it in capitals. Raises
        `ApiError`."""
        if isinstance(self.fields, dict) and isinstance(id := self.fields.get("sessionId"), str):
            self.fields["sessionId"] = id.lower()
        try:
            return msgspec.convert(self.fields, self.kind)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None


def hear(data: str | bytes) -> Heard:
    """Tells by its type what a client's message is. Raises `ApiError`, whose code is for the client."""
    try:
        message = decode(data if isinstance(data, bytes) else data.encode())
    except InvalidDocument as error:
        raise ApiError(f"The message {error.message}", status=400, code="PARSE_ERROR") from None
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str) or not (kind in _FLAT or kind in _ENVELOPE):
        raise _invalid(f"The type must be one of {', '.join(sorted({*_FLAT, *_ENVELOPE}))}")
    if kind in _ENVELOPE and (kind not in _FLAT or "payload" in message):
        return Heard("envelope", _ENVELOPE[kind], message.get("payload", {}))
    return Heard(None if kind in _ENVELOPE else "flat", _FLAT[kind], message)


def _invalid(message: str) -> ApiError:
    return ApiError(message, status=400, code="INVALID_MESSAGE")
