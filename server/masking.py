"""WebSocket frames that are not masked, which aiohttp's reader would take (RFC 6455 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp.http_websocket import WebSocketReader

_LENGTHS = {126: 2, 127: 8}
"""How many more bytes the length of a payload takes, by the seven bits that announce it (RFC 6455 5.2)."""
_NO_FRAME = b"\x70\x00"
"""With all reserved bits set: the reader fails the connection with 1002, as it has to be for a frame without a mask."""


class Masked:
    """What a WebSocket's client sends, on its way to the reader, which is only given whole heads of frames."""

    def __init__(self, reader: WebSocketReader) -> None:
        self._reader = reader
        self._held = b""
        """The head of a frame, as far as it has come."""
        self._rest = 0
        """Bytes of the frame under way that have not come."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        data = self._held + data
        at = self._rest  # where the next frame begins
        while at + 1 < len(data):
            if not data[at + 1] & 0x80:
                return self._reader.feed_data(data[:at] + _NO_FRAME)
            length = data[at + 1] & 0x7F
            body = at + 2
            if more := _LENGTHS.get(length, 0):
                body += more
                if len(data) < body:
                    break
                length = int.from_bytes(data[at + 2 : body])
            at = body + 4 + length
        whole = min(at, len(data))
        self._held, self._rest = data[whole:], at - whole
        return self._reader.feed_data(data[:whole])

    def feed_eof(self) -> None:
        self._reader.feed_eof()
