"""The connection that carries one call between a command and a running server.

A message is a frame: the length of its body in four bytes, the highest first, and the body in MessagePack.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StorageUnavailable
from .messages import ANYTHING, Message

MAX_FRAME_BYTES = 64 << 20
READ_BYTES = 256 << 10
"""What a connection reads ahead, about."""

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(ANYTHING).decode


def socket_of(store: Path) -> Path:
    """``<store>.sock``: the socket of the server that runs on a store, or a link to it."""
    real = Path(os.path.realpath(store))
    return real.with_name(real.name + ".sock")


def not_understood() -> StorageUnavailable:
    return StorageUnavailable("the running server is of another version than this command: restart it")


class Link:
    """``patience``: the seconds that the other side may take for its turn; None: any time.

    Where the other side is gone or says what is not understood, that is `StorageUnavailable`.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float | None = None
    ) -> None:
        self.patience = patience
        self.received = 0
        """Bytes."""
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(0)  # what was sent is with the system, so that closing loses nothing

    async def send(self, message: Message) -> None:
        """Raises ValueError for a message of more than 64 MiB."""
        body = _encode(message)
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError(f"more than {MAX_FRAME_BYTES >> 20} MiB cannot be said to or by a running server at once")
        async with self._turn():
            self._writer.write(len(body).to_bytes(4, "big"))
            self._writer.write(body)
            await self._writer.drain()

    async def receive(self) -> Any:
        """One of the `Message` classes."""
        async with self._turn():
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            if size > MAX_FRAME_BYTES:
                raise not_understood()
            body = await self._reader.readexactly(size)
        self.received += size
        try:
            return _decode(body)
        except msgspec.DecodeError as error:
            raise not_understood() from error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.patience):
                yield
        except TimeoutError as error:
            raise StorageUnavailable(f"the other side took more than {self.patience:g} seconds") from error
        except (OSError, EOFError) as error:
            raise StorageUnavailable(
                "the server ended before it had answered: look whether it did what it was asked"
            ) from error

    async def close(self) -> None:
        """Ends the connection at once, whatever the other side does."""
        self._writer.transport.abort()
        with suppress(OSError):  # the other side may have ended it before
            await self._writer.wait_closed()
