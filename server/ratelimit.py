"""Rate limits: fixed windows from a key's first request (contracts/README.md, "Rate limits").

The `limits` library reads the rates and decides, on a storage of ours: its own in memory starts threads, grows with
every key, and knows no clock but the system's.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from limits import RateLimitItem, parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from ..storage.times import SECOND
from .errors import RateLimited

if TYPE_CHECKING:
    from .clock import Clock
    from .config import Config
    from .request import ApiRequest

MAX_WINDOWS = 50_000
"""How many keys are remembered at once; some 300 bytes each."""
_SAMPLE = 8


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
    """A limit with the configuration's figures."""

    name: str
    item: RateLimitItem

    @classmethod
    def of(cls, name: str, text: str) -> Rate:
        """From a text such as ``600/hour`` or ``5 per 2 minutes``. Raises ValueError."""
        return cls(name, _parse(text))


_parse = lru_cache(maxsize=256)(parse)
"""An application has a hundred operations with a handful of rates."""


class Limiter:
    """Counts requests on a clock, of at most ``size`` keys at once."""

    def __init__(self, clock: Clock, size: int = MAX_WINDOWS) -> None:
        self.refused: Counter[str] = Counter()
        """How many requests were above each limit, by its name."""
        self._clock = clock
        self._windows = _Windows(clock, size)
        self._strategy = FixedWindowRateLimiter(self._windows)

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, rate: Rate, key: str) -> None:
        """Counts a request; raises `RateLimited` for one above the limit."""
        if not self._strategy.hit(rate.item, rate.name, key):
            raise self._limited(rate, key)

    def headers(self, rate: Rate, key: str) -> dict[str, str]:
        """``X-RateLimit-*``: how a key stands, the end of its window in Unix seconds."""
        end, remaining = self._strategy.get_window_stats(rate.item, rate.name, key)
        return {
            "X-RateLimit-Limit": str(rate.item.amount),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": str(math.ceil(end)),
        }

    def guessed(self, address: str) -> None:
        """Counts a failed authentication."""
        self._strategy.hit(_GUESSES.item, _GUESSES.name, address)

    def may_guess(self, address: str) -> None:
        """Raises `RateLimited` where an address failed to authenticate too often."""
        if not self._strategy.test(_GUESSES.item, _GUESSES.name, address):
            raise self._limited(_GUESSES, address)

    def reset(self) -> None:
        """Forgets all that was counted."""
        self.refused.clear()
        self._windows.reset()

    def _limited(self, rate: Rate, key: str) -> RateLimited:
        self.refused[rate.name] += 1
        end, _ = self._strategy.get_window_stats(rate.item, rate.name, key)
        # Of two doubles so large the difference is right to the microsecond, not beyond.
        return RateLimited(math.ceil(round(end - self._clock.now() / SECOND, 6)))


class _Windows(Storage):
    """How often each key was counted in its window, which begins with its first request.

    Where there is no room for a new key, a few of the oldest are looked at and the one with the fewest requests goes: a
    flood of new keys evicts itself, not a key that is near its limit.
    """

    STORAGE_SCHEME = None
    base_exceptions = ()

    def __init__(self, clock: Clock, size: int) -> None:
        super().__init__()
        self._clock = clock
        self._size = size
        self._windows: OrderedDict[str, list[int]] = OrderedDict()  # count, begin and end in microseconds

    def __len__(self) -> int:
        return len(self._windows)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = self._clock.now()
        window = self._windows.get(key)
        if window is None:
            self._make_room(now)
            self._windows[key] = [amount, now, now + expiry * SECOND]
            return amount
        if not _is_open(window, now):
            window[:] = 0, now, now + expiry * SECOND
        window[0] += amount
        return window[0]

    def get(self, key: str) -> int:
        window = self._windows.get(key)
        return window[0] if window and _is_open(window, self._clock.now()) else 0

    def get_expiry(self, key: str) -> float:
        now = self._clock.now()
        window = self._windows.get(key)
        return (window[2] if window and _is_open(window, now) else now) / SECOND

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _make_room(self, now: int) -> None:
        """Forgets what has expired among the oldest and, if that was not enough, the one with the fewest requests."""
        windows = self._windows
        sample = [windows.popitem(last=False) for _ in range(min(_SAMPLE, len(windows)))]
        live = [item for item in sample if _is_open(item[1], now)]
        if len(windows) + len(live) >= self._size:
            live.remove(min(live, key=lambda item: item[1][0]))
        windows.update(live)


def _is_open(window: list[int], now: int) -> bool:
    """Where the clock was set back to before it began, it is not: nobody is refused for as long as that takes."""
    _, begin, end = window
    return begin <= now < end


_GUESSES = Rate.of("guesses", "10/minute")
