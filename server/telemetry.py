"""What is told of every request: a line in the access log (contracts/leaderboard.md, "Log") and Prometheus metrics."""

from __future__ import annotations

import itertools
import secrets
import sys
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from .logs import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from .clock import Clock
    from .config import LogConfig
    from .request import ApiRequest

METRICS_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of `Telemetry.metrics`."""
MAX_USER_AGENT = 256
"""Characters of a client's User-Agent that are logged."""
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)


class Telemetry:
    """Metrics, request ids and the access log of one application."""

    def __init__(self, clock: Clock, log: LogConfig) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._requests = Counter(
            "homeport_http_requests", "Requests answered.", ["operation", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "homeport_http_request_seconds",
            "Time until the answer was made.",
            ["operation"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._dropped = Gauge("homeport_log_lines_dropped", "Log lines that found no room.", registry=self.registry)
        self._log = log
        self._lines: LineWriter | None = None
        self._ids = map((secrets.token_hex(4) + "{:08x}").format, itertools.count())

    def open(self) -> None:
        """Begins to write the access log, where the level asks for it."""
        if self._log.level in ("debug", "info"):
            self._lines = LineWriter(sys.stderr, self._log.format)

    def close(self) -> None:
        """Writes what is left of the log."""
        if self._lines is not None:
            self._lines.close()

    def next_id(self) -> str:
        """An id for a request, unique to it: 16 hexadecimal digits."""
        return next(self._ids)

    def observer(self, operation: str, path: str) -> Callable[[ApiRequest, int, float], None]:
        """What is to be called with every request of an operation, the status of its answer, and the seconds it took.

        ``path``: the template, which stands in the log so that no key of a path or query does.
        """
        seconds_of = self._seconds.labels(operation)
        answered: dict[int, Counter] = {}
        now = self._clock.now

        def observe(request: ApiRequest, status: int, seconds: float) -> None:
            count = answered.get(status)
            if count is None:
                count = answered[status] = self._requests.labels(operation, status)
            count.inc()
            seconds_of.observe(seconds)
            if self._lines is not None:
                self._lines.put(
                    {
                        "timestamp": now(),
                        "level": "info",
                        "event": "request",
                        "method": request.raw.method,
                        "path": path,
                        "username": request.username,
                        "entriesCount": request.entries_count,
                        "responseStatus": status,
                        "responseTime": round(seconds * 1000, 2),
                        "userAgent": request.raw.headers.get("User-Agent", "")[:MAX_USER_AGENT],
                        "ipAddress": request.client.address,
                        "requestId": request.id,
                    }
                )

        return observe

    def metrics(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        if self._lines is not None:
            self._dropped.set(self._lines.dropped)
        return generate_latest(self.registry)
