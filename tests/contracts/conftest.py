"""The contracts' tests run against the servers of the APIs' own tests."""

from ..declared import as_declared
from ..server.apis.conftest import (
    back_end,
    launch,
    log,
    serve,
    server,
    storage,
    storage_url,
)
from ..server.apis.sessions_kit import desk, desk_folder, open_desk

__all__ = [
    "as_declared",
    "back_end",
    "desk",
    "desk_folder",
    "launch",
    "log",
    "open_desk",
    "serve",
    "server",
    "storage",
    "storage_url",
]
