"""Traces for OpenTelemetry: a span for a request, below it one for each of its commits; the library sends them in
batches.

The library reads its environment variables: where spans go, of which service they are, how many are kept. Imported when
there is somebody to send them to.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from aiohttp import web

    from ..storage.observing import CommitTimes
    from .operation import Operation
    from .request import ApiRequest

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_CLOSE_SECONDS = 2.0
_parents = TraceContextTextMapPropagator()


class Tracing:
    """The traces of one application.

    Attributes are those of the semantic conventions for HTTP servers, without any that could hold a key: no path but
    the route's template, no query, no headers.
    """

    def __init__(self) -> None:
        from .. import __version__

        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # nobody gave it a name
            resource = resource.merge(Resource({SERVICE_NAME: "homeport"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("homeport", __version__)

    def begin(self, request: ApiRequest, operation: Operation) -> Span:
        """The span of a request, which is the current one of this task from now on; of the trace that the client's
        ``traceparent`` names (W3C Trace Context), if it does."""
        raw = request.raw
        method = raw.method if raw.method in _METHODS else "_OTHER"
        parent = _parents.extract(raw.headers)
        span = self._tracer.start_span(
            f"{method} {operation.path}",
            parent,
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": operation.path,
                "url.scheme": raw.scheme,
                "network.protocol.version": f"{raw.version.major}.{raw.version.minor}",
                "homeport.operation": operation.name,
                "homeport.request.id": request.id,
            },
        )
        context.attach(set_span_in_context(span, parent))  # aiohttp gives each request a task, hence a context
        return span

    def end(self, span: Span, response: web.StreamResponse) -> None:
        """Ends the span of a request that was answered."""
        span.set_attribute("http.response.status_code", response.status)
        if response.status >= 500:
            span.set_attribute("error.type", str(response.status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def committed(self, times: CommitTimes) -> None:
        """A span for a commit that has just ended, if a request's is the current one."""
        if not get_current_span().is_recording():
            return
        now = time.time_ns()
        span = self._tracer.start_span(
            "commit",
            attributes={"homeport.storage.queue_seconds": times.queued, "homeport.storage.outcome": times.outcome},
            start_time=now - round((times.queued + times.written) * 1e9),
        )
        if times.outcome == "failed":
            span.set_status(StatusCode.ERROR)
        span.end(now)

    def close(self) -> None:
        """Sends what waits; gives up after two seconds."""
        # The library itself may take half a minute, while nobody listens.
        sending = threading.Thread(target=self._provider.shutdown, name="homeport-traces", daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)
