"""bcrypt away from the event loop, in a few threads of its own and for a bounded number of secrets at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .errors import ServiceUnavailable

T = TypeVar("T")

COST = 10
"""2^10 rounds: some 60 ms."""
LEAST_COST = 4
"""A millisecond; for keys that protect nothing."""
MAX_PENDING = 256
"""Secrets that are hashed or checked, or wait for it; one more is refused (503)."""
MAX_GUESSES = 4
"""Different secrets that are checked against one hash, or wait for it: who guesses at one delays the others little."""
_THREADS = min(4, max(1, (os.cpu_count() or 2) - 1))
"""One core is left to the event loop."""


class BcryptPool:
    """Hashes and checks secrets of at most 72 bytes. For one event loop. ``cost``: of new hashes; `COST` if None."""

    def __init__(self, cost: int | None = None) -> None:
        self._cost = cost
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="bcrypt")
        self._pending = 0
        self._checks: dict[str, dict[str, asyncio.Future[bool]]] = {}  # by hash and secret

    async def hash(self, secret: str) -> str:
        """The hash to keep. Raises `ServiceUnavailable` where too many wait."""
        return await self._submit(_hash, secret, COST if self._cost is None else self._cost)

    async def check(self, secret: str, hashed: str) -> bool:
        """Whether a secret is the one of a hash; who asks the same at the same time shares one check.

        Raises `ServiceUnavailable` where too many wait.
        """
        checks = self._checks.get(hashed, {})
        check = checks.get(secret)
        if check is None:
            if len(checks) >= MAX_GUESSES:
                raise _busy()
            check = checks[secret] = self._submit(_check, secret, hashed)
            self._checks[hashed] = checks
            check.add_done_callback(lambda _: self._forget(secret, hashed))
        return await asyncio.shield(check)

    def close(self) -> None:
        """Ends the threads, for whose present work it waits; what waits itself is cancelled."""
        self._executor.shutdown(cancel_futures=True)

    def _submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        if self._pending >= MAX_PENDING:
            raise _busy()
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: object) -> None:
        self._pending -= 1

    def _forget(self, secret: str, hashed: str) -> None:
        del self._checks[hashed][secret]
        if not self._checks[hashed]:
            del self._checks[hashed]


def _busy() -> ServiceUnavailable:
    return ServiceUnavailable("Too many keys are being checked; try again", retry_after=1)


def _hash(secret: str, cost: int) -> str:
    import bcrypt  # on first use

    return bcrypt.hashpw(secret.encode(), bcrypt.gensalt(cost)).decode()


def _check(secret: str, hashed: str) -> bool:
    import bcrypt

    return bcrypt.checkpw(secret.encode(), hashed.encode())
