"""`POST /api/sync` through the whole stack, on each back end, against a bare server; then counts that every report is
there.

    python -m bench sync
"""

import asyncio
import os
import tempfile

from bench.core import REPORT
from bench.load import compare, report
from homeport.server.apis.device_usage.ledger import REPORTS
from homeport.storage import Query, open_storage

BODY = REPORT | {"userKey": "@KEY@", "timestamp": "@INSTANT@"}


async def _kept(url: str) -> int:
    async with open_storage(url, [REPORTS]) as storage:
        return await storage.count(Query(REPORTS))


def main() -> None:
    os.environ["HOMEPORT_APIS__DEVICE_USAGE__RATE_LIMIT"] = "1000000000/hour"
    with tempfile.TemporaryDirectory() as folder:
        urls = {"memory": "memory:", "file": f"file:{folder}/files", "sqlite": f"sqlite:{folder}/store.db"}
        servers = {"bare": ["-m", "bench.bare"]}
        servers |= {name: ["-m", "homeport", "serve", "--storage", url, "--port"] for name, url in urls.items()}
        measured = compare(servers, "/api/sync", BODY)
        report(measured, "bare")
        for name in ("file", "sqlite"):
            answered = sum(figures.requests for figures in measured[name])
            kept = asyncio.run(_kept(urls[name]))
            print(f"{name}: {answered} reports were acknowledged, {kept} are there")
            if kept < answered:
                raise SystemExit("acknowledged reports are missing")


if __name__ == "__main__":
    main()
