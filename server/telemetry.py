"""What an application tells of its work: a line in the access log for every request (contracts/leaderboard.md, "Log"),
what `metrics` shows, and, where OpenTelemetry's environment asks for them, traces."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from .logs import LineWriter
from .meters import CommitMeter, Histogram, JobMeter, Meter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..storage.observing import CommitTimes
    from .clock import Clock
    from .config import LogConfig
    from .request import ApiRequest
    from .tracing import Tracing

log = logging.getLogger(__name__)

MAX_USER_AGENT = 256
"""Characters of a client's User-Agent that are logged."""
_LAG_SECONDS = 0.25
"""How often the loop is asked whether it is late."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Telemetry:
    """Meters, request ids, the access log and traces of one application."""

    def __init__(self, clock: Clock, log: LogConfig) -> None:
        self.meters: dict[str, Meter] = {}
        self.commits = CommitMeter()
        self.jobs: dict[str, JobMeter] = {}
        self.lag = Histogram()
        """By how much the loop came late to what was due."""
        self.tracing: Tracing | None = None
        self._clock = clock
        self._log = log
        self._lines: LineWriter | None = None
        self._run = secrets.token_hex(4)
        self._numbers = count()

    def open(self) -> None:
        """Begins to write the access log, where the level asks for it, and to trace, where the environment does."""
        if self._log.level in ("debug", "info"):
            self._lines = LineWriter(sys.stderr, self._log.format)
        self.tracing = _tracing(os.environ)

    def close(self) -> None:
        """Writes what is left of the log and the traces; may wait for who takes it, for a few seconds."""
        if self.tracing is not None:
            self.tracing.close()
        if self._lines is not None:
            self._lines.close()

    def next_id(self) -> str:
        """An id that no other request has: 16 hexadecimal digits."""
        return f"{self._run}{next(self._numbers):08x}"

    def meter(self, operation: str) -> Meter:
        """The meter of an operation."""
        return self.meters.setdefault(operation, Meter())

    def job(self, name: str) -> JobMeter:
        """The meter of a job."""
        return self.jobs.setdefault(name, JobMeter())

    def committed(self, times: CommitTimes) -> None:
        """Counts a commit; the store's observer."""
        self.commits.count(times)
        if self.tracing is not None:
            self.tracing.committed(times)

    async def watch_loop(self) -> None:
        """Measures by how much the loop is late, until cancelled."""
        while True:
            due = perf_counter() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.lag.observe(max(0.0, perf_counter() - due))

    def reset(self) -> None:
        """Lets all meters begin at zero."""
        meters: Iterable[Histogram | CommitMeter | JobMeter]
        meters = (*self.meters.values(), *self.jobs.values(), self.commits, self.lag)
        for meter in meters:
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


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Traces, if there is an endpoint for them (OpenTelemetry's environment variables); else its libraries, which take
    a while to import, are not even looked for."""
    wanted = any(environ.get(name) for name in _ENDPOINTS)
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not wanted or disabled or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        from .tracing import Tracing
    except ImportError:
        log.warning("there is an endpoint for traces, but none are made: pip install 'homeport[tracing]'")
        return None
    return Tracing()
