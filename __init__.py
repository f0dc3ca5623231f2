"""Homeport: a self-hosted sync server.

The public names are loaded on first use, so that importing the package (which the command line, the storage
interface and the pytest plugin all do) costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server.app import create_app
    from .server.config import load_config

__all__ = ["__version__", "create_app", "load_config"]

__version__ = "0.1.0"

_HOMES = {"create_app": ".server.app", "load_config": ".server.config"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value  # from now on an ordinary attribute
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
