"""What the server says on the WebSocket, in two dialects (contracts/sessions.md, "WebSocket").

*Flat* has the fields of a message beside its ``type``, the *envelope* has them in ``payload``. While a client has not
told which one it speaks (`live.commands`), it is spoken to in both: the flat fields and ``payload`` in one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ....storage.documents import encode
from ...streams import text_frame

Dialect = Literal["flat", "envelope", "both"]


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
