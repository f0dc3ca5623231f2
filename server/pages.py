"""HTML pages: templates of server/web, escaped, without scripts, under a policy that allows none."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .request import Answer

if TYPE_CHECKING:
    from jinja2 import Environment

_WEB = Path(__file__).parent / "web"


async def page(template: str, status: int = 200, *, form_action: str = "'none'", **values: Any) -> Answer:
    """A template of server/web as an answer. ``form_action``: where its forms may go, as a Content-Security-Policy says
    it."""
    html = await asyncio.to_thread(_render, template, values)  # the library takes a while to import
    return Answer(html.encode(), status, _headers(form_action), "text/html; charset=utf-8")


def _render(template: str, values: dict[str, Any]) -> str:
    return _environment().get_template(template).render(values)


@cache
def _style() -> str:
    return (_WEB / "style.css").read_text("utf-8")


@cache
def _style_source() -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _headers(form_action: str) -> dict[str, str]:
    """With a Content-Security-Policy (CSP 3) of the one style sheet, which every page carries in itself."""
    policy = f"default-src 'none'; style-src {_style_source()}; img-src data:"
    return {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action {form_action}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


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
    environment.globals["style"] = _style()
    environment.filters["count"] = _count
    environment.filters["dollars"] = _dollars
    return environment


def _count(number: int) -> str:
    """``11,681,277``."""
    return f"{number:,}"


def _dollars(amount: Decimal) -> str:
    """``$1,234.56``."""
    return f"${amount:,.2f}"
