"""Changes as clients are told of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ....storage.documents import encode
from ....storage.records import Record
from ...streams import chunk, text_frame
from .records import shown
from .user_collection import PREFIX

if TYPE_CHECKING:
    from ....storage.records import Change
    from ...streams import Wire


def change_object(change: Change) -> bytes:
    """A change as the answers of ``changes`` have it."""
    return b"{" + _members(change)


def _members(change: Change) -> bytes:
    head = b'"id":%b,"version":%d,"deleted":' % (encode(change.id), change.version)
    if change.document is None:
        return head + b"true}"
    return head + b'false,"record":' + shown(Record(change.id, change.version, change.document)) + b"}"


class Event:
    """A change, encoded once for each protocol when it is first needed."""

    def __init__(self, change: Change) -> None:
        self.collection = change.collection
        self.version = change.version
        self.size = change.size
        self._change = change

    @cached_property
    def frame(self) -> bytes:
        """A WebSocket message."""
        name = self.collection.removeprefix(PREFIX).encode()
        return text_frame(b'{"type":"change","collection":"%b",%b' % (name, _members(self._change)))

    @cached_property
    def lines(self) -> bytes:
        """A server-sent event; a document is one line."""
        return b"id: %d\ndata: %b\n\n" % (self.version, change_object(self._change))


def pack(events: Iterable[Event], wire: Wire) -> bytes:
    """Events as they are written to a stream."""
    if wire == "websocket":
        return b"".join([event.frame for event in events])
    lines = b"".join([event.lines for event in events])
    return chunk(lines) if lines and wire == "sse" else lines


def fitting(changes: Sequence[Change], size: int) -> int:
    """How many of some changes have documents of so many bytes together; at least one, if there is one."""
    for count, change in enumerate(changes):
        size -= change.size
        if size < 0:
            return max(count, 1)
    return len(changes)
