"""What was found out about secrets, remembered without them."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, TypeVar

from ..storage.times import MINUTE

if TYPE_CHECKING:
    from .clock import Clock

T = TypeVar("T")

MAX_REMEMBERED = 10_000
"""Secrets; some 500 bytes each."""
REMEMBERED_FOR = 5 * MINUTE


class Remembered(Generic[T]):
    """A value for each secret, by a digest with a key that only this object has; for a bounded time, and of a bounded
    number of secrets, of which the one that was not asked for longest goes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._values: OrderedDict[bytes, tuple[T, int]] = OrderedDict()  # with the end of its time, in microseconds

    def get(self, secret: str) -> T | None:
        """What is remembered of a secret."""
        digest = self._digest(secret)
        value, until = self._values.get(digest, (None, 0))
        if until <= self._clock.now():
            return None
        self._values.move_to_end(digest)
        return value

    def put(self, secret: str, value: T) -> None:
        """Remembers a value from now on."""
        digest = self._digest(secret)
        self._values[digest] = value, self._clock.now() + REMEMBERED_FOR
        self._values.move_to_end(digest)
        if len(self._values) > MAX_REMEMBERED:
            self._values.popitem(last=False)

    def _digest(self, secret: str) -> bytes:
        return blake2b(secret.encode(), key=self._key, digest_size=32).digest()
