"""The two dialects of the WebSocket (contracts/sessions.md, "WebSocket"), and what is said in them.

*Flat* has the fields of a message beside its ``type``, the *envelope* has them in ``payload``. The type of a client's
message tells which one it speaks: ``subscribe`` and ``unsubscribe`` are flat, ``session:…`` and ``pty:…`` are the
envelope's, whatever else stands in them. A ``ping`` is the envelope's where it has a ``payload``; without one it is
the same in both and tells nothing, as does a message of an unknown type. While nothing has told, the server speaks
both: the flat fields and ``payload`` in one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from ....storage.documents import InvalidDocument, decode, encode
from ...errors import ApiError
from ...live import text_frame

Dialect = Literal["flat", "envelope", "both"]

MAX_COLUMNS = MAX_ROWS = 1000
"""Of a terminal."""


# What clients say

_SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Columns = Annotated[int, msgspec.Meta(ge=1, le=MAX_COLUMNS)]
_Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]


class Command(msgspec.Struct, rename="camel", frozen=True):
    """What a client wants."""


class Ping(Command, frozen=True):
    pass


class Subscribe(Command, frozen=True):
    session_id: _SessionId


class Unsubscribe(Command, frozen=True):
    session_id: _SessionId


class Input(Command, frozen=True):
    session_id: _SessionId
    text: str


class Keys(Command, frozen=True):
    session_id: _SessionId
    keys: str


class PtyAttach(Command, frozen=True):
    session_id: _SessionId
    cols: _Columns
    rows: _Rows


class PtyData(Command, frozen=True):
    session_id: _SessionId
    data: str


class PtyResize(Command, frozen=True):
    session_id: _SessionId
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


# What the server says


class Message:
    """What the server says: ``flat`` and ``payload`` are its fields in the two dialects."""

    def __init__(self, kind: str, *, flat: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        self._flat = {"type": kind, **flat}
        self._envelope = {"type": kind, "payload": payload}
        self._frames: dict[Dialect, bytes] = {}

    def frame(self, dialect: Dialect) -> bytes:
        """The WebSocket message; made once, however many it goes to."""
        if dialect not in self._frames:
            self._frames[dialect] = text_frame(encode(self._members(dialect)))
        return self._frames[dialect]

    def _members(self, dialect: Dialect) -> dict[str, Any]:
        match dialect:
            case "flat":
                return self._flat
            case "envelope":
                return self._envelope
        return self._flat | self._envelope


def enveloped(kind: str, **payload: Any) -> Message:
    """What is said in the envelope alone, since nothing in the other dialect asks for it."""
    return Message(kind, flat={"payload": payload}, payload=payload)


def pong(timestamp: str) -> Message:
    return enveloped("pong", timestamp=timestamp)


def error(code: str, message: str) -> Message:
    fields = {"code": code, "message": message}
    return Message("error", flat=fields, payload=fields)


def output(session_id: str, text: str) -> Message:
    """What a session printed.

    The envelope has it as the pieces between line breaks, and ``raw`` says so: the first piece goes on with the line
    that was last before, the last is the beginning of a line, empty where the text ends with a line break. Joined
    with line breaks they are the text.
    """
    return Message(
        "session:output",
        flat={"sessionId": session_id, "output": text},
        payload={"sessionId": session_id, "lines": text.split("\n"), "raw": True},
    )


def status(session_id: str, previous: str, new: str, timestamp: str) -> Message:
    return Message(
        "session:status",
        flat={"sessionId": session_id, "status": new},
        payload={"sessionId": session_id, "previousStatus": previous, "newStatus": new, "timestamp": timestamp},
    )


def waiting(session_id: str, waits: bool, reason: str | None, timestamp: str) -> Message:
    fields = {"sessionId": session_id, "waiting": waits, "reason": reason}
    return Message("session:waiting", flat=fields, payload={**fields, "timestamp": timestamp})


def ticket_state(ticket_id: str, previous: str, new: str, trigger: str, reason: str, timestamp: str) -> Message:
    return Message(
        "ticket:state",
        flat={"ticketId": ticket_id, "state": new},
        payload={
            "ticketId": ticket_id,
            "previousState": previous,
            "newState": new,
            "trigger": trigger,
            "reason": reason,
            "timestamp": timestamp,
        },
    )


def notification(document: Mapping[str, Any]) -> Message:
    """``document``: as it is kept, with its ``id``."""
    return Message(
        "notification",
        flat={"notification": {name: document[name] for name in ("id", "type", "message")}},
        payload={
            "id": document["id"],
            "title": document["title"],
            "body": document["message"],
            "timestamp": document["created_at"],
        },
    )
