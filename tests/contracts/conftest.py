"""The contracts' tests run against the servers of the APIs' own tests."""

from ..server.apis.conftest import back_end, launch, log, serve, server, storage, storage_url

__all__ = ["back_end", "launch", "log", "serve", "server", "storage", "storage_url"]
