"""A folder of 5,000 tickets, listed on SQLite: the first time, again, and after a file has changed.

    python -m bench tickets

Beside each figure stands the most processor time that the event loop took between two turns.
"""

import asyncio
import gc
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from homeport.server.app import create_app
from homeport.server.config import load_config
from homeport.server.runner import Runner

TICKETS = 5_000
ROUNDS = 30
TEXT = "What is to be done.\n" * 50
_BEAT = 0.001


def call(port: int, method: str, path: str, body: Any = None) -> tuple[float, bytes]:
    """Milliseconds until the whole answer was there, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin = time.perf_counter()
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    milliseconds = (time.perf_counter() - begin) * 1000
    connection.close()
    assert answer.status in (200, 201), text
    return milliseconds, text


async def beats(turns: list[float]) -> None:
    """Notes what the loop computes until it comes round again, in milliseconds."""
    while True:
        begin = time.thread_time()
        await asyncio.sleep(_BEAT)
        turns.append((time.thread_time() - begin) * 1000)


async def measure(what: str, rounds: int, work: Callable[[], Awaitable[float]]) -> None:
    turns: list[float] = []
    heart = asyncio.create_task(beats(turns))
    times = [await work() for _ in range(rounds)]
    heart.cancel()
    print(f"{what}: {statistics.median(times):.0f} ms, at most {max(times):.0f}; loop {max(turns):.1f} ms")


async def bench(folder: Path, client: Executor) -> None:
    tickets = folder / "repo/docs/jira-tickets"
    tickets.mkdir(parents=True)
    for number in range(TICKETS):
        inner = tickets / f"{number // 500}"
        inner.mkdir(exist_ok=True)
        (inner / f"CSM-{number:04}-ticket.md").write_text(
            f"# Ticket number {number}\n\n" + "What is to be done.\n" * 50
        )
    settings = {
        "storage.url": f"sqlite:{folder}/homeport.db",
        "log.level": "warning",
        "apis.sessions.tmux_socket": str(folder / "tmux"),
        "apis.sessions.output_folder": str(folder / "output"),
    }
    runner = Runner(create_app(load_config(os.devnull, environ={}, overrides=settings)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    body = {"name": "Bench", "repoPath": str(folder / "repo"), "tmuxSession": "bench"}
    loop = asyncio.get_running_loop()
    _, project = await loop.run_in_executor(client, call, port, "POST", "/api/projects", body)
    path = f"/api/projects/{json.loads(project)['id']}/tickets"

    async def listing(query: str = "") -> float:
        milliseconds, found = await loop.run_in_executor(client, call, port, "GET", path + query)
        assert found.count(b'"external_id"') == (50 if query else TICKETS)
        return milliseconds

    async def changed() -> float:
        (tickets / "0/CSM-0000-ticket.md").write_text(f"# {time.time()}\n")
        return await listing()

    await asyncio.sleep(0.2)  # what was written just now may change again unnoticed, and is read anew
    await measure("first", 1, listing)
    await measure("again", ROUNDS, listing)
    await measure("a page of 50", ROUNDS, lambda: listing("?limit=50"))
    await measure("after a change", ROUNDS, changed)
    await runner.cleanup()


def main() -> None:
    gc.freeze()  # as `homeport serve` does
    gc.set_threshold(20_000, 20, 20)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as client:
        uvloop.run(bench(Path(folder), client))


if __name__ == "__main__":
    main()
