"""How much of a bare server's speed is left when a request goes through everything but storage.

python -m bench core            compares, with wrk
python -m bench.core PORT       serves one operation as device usage declares its own, storing nothing
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import uvloop
from aiohttp import web

from bench.load import compare, report
from homeport.server.app import assemble
from homeport.server.config import load_config
from homeport.server.operation import Api
from homeport.server.ratelimit import per_address, per_document
from homeport.server.request import ApiRequest
from homeport.server.runner import Runner
from homeport.server.validation import Schemas

COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
COST = {"type": "number", "minimum": 0, "maximum": 1e9}
USAGE = ("totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens")
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "Report": {
            "type": "object",
            "required": ["userKey", "hostname", "timestamp", "usage", "sessions", "costs", "hourlyUsage", "version"],
            "properties": {
                "userKey": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
                "hostname": {"type": "string", "minLength": 1, "maxLength": 255},
                "timestamp": {"type": "string", "format": "instant"},
                "usage": {"type": "object", "required": USAGE, "properties": dict.fromkeys(USAGE, COUNT)},
                "sessions": {
                    "type": "object",
                    "required": ["total", "active", "averageDuration"],
                    "properties": {"total": COUNT, "active": COUNT, "averageDuration": COST},
                },
                "costs": {
                    "type": "object",
                    "required": ["opus", "sonnet", "haiku"],
                    "properties": dict.fromkeys(("opus", "sonnet", "haiku", "actual"), COST),
                },
                "hourlyUsage": {"type": "array", "minItems": 24, "maxItems": 24, "items": COUNT},
                "version": {"type": "string", "minLength": 1, "maxLength": 64},
            },
        }
    },
}
REPORT = {
    "userKey": "5f" * 32,
    "hostname": "M4x.local",
    "timestamp": "2025-06-03T10:30:00Z",
    "usage": dict(zip(USAGE, (2412018, 1608012, 402003, 201501, 200502), strict=True)),
    "sessions": {"total": 30, "active": 15, "averageDuration": 45.5},
    "costs": {"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 15.11},
    "hourlyUsage": [0] * 24,
    "version": "3.0.2",
}

api = Api("bench")


@api.post(
    "/api/sync",
    body="bench#/$defs/Report",
    limits=(
        per_address("address", lambda _: "1000000000/hour"),
        per_document("user", lambda _: "1000000000/hour", lambda request: str(request.document["userKey"]).lower()),
    ),
)
async def sync(request: ApiRequest) -> object:
    report = request.document
    return {
        "status": "success",
        "message": f"Data synced successfully for {report['hostname']}",
        "data": {
            "hostname": report["hostname"],
            "tokens": report["usage"]["totalTokens"],
            "timestamp": report["timestamp"],
        },
    }


async def serve(port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bench.json").write_text(json.dumps(SCHEMA))
        schemas = Schemas(Path(folder))
    app = assemble(load_config(environ={}, overrides={"storage.url": "memory:"}), [api], schemas)
    runner = Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    servers = {"bare": ["-m", "bench.bare"], "core without storage": ["-m", "bench.core"]}
    report(compare(servers, "/api/sync", REPORT), "bare")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(serve(int(sys.argv[1])))
    else:
        main()
