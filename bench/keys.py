"""How much a valid client notices of 100 connections that guess at API keys, each ten times a second, all at once.

python -m bench keys                     compares
python -m bench.keys serve PORT STORE    serves one operation that takes a key
python -m bench.keys flood PORT KIND KEY guesses

A flood without any key is the yardstick: what as many requests take whatever stands in them.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import aiohttp
import uvloop
from aiohttp import web

from bench.processes import free_port, wait_for
from homeport.server.api_keys import KEYS, USERS, ApiKeys, bearer
from homeport.server.app import assemble
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.server.runner import Runner
from homeport.server.validation import Schemas
from homeport.storage import open_storage

CONNECTIONS = 100
EVERY = 0.1
SECONDS = 5.0
ROUNDS = 3
GUESSES: dict[str, Callable[[str], str]] = {
    "no key": lambda _: "",
    "unknown keys": lambda _: f"ccusage_live_{secrets.token_urlsafe(45)}",
    "wrong secrets of a key": lambda key: key[:-44] + secrets.token_urlsafe(33),
}

api = Api("bench")


@api.get("/keyed", auth=bearer("read"))
async def keyed(_: ApiRequest) -> object:
    return {}


async def serve(port: int, store: str) -> None:
    app = assemble(load_config(environ={}, overrides={"storage.url": store, "log.level": "error"}), [api], Schemas())
    runner = Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def flood(port: int, kind: str, key: str) -> None:
    """Guesses until it is ended."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def guess() -> None:
            for turn in itertools.count():
                await asyncio.sleep(begin + turn * EVERY - loop.time())
                headers = {"Authorization": f"Bearer {GUESSES[kind](key)}"}
                async with session.get(f"http://127.0.0.1:{port}/keyed", headers=headers) as answer:
                    if answer.status not in (401, 503):
                        raise SystemExit(f"a guess was answered {answer.status}")

        await asyncio.gather(*(guess() for _ in range(CONNECTIONS)))


async def client(port: int, key: str) -> tuple[float, float]:
    """The median and the 99th percentile of a valid client's requests, in milliseconds."""
    took: list[float] = []
    end = time.monotonic() + SECONDS
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        while time.monotonic() < end:
            begin = time.perf_counter()
            async with session.get(f"http://127.0.0.1:{port}/keyed") as answer:
                if answer.status != 200:
                    raise SystemExit(f"the valid client was answered {answer.status}")
                await answer.read()
            took.append((time.perf_counter() - begin) * 1000)
            await asyncio.sleep(0.0023)  # no multiple of it is the flood's
    return statistics.median(took), statistics.quantiles(took, n=100)[98]


async def make_key(store: str, username: str) -> str:
    async with open_storage(store, (KEYS, USERS)) as storage:
        keys = ApiKeys(storage, Clock())
        _, text = await keys.create(username)
        keys.close()
    return text


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:{folder}/store.db"
        valid, attacked = (asyncio.run(make_key(store, name)) for name in ("alice", "mallory"))
        port = free_port()
        server = subprocess.Popen([sys.executable, "-m", "bench.keys", "serve", str(port), store])
        try:
            wait_for(port, server)
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ("alone", *GUESSES)}
            for name in list(measured) * ROUNDS:
                measured[name].append(_beside(name, port, valid, attacked))
        finally:
            server.terminate()
            server.wait(10)
    _report(measured)


def _beside(name: str, port: int, valid: str, attacked: str) -> tuple[float, float]:
    if name not in GUESSES:
        return asyncio.run(client(port, valid))
    guesser = subprocess.Popen([sys.executable, "-m", "bench.keys", "flood", str(port), name, attacked])
    try:
        time.sleep(1.5)
        figures = asyncio.run(client(port, valid))
        if guesser.poll() is not None:
            raise SystemExit("the flood ended early")
        return figures
    finally:
        guesser.terminate()
        guesser.wait(10)


def _report(measured: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in measured.items()
    }
    for name, (half, most) in medians.items():
        ratios = ", ".join(
            f"{half / medians[yardstick][0]:.2f} and {most / medians[yardstick][1]:.2f} of {yardstick}"
            for yardstick in ("alone", "no key")
        )
        print(f"valid client, beside {name:24} p50 {half:6.2f} ms, p99 {most:6.2f} ms ({ratios})")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "serve":
        uvloop.run(serve(int(sys.argv[2]), sys.argv[3]))
    else:
        uvloop.run(flood(int(sys.argv[2]), *sys.argv[3:]))
