"""What is told of every request: a line in the access log (contracts/leaderboard.md, "Log") and Prometheus metrics."""

from __future__ import annotations

import secrets
import sys
from bisect import bisect_left
from itertools import count
from typing import TYPE_CHECKING

from .logs import LineWriter

if TYPE_CHECKING:
    from .clock import Clock
    from .config import LogConfig
    from .request import ApiRequest

MAX_USER_AGENT = 256
"""Characters of a client's User-Agent that are logged."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds, in seconds."""


class Meter:
    """How often an operation was answered, by status, and how long it took. Plain numbers: the loop alone counts."""

    __slots__ = ("answered", "buckets", "seconds")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins at zero."""
        self.answered: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def count(self, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.answered[status] = self.answered.get(status, 0) + 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Telemetry:
    """Metrics, request ids and the access log of one application."""

    def __init__(self, clock: Clock, log: LogConfig) -> None:
        self.meters: dict[str, Meter] = {}
        self._clock = clock
        self._log = log
        self._lines: LineWriter | None = None
        self._run = secrets.token_hex(4)
        self._numbers = count()

    def open(self) -> None:
        """Begins to write the access log, where the level asks for it."""
        if self._log.level in ("debug", "info"):
            self._lines = LineWriter(sys.stderr, self._log.format)

    def close(self) -> None:
        """Writes what is left of the log; may wait for who reads it."""
        if self._lines is not None:
            self._lines.close()

    def next_id(self) -> str:
        """An id that no other request has: 16 hexadecimal digits."""
        return f"{self._run}{next(self._numbers):08x}"

    def meter(self, operation: str) -> Meter:
        """The meter of an operation."""
        return self.meters.setdefault(operation, Meter())

    def reset(self) -> None:
        """Lets all meters begin at zero."""
        for meter in self.meters.values():
            meter.reset()

    def log(self, request: ApiRequest, path: str, status: int, seconds: float) -> None:
        """Logs an answer. ``path``: the route's template, so that no key of a path or query stands in the log."""
        if self._lines is None:
            return
        agent = request.raw.headers.get("User-Agent", "")[:MAX_USER_AGENT]
        self._lines.put(
            {
                "timestamp": self._clock.now(),
                "level": "info",
                "event": "request",
                "method": request.raw.method,
                "path": path,
                "username": request.username,
                "entriesCount": request.entries_count,
                "responseStatus": status,
                "responseTime": round(seconds * 1_000_000) / 1000,
                "userAgent": agent if agent.isprintable() else ascii(agent),
                "ipAddress": request.client.address,
                "requestId": request.id,
            }
        )

    @property
    def dropped_lines(self) -> int:
        """How many lines of the log found no room."""
        return self._lines.dropped if self._lines else 0
