"""A store for a command, whoever owns it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from .. import make_storage
from ..base import Storage
from ..errors import StorageLocked, StorageUnavailable
from ..records import Collection
from . import RemoteStorage

PATIENCE = 3.0
"""Seconds that an owner may take to start, to stop, or, as another command, to be done."""
_POLL_SECONDS = 0.05


@asynccontextmanager
async def reach_storage(url: str, collections: Iterable[Collection] = ()) -> AsyncIterator[Storage]:
    """The store of a URL (see `make_storage`): opened here, under its lock, or through the server that runs on it.

    Raises `StorageLocked` where somebody has it who does not answer.
    """
    storage = await _reached(url)
    try:
        await storage.declare(*collections)
        yield storage
    finally:
        await storage.close()


async def _reached(url: str) -> Storage:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while True:
        storage = make_storage(url)
        try:
            await storage.open()
        except StorageLocked as error:
            if storage.path is None:
                raise
            locked = error
        else:
            return storage
        remote = RemoteStorage(storage.path)
        try:
            await remote.open()
        except StorageUnavailable as error:
            if loop.time() > deadline:
                raise StorageLocked(f"{locked}; {error}") from error
        else:
            return remote
        await asyncio.sleep(_POLL_SECONDS)  # neither a lock nor a socket tells when it is there
