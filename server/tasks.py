"""Tasks that run beside something else, for as long as that lasts."""

from __future__ import annotations

import asyncio
from typing import Any


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancels a task, and returns when it has ended. Raises what it raised, if it did not end for that."""
    task.cancel()
    await asyncio.wait([task])  # awaited itself, its end would look the same as that of who waits
    if not task.cancelled():
        task.result()
