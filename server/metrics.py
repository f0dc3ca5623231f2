"""What Prometheus is told; imported when it first asks."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from .request import Answer
from .telemetry import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from .telemetry import Telemetry


class _HttpMetrics(Collector):
    """The meters of an application, as they stand."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("homeport_http_requests", "Requests answered.", labels=["operation", "status"])
        seconds = HistogramMetricFamily(
            "homeport_http_request_seconds", "Time until the answer was made.", labels=["operation"]
        )
        bounds = [*map(str, BUCKETS), "+Inf"]
        for operation, meter in self._telemetry.meters.items():
            for status, times in list(meter.answered.items()):  # the loop may add one meanwhile
                requests.add_metric([operation, str(status)], times)
            buckets = list(zip(bounds, accumulate(meter.buckets), strict=True))
            seconds.add_metric([operation], buckets, meter.seconds)
        yield requests
        yield seconds
        yield CounterMetricFamily(
            "homeport_log_lines_dropped", "Log lines that found no room.", value=self._telemetry.dropped_lines
        )


def registry_of(telemetry: Telemetry) -> CollectorRegistry:
    """A registry with the metrics of an application."""
    registry = CollectorRegistry()
    registry.register(_HttpMetrics(telemetry))
    return registry


def exposition(telemetry: Telemetry) -> Answer:
    """All metrics, in Prometheus' text format. For a thread: there may be many."""
    return Answer(generate_latest(telemetry.registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
