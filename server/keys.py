"""What the application holds: the typed keys of `web.Application`. An API may have keys of its own, beside its code."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from ..storage.base import Storage
from .clock import Clock
from .config import Config

CONFIG = web.AppKey("config", Config)
CLOCK = web.AppKey("clock", Clock)
STORAGE = web.AppKey("storage", Storage)
"""Set when the application starts."""
OPENAPI: web.AppKey[Callable[[], dict[str, Any]]] = web.AppKey("openapi")
"""Gives the OpenAPI document; takes a while."""
