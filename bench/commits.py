"""What group commit gives: commits a second of one committer and of many, and a large commit while reads saturate
the loop.

    python -m bench commits
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time

import uvloop

from homeport.storage import Collection, Put, Query, Storage, open_storage, starts_with

NOTES = Collection("notes")
DOCUMENT = {"title": "A note of half a kilobyte", "text": "x" * 450}
SECONDS = 3.0
ROUNDS = 3
COMMITTERS = 64
LARGE = 1200
LARGE_COMMITS = 15


async def commits_per_second(storage: Storage, committers: int) -> float:
    done = 0
    end = time.perf_counter() + SECONDS

    async def commit(committer: int) -> None:
        nonlocal done
        number = 0
        while time.perf_counter() < end:
            number += 1
            await storage.commit([Put(NOTES, f"{committer}/{number}", DOCUMENT)])
            done += 1

    await asyncio.gather(*(commit(committer) for committer in range(committers)))
    return done / SECONDS


async def group_commit(backend: str) -> None:
    one: list[float] = []
    many: list[float] = []
    for _ in range(ROUNDS):
        for rates, committers in ((one, 1), (many, COMMITTERS)):
            with tempfile.TemporaryDirectory() as folder:
                async with open_storage(f"{backend}:{folder}/store", [NOTES]) as storage:
                    rates.append(await commits_per_second(storage, committers))
    alone, together = statistics.median(one), statistics.median(many)
    print(
        f"{backend:8} {alone:9,.0f} commits/s of one committer, {together:9,.0f} of {COMMITTERS}:"
        f" {together / alone:5.1f} times as many"
    )


async def large_commit(backend: str) -> None:
    """A commit of 1,200 records while eight readers keep the loop busy without a pause."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_storage(f"{backend}:{folder}/store", [NOTES]) as storage:
            await storage.commit([Put(NOTES, f"seed/{n}", DOCUMENT) for n in range(100)])

            async def read() -> None:
                while True:
                    for n in range(100):
                        await storage.get(NOTES, [f"seed/{n}"])
                    await asyncio.sleep(0)  # what is in memory is answered without a pause
                    await storage.find(Query(NOTES, starts_with("seed/"), limit=10))

            readers = [asyncio.create_task(read()) for _ in range(8)]
            took = []
            for turn in range(LARGE_COMMITS):
                writes = [Put(NOTES, f"{turn}/{n}", DOCUMENT) for n in range(LARGE)]
                await asyncio.sleep(0.01)
                begin = time.perf_counter()
                await storage.commit(writes)
                took.append((time.perf_counter() - begin) * 1000)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    cores = len(os.sched_getaffinity(0))
    print(f"{backend:8} {statistics.median(took):6.1f} ms for {LARGE} records under reads, on {cores} core(s)")


def main() -> None:
    for backend in ("sqlite", "file"):
        uvloop.run(group_commit(backend))
    for backend in ("sqlite", "file"):
        for cores in ("0", "0,1"):
            subprocess.run(["taskset", "-c", cores, sys.executable, "-m", "bench.commits", backend], check=True)


if __name__ == "__main__":
    uvloop.run(large_commit(sys.argv[1]))
