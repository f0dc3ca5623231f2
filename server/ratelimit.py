"""Rate limits: fixed windows from a key's first request (contracts/README.md, "Rate limits").

The `limits` library reads the rates and counts; its own storage in memory starts threads and grows with every key, so
that the windows live in `Windows` here: bounded, on the server's clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
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
_GUESSES = "10/minute"
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


class Window(NamedTuple):
    """How a key stands: requests a window, those that remain, and the end of the window in Unix seconds."""

    limit: int
    remaining: int
    reset: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset),
        }


class Windows(Storage):
    """Counters that expire, for the strategies of `limits`: at most ``size`` of them, on the server's clock.

    Where there is no room for a new key, a few of the oldest are looked at and the one with the fewest requests goes:
    a flood of new keys evicts itself, and not the window of a key that is near its limit.
    """

    STORAGE_SCHEME = None  # made here, never from a URL

    def __init__(self, clock: Clock, size: int = MAX_WINDOWS) -> None:
        super().__init__()
        self._clock = clock
        self._size = size
        self._windows: OrderedDict[str, list[int]] = OrderedDict()  # count, end in microseconds

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        return LookupError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = self._clock.now()
        window = self._windows.get(key)
        if window is None or window[1] <= now:
            if window is None:
                self._make_room(now)
            window = self._windows[key] = [0, now + expiry * SECOND]
        window[0] += amount
        return window[0]

    def get(self, key: str) -> int:
        window = self._windows.get(key)
        return 0 if window is None or window[1] <= self._clock.now() else window[0]

    def get_expiry(self, key: str) -> float:
        window = self._windows.get(key)
        return (self._clock.now() if window is None else window[1]) / SECOND

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
        live = [item for item in sample if item[1][1] > now]
        if len(windows) + len(live) >= self._size:
            live.remove(min(live, key=lambda item: item[1][0]))
        windows.update(live)


class Limiter:
    """Counts requests against limits."""

    def __init__(self, clock: Clock, size: int = MAX_WINDOWS) -> None:
        self._clock = clock
        self._strategy = FixedWindowRateLimiter(Windows(clock, size))
        self._guesses = parse(_GUESSES)

    def hit(self, item: RateLimitItem, name: str, key: str) -> None:
        """Counts a request; raises `RateLimited` over the limit."""
        if not self._strategy.hit(item, name, key):
            raise self._refusal(item, name, key)

    def window(self, item: RateLimitItem, name: str, key: str) -> Window:
        """How the key stands."""
        reset, remaining = self._strategy.get_window_stats(item, name, key)
        return Window(item.amount, remaining, -int(-reset // 1))

    def guessed(self, address: str) -> None:
        """Counts a failed authentication."""
        self._strategy.hit(self._guesses, "guess", address)

    def may_guess(self, address: str) -> None:
        """Raises `RateLimited` where an address failed to authenticate too often."""
        if not self._strategy.test(self._guesses, "guess", address):
            raise self._refusal(self._guesses, "guess", address)

    def _refusal(self, item: RateLimitItem, name: str, key: str) -> RateLimited:
        reset = self._strategy.storage.get_expiry(item.key_for(name, key))
        return RateLimited(max(1, -int(-(reset - self._clock.now() / SECOND) // 1)))
