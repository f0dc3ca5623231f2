"""Rate limits: fixed windows from a key's first request (contracts/README.md, "Rate limits").

The `limits` library reads the rates. It does not count them: its storage in memory starts threads, grows with every
key, and knows no clock but the system's.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..storage.times import SECOND
from .errors import RateLimited

if TYPE_CHECKING:
    from .clock import Clock
    from .config import Config
    from .request import ApiRequest

MAX_WINDOWS = 50_000
"""How many keys are remembered at once; some 300 bytes each."""
_SAMPLE = 8
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_PLAIN_RATE = re.compile(f"([0-9]+)/({'|'.join(_UNITS)})")


@dataclass(frozen=True, slots=True)
class Limit:
    """How often an operation may be called. Operations whose limits have the same name share their windows.

    ``stage``: what is counted, and hence when: the client ``address`` before anything is read (loopback callers are
    not counted), the ``caller`` once known, or a key that stands in the ``document``.
    ``headers``: whether answers carry ``X-RateLimit-*``.
    """

    name: str
    rate: Callable[[Config], str]
    stage: Literal["address", "caller", "document"]
    key: Callable[[ApiRequest], str]
    headers: bool = False


def per_address(name: str, rate: Callable[[Config], str]) -> Limit:
    """So many requests per client address; IPv6 by /64."""
    return Limit(name, rate, "address", lambda request: request.client.network)


def per_caller(name: str, rate: Callable[[Config], str], *, headers: bool = False) -> Limit:
    """So many requests per authenticated key."""
    return Limit(name, rate, "caller", lambda request: request.caller_id, headers)


def per_document(name: str, rate: Callable[[Config], str], key: Callable[[ApiRequest], str]) -> Limit:
    """So many requests per key that stands in the body, the path or the query."""
    return Limit(name, rate, "document", key)


DEFAULT_LIMIT = per_address("default", lambda config: config.server.default_rate_limit)
"""Of an operation that declares none."""


class Rate(NamedTuple):
    """A limit with the configuration's figures: ``amount`` requests in a window of ``seconds``."""

    name: str
    amount: int
    seconds: int

    @classmethod
    def of(cls, name: str, text: str) -> Rate:
        """From a text as the `limits` library reads it: ``600/hour``, ``5 per 2 minutes``. Raises ValueError."""
        if match := _PLAIN_RATE.fullmatch(text):
            return cls(name, int(match[1]), _UNITS[match[2]])
        from limits import parse  # takes a while to import, and there is seldom anything but plain rates

        item = parse(text)
        return cls(name, item.amount, item.get_expiry())


class Limiter:
    """Counts requests in fixed windows that begin with a key's first request.

    At most ``size`` windows are remembered. Where there is no room for a new key, a few of the oldest are looked at and
    the one with the fewest requests goes: a flood of new keys evicts itself, not a key that is near its limit.
    """

    def __init__(self, clock: Clock, size: int = MAX_WINDOWS) -> None:
        self._clock = clock
        self._size = size
        self._windows: OrderedDict[tuple[str, str], list[int]] = OrderedDict()  # count, end in microseconds

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, rate: Rate, key: str) -> None:
        """Counts a request; raises `RateLimited` for one above the limit."""
        now = self._clock.now()
        window = self._windows.get((rate.name, key))
        if window is None:
            self._make_room(now)
            self._windows[rate.name, key] = [1, now + rate.seconds * SECOND]
        elif window[1] <= now:
            window[:] = 1, now + rate.seconds * SECOND
        elif window[0] < rate.amount:
            window[0] += 1
        else:
            raise RateLimited(_seconds(window[1] - now))

    def headers(self, rate: Rate, key: str) -> dict[str, str]:
        """``X-RateLimit-*``: how a key stands, the end of its window in Unix seconds."""
        used, end = self._windows.get((rate.name, key), (0, self._clock.now()))
        return {
            "X-RateLimit-Limit": str(rate.amount),
            "X-RateLimit-Remaining": str(rate.amount - used),
            "X-RateLimit-Reset": str(_seconds(end)),
        }

    def guessed(self, address: str) -> None:
        """Counts a failed authentication."""
        with suppress(RateLimited):
            self.hit(_GUESSES, address)

    def may_guess(self, address: str) -> None:
        """Raises `RateLimited` where an address failed to authenticate too often."""
        used, end = self._windows.get((_GUESSES.name, address), (0, 0))
        now = self._clock.now()
        if used >= _GUESSES.amount and end > now:
            raise RateLimited(_seconds(end - now))

    def _make_room(self, now: int) -> None:
        """Forgets what has expired among the oldest and, if that was not enough, the one with the fewest requests."""
        windows = self._windows
        sample = [windows.popitem(last=False) for _ in range(min(_SAMPLE, len(windows)))]
        live = [item for item in sample if item[1][1] > now]
        if len(windows) + len(live) >= self._size:
            live.remove(min(live, key=lambda item: item[1][0]))
        windows.update(live)


def _seconds(micros: int) -> int:
    """Rounded up."""
    return -(-micros // SECOND)


_GUESSES = Rate("guesses", 10, 60)
