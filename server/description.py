"""What the server tells of its API: /openapi.json for programs, /docs for people."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING

from ..storage.documents import encode
from .keys import CONFIG, OPENAPI
from .pages import SHEETS, html_answer, rendered
from .request import Answer, ApiRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from .operation import Api

_SHEETS = (*SHEETS, "docs.css")


def add_description(api: Api) -> None:
    """Adds the operations to the server's own."""
    document, page = _Made(_document), _Made(_page)

    @api.get(
        "/openapi.json",
        reads={"headers": "headers#/$defs/IfNoneMatch"},
        returns={200: "openapi#/$defs/Document", 304: None},
        gives={200: "headers#/$defs/Tagged", 304: "headers#/$defs/Tagged"},
    )
    async def description(request: ApiRequest) -> Answer:
        """What the server serves, as an OpenAPI 3.1 document: this one."""
        return await document.answer(request)

    @api.get(
        "/docs",
        reads={"headers": "headers#/$defs/IfNoneMatch"},
        returns={200: None, 304: None},
        gives={200: "headers#/$defs/Tagged", 304: "headers#/$defs/Tagged"},
        produces=("text/html",),
    )
    async def docs_page(request: ApiRequest) -> Answer:
        """The same as a page, for people."""
        return await page.answer(request)


class _Made:
    """An answer that is made once, elsewhere than on the loop, when somebody first asks for it."""

    def __init__(self, make: Callable[[web.Application], Answer]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._answer: Answer | None = None
        self._tag = ""

    async def answer(self, request: ApiRequest) -> Answer:
        async with self._lock:
            if self._answer is None:
                answer = await asyncio.to_thread(self._make, request.app)
                self._tag = f'W/"{sha256(answer.body).hexdigest()[:32]}"'
                headers = {**(answer.headers or {}), "ETag": self._tag, "Cache-Control": "no-cache"}
                self._answer = answer._replace(headers=headers)
        if self._tag[2:] in request.raw.headers.get("If-None-Match", ""):
            return Answer(status=304, headers={"ETag": self._tag, "Cache-Control": "no-cache"})
        return self._answer


def _document(app: web.Application) -> Answer:
    return Answer(encode(app[OPENAPI]()))


def _page(app: web.Application) -> Answer:
    from .docs import docs  # nobody may ask for it

    server = app[CONFIG].server
    scheme = "https" if server.tls.cert else "http"
    url = server.public_url or f"{scheme}://127.0.0.1:{server.port}{server.base_path}"
    return html_answer(rendered("docs.html", sheets=_SHEETS, **docs(app[OPENAPI](), url)), sheets=_SHEETS)
