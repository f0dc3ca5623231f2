"""What Prometheus is told; imported when it first asks."""

from __future__ import annotations

import asyncio
import logging
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ..storage.errors import StorageError
from .connections import CONNECTIONS
from .request import Answer
from .telemetry import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aiohttp import web
    from prometheus_client.metrics_core import Metric

    from .connections import Connections
    from .operation import Api
    from .telemetry import Telemetry

log = logging.getLogger(__name__)


class _Metrics(Collector):
    """The meters of an application, as they stand, and what its APIs told."""

    def __init__(self, telemetry: Telemetry, further: Iterable[Metric]) -> None:
        self._telemetry = telemetry
        self._further = further

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
        yield from self._further


def _connections(connections: Connections) -> Iterator[Metric]:
    yield GaugeMetricFamily("homeport_connections", "Connections that are open.", value=len(connections))
    refused = CounterMetricFamily(
        "homeport_connections_refused", "Connections above the cap of the server or of an address.", labels=["cap"]
    )
    for cap, times in connections.refused.items():
        refused.add_metric([cap], times)
    yield refused
    ended = CounterMetricFamily(
        "homeport_connections_ended", "Connections that the server would not keep.", labels=["reason"]
    )
    for reason, times in connections.ended.items():
        ended.add_metric([reason], times)
    yield ended


async def exposition(telemetry: Telemetry, apis: Iterable[Api], app: web.Application) -> Answer:
    """All metrics, in Prometheus' text format. Those of an API whose store does not answer are left out."""
    further: list[Metric] = []
    for api in apis:
        if api.metrics is not None:
            try:
                further += await api.metrics(app)
            except StorageError as error:
                log.warning("metrics of %s are left out: %s", api.name, error)
    further += _connections(app[CONNECTIONS])
    registry = CollectorRegistry()
    registry.register(_Metrics(telemetry, further))
    text = await asyncio.to_thread(generate_latest, registry)  # there may be many
    return Answer(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)
