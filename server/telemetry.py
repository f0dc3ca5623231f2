"""What is told of every request: a line in the access log (contracts/leaderboard.md, "Log") and Prometheus metrics."""

from __future__ import annotations

import secrets
import sys
from bisect import bisect_left
from itertools import accumulate, count
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from .logs import LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from .clock import Clock
    from .config import LogConfig
    from .request import ApiRequest

METRICS_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of `Telemetry.metrics`."""
MAX_USER_AGENT = 256
"""Characters of a client's User-Agent that are logged."""
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""


class Meter:
    """How often an operation was answered, by status, and how long it took. Plain numbers: the loop alone counts."""

    __slots__ = ("answered", "buckets", "seconds")

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0

    def count(self, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.answered[status] = self.answered.get(status, 0) + 1
        self.buckets[bisect_left(_BUCKETS, seconds)] += 1
        self.seconds += seconds


class Telemetry(Collector):
    """Metrics, request ids and the access log of one application."""

    def __init__(self, clock: Clock, log: LogConfig) -> None:
        self.registry = CollectorRegistry()
        """Where an API registers metrics of its own."""
        self.registry.register(self)
        self._meters: dict[str, Meter] = {}
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
        return self._meters.setdefault(operation, Meter())

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

    def metrics(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("homeport_http_requests", "Requests answered.", labels=["operation", "status"])
        seconds = HistogramMetricFamily(
            "homeport_http_request_seconds", "Time until the answer was made.", labels=["operation"]
        )
        bounds = [*map(str, _BUCKETS), "+Inf"]
        for operation, meter in self._meters.items():
            for status, times in meter.answered.items():
                requests.add_metric([operation, str(status)], times)
            buckets = list(zip(bounds, accumulate(meter.buckets), strict=True))
            seconds.add_metric([operation], buckets, meter.seconds)
        yield requests
        yield seconds
        yield CounterMetricFamily(
            "homeport_log_lines_dropped",
            "Log lines that found no room.",
            value=self._lines.dropped if self._lines else 0,
        )
