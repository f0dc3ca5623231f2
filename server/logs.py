"""The log: one line an event, written in batches by a thread of its own, so that nobody waits for the terminal or pipe.

An event is a dictionary, as structlog has them: rendered by structlog for people, as a JSON document for programs. A
queue that is full drops lines and says how many.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from aiohttp.http_exceptions import HttpProcessingError

from ..storage.documents import encode
from ..storage.times import SECOND, format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import LogConfig

Event = dict[str, Any]
"""What happened; ``timestamp``, microseconds since the epoch, is rendered as text."""

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request in whose context something happens: what is logged of it can be found by its answer's X-Request-Id. A
task that works for everybody is given a context of its own."""
MAX_LINES = 10_000
"""How many lines may wait."""
_BATCH_SECONDS = 0.1
_CLOSE_SECONDS = 2.0


class LineWriter:
    """Writes events to a stream, in batches.

    ``log_format``: ``json``, ``console``, or ``auto``, which is console in a terminal. ``size``: how many may wait.
    """

    def __init__(self, stream: TextIO, log_format: str, size: int = MAX_LINES) -> None:
        self.dropped = 0
        """How many events found no room."""
        self._stream = stream
        self._render = _renderer(log_format, stream)
        self._size = size
        self._waiting: deque[Event] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="homeport-log", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queues an event; never waits. Any thread may call it."""
        if len(self._waiting) >= self._size:
            self.dropped += 1
            return
        self._waiting.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Writes what waits; gives up after two seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        reported = 0
        closing = False
        while not closing:
            self._wake.wait()
            self._closing.wait(_BATCH_SECONDS)
            self._wake.clear()
            closing = self._closing.is_set()  # asked last: `close` sets it before it wakes, and may have just done both
            lines = [self._line(self._waiting.popleft()) for _ in range(len(self._waiting))]
            if missing := self.dropped - reported:
                lines.append(self._line({"level": "warning", "event": f"{missing} log lines were dropped"}))
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
                reported += missing
            except (OSError, ValueError):  # nobody reads it any more, or the stream was closed
                self.dropped += len(lines)

    def _line(self, event: Event) -> str:
        if "timestamp" in event:
            event["timestamp"] = _millisecond(event["timestamp"] // 1000)
        return self._render(event) + "\n"


def _renderer(log_format: str, stream: TextIO) -> Callable[[Event], str]:
    terminal = stream.isatty()
    if log_format == "json" or (log_format == "auto" and not terminal):
        return _to_json
    import structlog  # takes a while to import, which only people watch

    console = structlog.dev.ConsoleRenderer(colors=terminal)
    return lambda event: console(None, "", event)


def _to_json(event: Event) -> str:
    try:
        return encode(event).decode()
    except UnicodeEncodeError:  # half of a surrogate pair, from bytes that are not UTF-8
        return encode({key: ascii(value) for key, value in event.items()}).decode()


@lru_cache(maxsize=1)
def _millisecond(millis: int) -> str:
    """A busy server logs many lines a millisecond, in order."""
    return format_time(millis * 1000)


class _WithoutBadHttp(logging.Filter):
    """aiohttp logs whatever is no HTTP as an error, with a traceback and with what was sent, which may be a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


http_log = logging.getLogger("homeport.http")
"""For aiohttp's server."""
http_log.addFilter(_WithoutBadHttp())


class _Handler(logging.Handler):
    """Takes what the loggers of the standard library say."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        event: Event = {
            "timestamp": round(record.created * SECOND),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if (request_id := REQUEST_ID.get()) is not None:
            event["requestId"] = request_id
        if record.exc_info:
            event["exception"] = logging.Formatter().formatException(record.exc_info)
        self._writer.put(event)

    def close(self) -> None:
        self._writer.close()
        super().close()


def configure_logging(config: LogConfig) -> None:
    """Sends every logger of this process to standard error, as the configuration says; for a process of our own."""
    handler = _Handler(LineWriter(sys.stderr, config.format))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
