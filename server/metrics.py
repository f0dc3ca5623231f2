"""What Prometheus is told; imported when it first asks. Every family is in docs/metrics.md."""

from __future__ import annotations

import asyncio
import logging
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ..storage.errors import StorageError
from ..storage.times import SECOND
from .connections import CONNECTIONS
from .live import LIVE
from .meters import BUCKETS
from .request import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from .connections import Connections
    from .endpoint import Core
    from .meters import CommitMeter, Histogram, JobMeter, Meter
    from .operation import Api

log = logging.getLogger(__name__)

Value = TypeVar("Value", bound=str)

_BOUNDS = (*map(str, BUCKETS), "+Inf")


class _Families(Collector):
    """Metrics that are made already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def exposition(core: Core, apis: Iterable[Api]) -> Answer:
    """All metrics, in Prometheus' text format. Those of an API whose store does not answer are left out."""
    families = [*_of_the_core(core)]
    for api in apis:
        if api.metrics is not None:
            try:
                families += await api.metrics(core.app)
            except StorageError as error:
                log.warning("metrics of %s are left out: %s", api.name, error)
    registry = CollectorRegistry()
    registry.register(_Families(families))
    ProcessCollector(registry=registry)
    text = await asyncio.to_thread(generate_latest, registry)  # there may be many
    return Answer(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _of_the_core(core: Core) -> Iterator[Metric]:
    telemetry = core.telemetry
    yield from _requests(telemetry.meters)
    yield from _commits(telemetry.commits)
    yield from _jobs(telemetry.jobs)
    yield from _connections(core.app[CONNECTIONS])
    streams = core.app[LIVE].count()
    yield _gauge(
        "homeport_live_subscribers", "Live connections.", "kind", {k: streams[k] for k in ("sse", "websocket")}
    )
    yield _counter("homeport_rate_limit_refusals", "Requests above a limit.", "limit", core.limiter.refused)
    yield _histogram("homeport_loop_lag_seconds", "By how much the event loop was late.", telemetry.lag)
    yield CounterMetricFamily(
        "homeport_log_lines_dropped", "Log lines that found no room.", value=telemetry.dropped_lines
    )


def _requests(meters: Mapping[str, Meter]) -> Iterator[Metric]:
    requests = CounterMetricFamily("homeport_http_requests", "Requests answered.", labels=["operation", "status"])
    seconds = HistogramMetricFamily(
        "homeport_http_request_seconds",
        "Time until the answer was made; of a stream, until it began.",
        labels=["operation"],
    )
    for operation, meter in meters.items():
        for status, times in meter.answered.items():
            requests.add_metric([operation, str(status)], times)
        seconds.add_metric([operation], _buckets(meter), meter.seconds)
    yield requests
    yield seconds


def _commits(meter: CommitMeter) -> Iterator[Metric]:
    yield _counter("homeport_storage_commits", "Commits, by what became of them.", "outcome", meter.outcomes)
    yield _histogram(
        "homeport_storage_queue_seconds", "Time that a commit waited for its batch to begin.", meter.queued
    )
    yield _histogram(
        "homeport_storage_commit_seconds", "Time that it took until the batch of a commit was durable.", meter.written
    )


def _jobs(jobs: Mapping[str, JobMeter]) -> Iterator[Metric]:
    # The label is no `job`, which Prometheus gives to what it scrapes.
    seconds = SummaryMetricFamily("homeport_job_seconds", "Runs of a job, and their time.", labels=["name"])
    for name, meter in jobs.items():
        seconds.add_metric([name], meter.runs, meter.seconds)
    yield seconds
    failures = {name: meter.failures for name, meter in jobs.items()}
    yield _counter("homeport_job_failures", "Runs that failed.", "name", failures)
    succeeded = {name: meter.last_success / SECOND for name, meter in jobs.items() if meter.last_success is not None}
    yield _gauge(
        "homeport_job_last_success_timestamp_seconds", "When the last run ended that did not fail.", "name", succeeded
    )


def _connections(connections: Connections) -> Iterator[Metric]:
    yield GaugeMetricFamily("homeport_connections", "Connections that are open.", value=len(connections))
    yield _counter(
        "homeport_connections_refused",
        "Connections above the cap of the server or of an address.",
        "cap",
        connections.refused,
    )
    yield _counter(
        "homeport_connections_ended", "Connections that the server would not keep.", "reason", connections.ended
    )


def _counter(name: str, documentation: str, label: str, values: Mapping[Value, float]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, documentation: str, label: str, values: Mapping[Value, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, measured in values.items():
        family.add_metric([value], measured)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, documentation, buckets=_buckets(histogram), sum_value=histogram.seconds)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return list(zip(_BOUNDS, accumulate(histogram.buckets), strict=True))
