"""`POST /api/tokens/consume` through the whole stack, on SQLite, against a bare server: by the holders of a thousand
licenses, and by one of them alone; then adds up that the tokens that were acknowledged are gone, and the ledgers right.

    python -m bench metering
"""

import asyncio
import os
import tempfile

from bench.load import Users, compare, report
from homeport.server.apis.metering import api
from homeport.server.apis.metering.audit import audit
from homeport.server.apis.metering.documents import PROFILES
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import Query, open_storage, walk

LICENSES = 1000
KEY = "0000-0000-0000-%04d"
MANY = Users(LICENSES, KEY, bearers=True)
ONE = Users(1, KEY, bearers=True)
BODY = {"tokens_amount": 1, "description": "Feature usage"}
SETTINGS = {
    "HOMEPORT_APIS__METERING__RATE_LIMIT": "1000000000/minute",
    "HOMEPORT_APIS__METERING__TIERS__FREE": "1000000000",
}


async def _make_licenses(url: str) -> None:
    clock = Clock()
    async with open_storage(url, api.collections) as storage:
        licenses = Licenses(storage, clock, Ledger(storage, clock, load_config().apis.metering))
        for number in range(1, LICENSES + 1):
            await licenses.create(f"{number}@example.com", key=KEY % number)


async def _spent(url: str) -> int:
    """Tokens, of all profiles, whose ledgers are right."""
    async with open_storage(url, api.collections) as storage:
        async for user_id, problem in audit(storage):
            if problem is not None:
                raise SystemExit(f"the profile {user_id} is wrong: {problem}")
        return sum([record.decode()["tokens_used_this_month"] async for record in walk(storage, Query(PROFILES))])


def main() -> None:
    os.environ |= SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:{folder}/store.db"
        asyncio.run(_make_licenses(url))
        acknowledged = 0
        for name, users in (("a thousand profiles", MANY), ("one profile", ONE)):
            servers = {
                "bare": ["-m", "bench.bare"],
                name: ["-m", "homeport", "serve", "--storage", url, "--port"],
            }
            measured = compare(servers, "/api/tokens/consume", BODY, users=users)
            report(measured, "bare")
            acknowledged += sum(figures.requests for figures in measured[name])
        spent = asyncio.run(_spent(url))
        print(f"{acknowledged} tokens were acknowledged as spent, {spent} are gone")
        if spent < acknowledged:
            raise SystemExit("acknowledged tokens are not gone")


if __name__ == "__main__":
    main()
