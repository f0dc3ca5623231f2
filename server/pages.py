"""HTML pages: templates of server/web, escaped, without scripts, under a policy that allows none."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .request import Answer

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_WEB = Path(__file__).parent / "web"
_CODE = re.compile(r"`{1,2}(.+?)`{1,2}")
SHEETS = ("style.css",)
"""The style sheets of a page that says nothing else."""


async def page(template: str, status: int = 200, *, form_action: str = "'none'", **values: Any) -> Answer:
    """A template of server/web as an answer. ``form_action``: where its forms may go, as a Content-Security-Policy says
    it."""
    html = await asyncio.to_thread(rendered, template, **values)  # the library takes a while to import
    return html_answer(html, status, form_action=form_action)


def rendered(template: str, *, sheets: tuple[str, ...] = SHEETS, **values: Any) -> bytes:
    """A template of server/web as a page, which carries its style sheets in itself."""
    texts = [_sheet(name) for name in sheets]
    return _environment().get_template(template).render(sheets=texts, **values).encode()


def html_answer(
    html: bytes, status: int = 200, *, sheets: tuple[str, ...] = SHEETS, form_action: str = "'none'"
) -> Answer:
    """A page that was `rendered`, under a Content-Security-Policy (CSP 3) of its style sheets alone."""
    styles = " ".join(_source(name) for name in sheets)
    policy = f"default-src 'none'; style-src {styles}; img-src data:; base-uri 'none'"
    headers = {
        "Content-Security-Policy": f"{policy}; form-action {form_action}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Answer(html, status, headers, "text/html; charset=utf-8")


@cache
def _sheet(name: str) -> str:
    return (_WEB / name).read_text("utf-8")


@cache
def _source(sheet: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_sheet(sheet).encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["count"] = _count
    environment.filters["dollars"] = _dollars
    environment.filters["marked"] = _marked
    environment.filters["breakable"] = _breakable
    return environment


def _count(number: int) -> str:
    """``11,681,277``."""
    return f"{number:,}"


def _dollars(amount: Decimal) -> str:
    """``$1,234.56``."""
    return f"${amount:,.2f}"


def _marked(text: str) -> Markup:
    """What stands between backticks, one or two, as code."""
    from markupsafe import Markup

    pieces = [
        Markup("<code>{}</code>").format(piece) if place % 2 else Markup("{}").format(piece)
        for place, piece in enumerate(_CODE.split(text))
    ]
    return Markup("").join(pieces)


def _breakable(path: str) -> Markup:
    """A path that may be broken before its slashes."""
    from markupsafe import Markup, escape

    return Markup("<wbr>/").join(escape(segment) for segment in path.split("/"))
