"""Visitors of a server: a few that never rest, or arrivals at a constant rate, come what may.

A latency counts from the moment when a visit was due, so that no wait is left out because the visit before had to wait
too (coordinated omission). By how much visits began late, which is this process's own doing, is told beside it.
One thread, one epoll, blocking sockets: at some 15 us a request one core presses a server that has another.
"""

from __future__ import annotations

import re
import select
import socket
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import NamedTuple

CALLERS = 32
"""Those that never rest."""
MAX_CONNECTIONS = 256
"""Of arrivals; more of them wait for those to be done."""
MAX_WAITING = 100_000
"""With more of them the server does not keep up."""
PATIENCE = 30.0
"""Seconds without any answer."""
_WARM = 0.2
"""Of the time, at its beginning, that is not counted."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Ask(NamedTuple):
    """A request. ``first``: what is said when a stream has begun, of which no more is read than the first message."""

    operation: str
    request: bytes
    first: bytes | None = None


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes


Steps = Generator[Ask, Answer, None]
"""A visit: requests, each of which may depend on the answers before."""


@dataclass
class _Visitor:
    steps: Steps
    socket: socket.socket
    ask: Ask
    begun: float
    told: bool = False
    data: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> Answer | None:
        """The answer, once all of it is there; what is said to a stream is said when that begins."""
        self.data += data
        end = self.data.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head = bytes(self.data[:end])
        status = int(head[9:12])
        if self.ask.first is None:
            length = _LENGTH.search(head)
            whole = end + int(length[1]) if length else end if status in (204, 304) else 2**62
        else:
            whole = end + 1
            if not self.told:
                self.told = True
                self.socket.sendall(self.ask.first)
        return Answer(status, head, bytes(self.data[end:])) if len(self.data) >= whole else None


class Visitors:
    """Those of one server. ``pid``: its process. ``took``: the seconds that each answer took, by operation."""

    def __init__(self, port: int, pid: int) -> None:
        self.pid = pid
        self.took: dict[str, list[float]] = defaultdict(list)
        self._port = port
        self._epoll = select.epoll()
        self._visitors: dict[int, _Visitor] = {}
        self._resting: dict[int, socket.socket] = {}

    def send(self, visits: Iterable[Steps]) -> Iterator[float]:
        """`CALLERS` at a time until there are no more; tells when each is done."""
        waiting = iter(visits)
        for steps in islice(waiting, CALLERS):
            self._begin(steps, perf_counter())
        while self._visitors:
            for _ in range(self._turn(PATIENCE)):
                yield perf_counter()
                if following := next(waiting, None):
                    self._begin(following, perf_counter())

    def most(self, visits: Iterator[Steps], seconds: float) -> float:
        """Visits a second, by those that never rest."""
        begin = perf_counter()
        done = list(self.send(iter(lambda: next(visits) if perf_counter() < begin + seconds else None, None)))
        warm = begin + _WARM * seconds
        return sum(at >= warm for at in done) / (done[-1] - warm)

    def at_rate(self, visits: Iterator[Steps], rate: float, seconds: float) -> list[float]:
        """Arrivals that are due at a constant rate a second; by how many seconds each was late."""
        late = []
        waiting: deque[float] = deque()  # when they were due
        begin = perf_counter()
        for place in range(int(rate * seconds)):
            due = begin + place / rate
            self._turn(0)
            while (early := due - perf_counter()) > 0:
                self._turn(early - 0.002 if early > 0.004 else 0)  # epoll counts milliseconds
            late.append(-early)
            waiting.append(due)
            if len(waiting) > MAX_WAITING:
                raise SystemExit(f"the server does not keep up with {rate:,.0f} visits a second")
            while waiting and len(self._visitors) < MAX_CONNECTIONS:
                self._begin(next(visits), waiting.popleft())
        while self._visitors or waiting:
            while waiting and len(self._visitors) < MAX_CONNECTIONS:
                self._begin(next(visits), waiting.popleft())
            self._turn(PATIENCE)
        return late

    def _begin(self, steps: Steps, due: float) -> None:
        self._ask(steps, next(steps), due)

    def _ask(self, steps: Steps, ask: Ask, begun: float) -> None:
        if ask.first is None and self._resting:
            descriptor, connection = self._resting.popitem()
        else:
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            descriptor = connection.fileno()
            self._epoll.register(descriptor, select.EPOLLIN)
        self._visitors[descriptor] = _Visitor(steps, connection, ask, begun)
        connection.sendall(ask.request)

    def _turn(self, timeout: float) -> int:
        """Takes what has come, for which it waits; how many visits that has ended."""
        ended = 0
        events = self._epoll.poll(timeout)
        if timeout == PATIENCE and not events:
            raise SystemExit(f"no answer to {next(iter(self._visitors.values())).ask.operation}")
        for descriptor, _ in events:
            visitor = self._visitors.get(descriptor)
            if visitor is None:
                self._resting.pop(descriptor).close()  # the server wants it no more
                continue
            data = visitor.socket.recv(2**18)
            now = perf_counter()
            answer = visitor.take(data)
            if answer is not None:
                ended += self._answered(descriptor, visitor, answer, now)
            elif not data:
                raise SystemExit(f"{visitor.ask.operation} was answered with half of something: {visitor.data!r}")
        return ended

    def _answered(self, descriptor: int, visitor: _Visitor, answer: Answer, now: float) -> bool:
        """Whether that was the last step."""
        steps, ask = visitor.steps, visitor.ask
        if answer.status >= 400:
            raise SystemExit(f"{ask.operation} was answered {answer.status}: {answer.body.decode()}\n{ask.request!r}")
        del self._visitors[descriptor]
        if ask.first is None:
            self._resting[descriptor] = visitor.socket
        else:
            visitor.socket.close()
        self.took[ask.operation].append(now - visitor.begun)
        try:
            self._ask(steps, steps.send(answer), perf_counter())
        except StopIteration:
            return True
        return False
