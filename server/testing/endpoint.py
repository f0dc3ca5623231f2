"""The endpoints of a server under test: each request is in the journal, and a fault may meet it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..bodies import read_body
from ..endpoint import Core, Endpoint
from ..errors import ApiError
from ..keys import CLOCK
from .faults import Fault
from .journal import Asked

if TYPE_CHECKING:
    from ..errors import Envelope
    from ..operation import Operation
    from ..request import ApiRequest
    from .faults import Faults
    from .journal import Journal

PREFIX = "/__test__/"
"""Of the paths by which tests control the server: they are in no journal, and no fault meets them."""
_ASKED = web.RequestKey("asked", Asked)
_FAULT = web.RequestKey("fault", Fault)


class WatchedEndpoint(Endpoint):
    """An endpoint of an application that tests control."""

    def __init__(
        self,
        journal: Journal,
        faults: Faults,
        operation: Operation,
        names: tuple[str, ...],
        envelope: Envelope,
        core: Core,
    ) -> None:
        super().__init__(operation, names, envelope, core)
        self._journal = journal
        self._faults = faults

    async def serve(self, raw: web.Request) -> web.StreamResponse:
        path = raw.path.removeprefix(self._core.config.server.base_path)
        if path.startswith(PREFIX):
            return await super().serve(raw)
        asked = raw[_ASKED] = self._journal.add(raw, path, raw.app[CLOCK].now())
        if fault := self._faults.take(raw.method, path):
            if fault.disconnect:
                return await self._disconnect(raw, asked)
            raw[_FAULT] = fault
        response = await super().serve(raw)
        asked.status = response.status
        return response

    async def _answer(self, request: ApiRequest) -> Any:
        asked = request.raw.get(_ASKED)
        if asked is None:
            return await super()._answer(request)
        try:
            if fault := request.raw.get(_FAULT):
                await self._strike(fault, request)
            return await super()._answer(request)
        finally:
            asked.read(request.body)

    async def _strike(self, fault: Fault, request: ApiRequest) -> None:
        raw, core = request.raw, self._core
        if fault.delay_ms is not None:
            await asyncio.sleep(fault.delay_ms / 1000)
            return
        request.client = core.clients.identify(raw)
        request.cors = core.hosts.check(raw)  # pages are to see it too
        request.body = await read_body(raw, self._max_body)
        raise fault.error()

    async def _disconnect(self, raw: web.Request, asked: Asked) -> web.Response:
        """Reads what was asked and breaks the connection off; the response is for nobody."""
        with suppress(ApiError):
            asked.read(await read_body(raw, self._max_body))
        if raw.transport is not None:
            raw.transport.abort()
        return web.Response()
