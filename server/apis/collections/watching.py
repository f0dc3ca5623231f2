"""An edited schema is live at once (`homeport serve --watch`)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ...tasks import stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .registry import Registry

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts the changes

_QUIET = 50
"""Milliseconds without a further change after which files are read; an editor may write one in several steps."""


@asynccontextmanager
async def watching(registry: Registry) -> AsyncIterator[None]:
    """Has the registry read its schemas again whenever a file in one of their folders changes."""
    task = asyncio.create_task(_watch(registry), name="schemas")
    try:
        yield
    finally:
        await stop(task)


async def _watch(registry: Registry) -> None:
    from watchfiles import awatch  # for developers' machines alone

    async for changes in awatch(*registry.folders, debounce=1000, step=_QUIET, rust_timeout=1000):
        try:
            if any(path.endswith(".json") for _, path in changes):
                await registry.reload()
        except Exception:
            log.exception("the schemas could not be read again")
