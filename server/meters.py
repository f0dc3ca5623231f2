"""What is counted, as plain numbers: only the loop counts, so that nothing locks. `metrics` tells Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..storage.observing import CommitTimes, Outcome

BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds, in seconds."""


class Histogram:
    """How long something took, each time."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins at zero."""
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Counts a duration."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Meter(Histogram):
    """How often an operation was answered, by status, and how long until the answer began."""

    __slots__ = ("answered",)

    def reset(self) -> None:
        super().reset()
        self.answered: dict[int, int] = {}

    def count(self, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.answered[status] = self.answered.get(status, 0) + 1
        self.observe(seconds)


class CommitMeter:
    """What a store tells of its commits."""

    __slots__ = ("outcomes", "queued", "written")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins at zero."""
        self.outcomes: dict[Outcome, int] = {"done": 0, "conflict": 0, "failed": 0}
        self.queued = Histogram()
        self.written = Histogram()

    def count(self, times: CommitTimes) -> None:
        """Counts a commit."""
        self.outcomes[times.outcome] += 1
        self.queued.observe(times.queued)
        self.written.observe(times.written)


class JobMeter:
    """The runs of a job. ``last_success``: when the last that did not fail ended, in microseconds since the epoch."""

    __slots__ = ("failures", "last_success", "runs", "seconds")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins at zero."""
        self.runs = 0
        self.failures = 0
        self.seconds = 0.0
        self.last_success: int | None = None
