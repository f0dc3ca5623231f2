"""An operation made ready to serve: whatever does not depend on the request is worked out beforehand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from limits import parse

from ..storage.documents import InvalidDocument, decode, encode
from .bodies import COMPRESS_ABOVE, check_head, compress, read_body
from .errors import (
    ApiError,
    Envelope,
    Forbidden,
    InvalidBody,
    InvalidParameters,
    Problem,
    as_api_error,
)
from .ratelimit import DEFAULT_LIMIT
from .request import Answer, ApiRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from limits import RateLimitItem

    from .auth import Clients
    from .config import Config
    from .hosts import Hosts
    from .operation import Operation
    from .ratelimit import Limit, Limiter
    from .telemetry import Telemetry
    from .validation import Checker, Parameters, Schemas


@dataclass(frozen=True, slots=True)
class Core:
    """What every endpoint of an application shares."""

    app: web.Application
    config: Config
    schemas: Schemas
    hosts: Hosts
    clients: Clients
    limiter: Limiter
    telemetry: Telemetry


class Endpoint:
    """Serves one operation. ``names``: the path's parameters, in order. Raises ValueError for an unknown schema."""

    def __init__(self, operation: Operation, names: tuple[str, ...], envelope: Envelope, core: Core) -> None:
        config, schemas = core.config, core.schemas
        self._core = core
        self._operation = operation
        self._names = names
        self._envelope = envelope
        self._handler = operation.handler
        self._auth = operation.auth
        self._max_body = operation.max_body or config.server.max_body_bytes
        self._body = schemas.checker(operation.body) if operation.body else None
        self._params = schemas.checker(operation.params).parameters() if operation.params else None
        self._query = schemas.checker(operation.query).parameters() if operation.query else None
        self._observe = core.telemetry.observer(operation.name, operation.path)
        limits = [(limit, parse(limit.rate(config))) for limit in operation.limits or (DEFAULT_LIMIT,)]
        self._address_limits = [(limit, item) for limit, item in limits if limit.stage == "address"]
        self._caller_limits = [(limit, item) for limit, item in limits if limit.stage == "caller"]
        self._document_limits = [(limit, item) for limit, item in limits if limit.stage == "document"]

    async def serve(self, raw: web.Request) -> web.StreamResponse:
        """The answer to a request, whatever happens."""
        started = perf_counter()
        core = self._core
        request = ApiRequest(raw, core.app, core.telemetry.next_id())
        response: web.StreamResponse
        try:
            answer = await self._answer(request)
            response = answer if isinstance(answer, web.StreamResponse) else self._respond(request, answer)
        except Exception as error:  # noqa: BLE001  # the one place where every error becomes an answer
            response = self._respond(request, self._refuse(request, as_api_error(error)))
        self._observe(request, response.status, perf_counter() - started)
        return response

    async def _answer(self, request: ApiRequest) -> Any:
        """The way in, step by step; the order is the contract's. Each step raises what refuses the request."""
        raw, core = request.raw, self._core
        request.client = core.clients.identify(raw)
        request.answer_headers.update(core.hosts.check(raw))
        if core.config.server.require_https and not core.clients.secure(raw):
            raise Forbidden("HTTPS is required", code="HTTPS_REQUIRED")
        has_body = raw.can_read_body
        if has_body:
            check_head(raw, self._operation.content_types, self._max_body)
        if not request.client.loopback:
            self._count(request, self._address_limits)
        if self._auth is not None:
            if not request.client.loopback:
                core.limiter.may_guess(request.client.network)
            request.caller = await self._auth(request)
            self._count(request, self._caller_limits)
        if has_body and self._operation.content_types:
            request.body = await read_body(raw, self._max_body)
        request.path = dict(zip(self._names, raw.match_info.values(), strict=True))
        if self._params is not None:
            request.path = await self._parameters(self._params, request.path.items())
        if self._query is not None:
            request.query = await self._parameters(self._query, raw.query.items())
        if self._body is not None:
            request.document = await self._document(self._body, request.body)
        self._count(request, self._document_limits)
        return await self._handler(request)

    def _count(self, request: ApiRequest, limits: list[tuple[Limit, RateLimitItem]]) -> None:
        for limit, item in limits:
            key = limit.key(request)
            try:
                self._core.limiter.hit(item, limit.name, key)
            finally:
                if limit.headers:
                    request.answer_headers.update(self._core.limiter.window(item, limit.name, key).headers)

    async def _parameters(self, parameters: Parameters, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        values = parameters.read(texts)
        if not parameters.checker.is_valid(values):
            raise InvalidParameters(problems=await asyncio.to_thread(parameters.checker.problems, values))
        return values

    async def _document(self, checker: Checker, body: bytes) -> Any:
        if not body:
            raise InvalidBody(problems=[Problem((), "is required")])
        try:
            document = decode(body)
        except InvalidDocument as error:
            raise InvalidBody(problems=[Problem((), error.message)]) from error
        if not checker.is_valid(document):
            raise InvalidBody(problems=await asyncio.to_thread(checker.problems, document))
        return document

    def _refuse(self, request: ApiRequest, error: ApiError) -> Answer:
        if error.guess and not request.client.loopback:
            self._core.limiter.guessed(request.client.network)
        return self._envelope(error, request)

    def _respond(self, request: ApiRequest, answer: Any) -> web.Response:
        """``answer``: an `Answer`, or a document."""
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        body, status, headers, content_type = answer
        if body is not None and not isinstance(body, bytes):
            body = encode(body)
        head = {hdrs.SERVER: "homeport", hdrs.VARY: "Origin", "X-Request-Id": request.id, **request.answer_headers}
        if body is not None:
            head[hdrs.CONTENT_TYPE] = content_type
        if headers:
            head.update(headers)
        response = web.Response(body=body, status=status, headers=head)
        if body is not None and len(body) > COMPRESS_ABOVE:
            compress(response, content_type, request.raw.headers.get(hdrs.ACCEPT_ENCODING, ""))
        return response
