"""What the tests of metering share: a server whose clients have licenses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import License, Licenses
from homeport.server.config import load_config

from .conftest import Answer, Serve, Served

NOW = "2025-11-20T12:00:00Z"
"""What the clock shows until a test moves it."""
ENDLESS = {"apis.metering.rate_limit": "1000000/minute"}
FINGERPRINT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ELSEWHERE = {"X-Forwarded-For": "203.0.113.7"}
"""What makes a caller from this machine one from elsewhere: who is limited by address."""


@dataclass
class Shop:
    """A server, with what `homeport licenses` works with on its store."""

    server: Served
    licenses: Licenses
    ledger: Ledger

    async def license(self, email: str = "alice@example.com", **given: Any) -> tuple[License, str]:
        """A new one, and its key."""
        return await self.licenses.create(email, **given)

    async def get(self, path: str, key: str | None, **request: Any) -> Answer:
        return await self.server.get(path, headers=bearer(key), **request)

    async def balance(self, key: str | None) -> Answer:
        return await self.get("/api/tokens/balance", key)

    async def validate(self, key: str, fingerprint: str = FINGERPRINT, **request: Any) -> Answer:
        body = {"license_key": key, "device_fingerprint": fingerprint}
        return await self.server("POST", "/api/license/validate", json=body, **request)


def bearer(key: str | None) -> Mapping[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def open_shop(serve: Serve, settings: dict[str, Any] | None = None, *, now: str = NOW) -> Shop:
    """A server without a limit, unless the settings say otherwise."""
    given = ENDLESS | (settings or {})
    server = await serve(given, now=now)
    config = load_config(environ={}, overrides=given).apis.metering
    ledger = Ledger(server.storage, server.clock, config)
    return Shop(server, Licenses(server.storage, server.clock, ledger), ledger)
