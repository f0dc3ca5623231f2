"""The yardstick: aiohttp on uvloop with one handler that reads the body and answers a constant.

python -m bench.bare PORT
"""

import asyncio
import sys

import uvloop
from aiohttp import web

PATHS = ("/api/sync", "/api/tokens/consume")
ANSWER = b'{"status":"success","message":"Data synced successfully for M4x.local"}'


async def handle(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def main(port: int) -> None:
    app = web.Application()
    for path in PATHS:
        app.router.add_post(path, handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
