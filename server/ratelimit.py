"""Rate limits: fixed windows from a key's first request (contracts/README.md, "Rate limits")."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..storage.times import SECOND
from .errors import RateLimited
from .formats import parse_rate

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
    """A limit with the configuration's figures: how many requests in a window of so many seconds."""

    name: str
    amount: int
    seconds: int

    @classmethod
    def of(cls, name: str, text: str) -> Rate:
        """From a text such as ``600/hour`` or ``5 per 2 minutes``. Raises ValueError."""
        return cls(name, *parse_rate(text))


class Limiter:
    """Counts requests on a clock, of at most ``size`` keys at once.

    Where there is no room for a new key, a few of the oldest are looked at and the one with the fewest requests goes: a
    flood of new keys evicts itself, not a key that is near its limit.
    """

    def __init__(self, clock: Clock, size: int = MAX_WINDOWS) -> None:
        self.refused: Counter[str] = Counter()
        """How many requests were above each limit, by its name."""
        self._clock = clock
        self._size = size
        # By the limit's name and the key: count, begin and end in microseconds.
        self._windows: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, rate: Rate, key: str) -> None:
        """Counts a request; raises `RateLimited` for one above the limit."""
        if self._count(rate, key) > rate.amount:
            raise self._limited(rate, key)

    def headers(self, rate: Rate, key: str) -> dict[str, str]:
        """``X-RateLimit-*``: how a key stands, the end of its window in Unix seconds."""
        count, end = self._state(rate, key)
        return {
            "X-RateLimit-Limit": str(rate.amount),
            "X-RateLimit-Remaining": str(max(0, rate.amount - count)),
            "X-RateLimit-Reset": str(math.ceil(end / SECOND)),
        }

    def guessed(self, address: str) -> None:
        """Counts a failed authentication."""
        self._count(_GUESSES, address)

    def may_guess(self, address: str) -> None:
        """Raises `RateLimited` where an address failed to authenticate too often."""
        count, _ = self._state(_GUESSES, address)
        if count >= _GUESSES.amount:
            raise self._limited(_GUESSES, address)

    def reset(self) -> None:
        """Forgets all that was counted."""
        self.refused.clear()
        self._windows.clear()

    def _limited(self, rate: Rate, key: str) -> RateLimited:
        self.refused[rate.name] += 1
        _, end = self._state(rate, key)
        return RateLimited(math.ceil((end - self._clock.now()) / SECOND))

    def _count(self, rate: Rate, key: str) -> int:
        """How many requests there were in the window, with this one."""
        now = self._clock.now()
        window = self._windows.get((rate.name, key))
        if window is None:
            self._make_room(now)
            window = self._windows[rate.name, key] = [0, now, now + rate.seconds * SECOND]
        elif not _is_open(window, now):
            window[:] = 0, now, now + rate.seconds * SECOND
        window[0] += 1
        return window[0]

    def _state(self, rate: Rate, key: str) -> tuple[int, int]:
        """How many requests there were in the window, and its end; of one that is not open, none and now."""
        now = self._clock.now()
        window = self._windows.get((rate.name, key))
        return (window[0], window[2]) if window and _is_open(window, now) else (0, now)

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
