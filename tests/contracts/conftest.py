"""The contracts' tests run against the servers of the APIs' own tests."""

from ..server.apis.conftest import back_end, desk, launch, log, open_desk, serve, server, storage, storage_url

__all__ = ["back_end", "desk", "launch", "log", "open_desk", "serve", "server", "storage", "storage_url"]
