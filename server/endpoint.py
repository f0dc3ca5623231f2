"""An operation made ready to serve: whatever does not depend on the request is worked out beforehand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

from ..storage.documents import InvalidDocument, decode, encode
from .bodies import COMPRESS_ABOVE, check_head, compress, read_body
from .errors import (
    Envelope,
    Forbidden,
    InvalidBody,
    InvalidParameters,
    Problem,
    as_api_error,
)
from .logs import REQUEST_ID
from .ratelimit import DEFAULT_LIMIT, Rate
from .request import Answer, ApiRequest
from .responses import HTTP_1_1, WholeResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .clients import Clients
    from .config import Config
    from .hosts import Hosts
    from .operation import Operation
    from .ratelimit import Limit, Limiter
    from .telemetry import Telemetry
    from .validation import Parameters, Schemas


@dataclass(slots=True)
class Core:
    """What the endpoints of an application share."""

    app: web.Application
    config: Config
    schemas: Schemas
    hosts: Hosts
    clients: Clients
    limiter: Limiter
    telemetry: Telemetry
    _alone: bool | None = None

    def alone(self, request: web.Request) -> bool:
        """Whether nothing but our handlers sees the responses: no application around, no middleware, no signal."""
        if self._alone is None:  # then it is the first request, after which nothing of this changes
            app = self.app
            self._alone = request.match_info.apps == (app,) and not (app.middlewares or app.on_response_prepare)
        return self._alone


class Endpoint:
    """Serves one operation. ``names``: the path's parameters, in order. Raises ValueError for an unknown schema."""

    def __init__(self, operation: Operation, names: tuple[str, ...], envelope: Envelope, core: Core) -> None:
        config, schemas = core.config, core.schemas
        self._core = core
        self._operation = operation
        self._names = names
        self._envelope = envelope
        self._meter = core.telemetry.meter(operation.name)
        self._max_body = operation.max_body or config.server.max_body_bytes
        self._body = schemas.checker(operation.body) if operation.body else None
        self._params = schemas.checker(operation.params).parameters if operation.params else None
        self._query = schemas.checker(operation.query).parameters if operation.query else None
        limits = [(limit, Rate.of(limit.name, limit.rate(config))) for limit in operation.limits or (DEFAULT_LIMIT,)]
        self._address_limits = [(limit, rate) for limit, rate in limits if limit.stage == "address"]
        self._caller_limits = [(limit, rate) for limit, rate in limits if limit.stage == "caller"]
        self._document_limits = [(limit, rate) for limit, rate in limits if limit.stage == "document"]

    async def expect(self, raw: web.Request) -> None:
        """RFC 9110 10.1.1: who waits for it is told to go on, unless the body is too large to be read."""
        if raw.headers["Expect"].lower() == "100-continue" and (raw.content_length or 0) <= self._max_body:
            await raw.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def serve(self, raw: web.Request) -> web.StreamResponse:
        """The answer to a request, whatever happens."""
        started = perf_counter()
        core = self._core
        telemetry = core.telemetry
        request = ApiRequest(raw, core.app, telemetry.next_id())
        REQUEST_ID.set(request.id)
        tracing = telemetry.tracing
        span = tracing.begin(request, self._operation) if tracing else None
        try:
            answer = await self._answer(request)
            response = self._respond(request, answer)
        except Exception as error:  # noqa: BLE001  # the one place where every error becomes an answer
            refusal = as_api_error(error)
            request.guess = request.guess or refusal.guess
            response = self._respond(request, self._envelope(refusal, request))
        if request.guess and not request.client.loopback:
            core.limiter.guessed(request.client.network)
        ended = perf_counter()
        self._meter.count(response.status, (request.began or ended) - started)
        telemetry.log(request, self._operation.path, response.status, ended - started)
        if tracing and span:
            tracing.end(span, response)
        return response

    async def _answer(self, request: ApiRequest) -> Any:
        """The way in, step by step, in the contract's order. A step that refuses the request raises."""
        raw, core, operation = request.raw, self._core, self._operation
        client = request.client = core.clients.identify(raw)
        request.cors = core.hosts.check(raw)
        if core.config.server.require_https and not core.clients.secure(raw):
            raise Forbidden("HTTPS is required", code="HTTPS_REQUIRED")

        has_body = raw.can_read_body
        if has_body:
            check_head(raw, operation.content_types, None if operation.streamed else self._max_body)
        if self._address_limits and not client.loopback:
            self._count(request, self._address_limits)
        if operation.auth is not None:
            if not client.loopback:
                core.limiter.may_guess(client.network)
            try:
                request.caller = await operation.auth.check(request)
            finally:
                if request.caller_id:  # who is known counts, whether let in or not
                    self._count(request, self._caller_limits)

        if self._names:
            request.path = dict(zip(self._names, raw.match_info.values(), strict=True))
        if self._params is not None:
            request.path = await self._read(self._params, request.path.items())
        if self._query is not None:
            request.query = await self._read(self._query, raw.query.items())
        if has_body and operation.content_types and not operation.streamed:
            request.body = await read_body(raw, self._max_body)
        if self._body is not None and not operation.streamed:
            request.document = _parse(request.body or (b"{}" if operation.optional_body else b""))
            if not self._body.is_valid(request.document):
                raise InvalidBody(problems=await asyncio.to_thread(self._body.problems, request.document))
        if self._document_limits:
            self._count(request, self._document_limits)
        return await operation.handler(request)

    def _count(self, request: ApiRequest, limits: Iterable[tuple[Limit, Rate]]) -> None:
        for limit, rate in limits:
            key = limit.key(request)
            try:
                self._core.limiter.hit(rate, key)
            finally:
                if limit.headers:
                    request.answer_headers.update(self._core.limiter.headers(rate, key))

    async def _read(self, parameters: Parameters, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        values = parameters.read(texts)
        if not parameters.checker.is_valid(values):
            raise InvalidParameters(problems=await asyncio.to_thread(parameters.checker.problems, values))
        return values

    def _respond(self, request: ApiRequest, answer: Any) -> web.StreamResponse:
        """``answer``: an `Answer`, a document, or a response that the handler sent itself."""
        if isinstance(answer, web.StreamResponse):
            return answer
        body, status, headers, content_type = answer if isinstance(answer, Answer) else Answer(answer)
        if body is not None and not isinstance(body, bytes):
            body = encode(body)
        raw = request.raw
        if (
            body
            and len(body) <= COMPRESS_ABOVE
            and not (headers or request.cors or request.answer_headers)
            and raw.version == HTTP_1_1
            and raw.keep_alive
            and raw.method != "HEAD"
            and self._core.alone(raw)
        ):
            return WholeResponse(status, content_type, request.id, body)
        head = {**request.headers, **(headers or {})}
        if body is not None:
            head[hdrs.CONTENT_TYPE] = content_type
        response = web.Response(body=body, status=status, headers=head)
        if body and len(body) > COMPRESS_ABOVE:
            compress(response, content_type, raw.headers.get(hdrs.ACCEPT_ENCODING, ""))
        return response


def _parse(body: bytes) -> Any:
    if not body:
        raise InvalidBody(problems=[Problem((), "is required")])
    try:
        return decode(body)
    except InvalidDocument as error:
        raise InvalidBody(problems=[Problem((), error.message)]) from error
