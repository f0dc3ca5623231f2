"""What moving a store costs: seconds and memory of copies, a backup and a restore; how long a writer waits meanwhile.

    python -m bench copy

A copy into SQLite takes as much memory for a million records as for ten thousand; the file back end holds its records.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from homeport.storage import Collection, Field, Put, Storage, open_storage
from homeport.storage.remote import RemoteStorage

NOTES = Collection("notes", (Field("n", "integer", indexed=True),), tombstones=True)
TEXT = "x" * 250
RECORDS = int(os.environ.get("RECORDS", "1000000"))
FEW = 10_000
SERVED = 100_000
WRITERS = 8
HOMEPORT = (sys.executable, "-m", "homeport")


async def fill(storage: Storage, records: int) -> None:
    for first in range(0, records, 2000):
        last = min(first + 2000, records)
        await storage.commit([Put(NOTES, f"note/{n:08}", {"n": n, "text": TEXT}) for n in range(first, last)])


async def make(url: str, records: int) -> None:
    async with open_storage(url, [NOTES]) as storage:
        await fill(storage, records)


def measured(*arguments: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command."""
    began = time.perf_counter()
    process = subprocess.Popen([*HOMEPORT, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"homeport {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_maxrss << 10


def moves(records: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        uvloop.run(make("sqlite:a.db", records))
        steps = {
            "sqlite -> sqlite": ("copy", "--from", "sqlite:a.db", "--to", "sqlite:b.db"),
            "sqlite -> file": ("copy", "--from", "sqlite:a.db", "--to", "file:c"),
            "file -> sqlite": ("copy", "--from", "file:c", "--to", "sqlite:d.db"),
            "backup of sqlite": ("backup", "e.jsonl", "--storage", "sqlite:a.db"),
            "backup, compressed": ("backup", "e.jsonl.gz", "--storage", "sqlite:a.db"),
            "restore to sqlite": ("restore", "e.jsonl", "--storage", "sqlite:f.db"),
        }
        _, base = measured("--version")
        for label, arguments in steps.items():
            seconds, peak = measured(*arguments)
            held = f", {(peak - base) / records:,.0f} bytes a record" if "file" in label else ""
            print(f"{records:9,} {label:19} {seconds:6.1f} s, {peak >> 20:5} MiB at most{held}", flush=True)
        os.chdir("/")


async def pauses(backend: str) -> None:
    """The longest that a commit takes on a server, at rest and during backups."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"{backend}:{folder / 'store'}"
        await make(url, SERVED)
        server = subprocess.Popen(
            [*HOMEPORT, "serve", "--port", "0", "--storage", url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert server.stdout is not None
        server.stdout.readline()
        try:
            async with RemoteStorage(folder / "store") as storage:
                took: list[float] = []

                async def write(writer: int) -> None:
                    for number in range(1_000_000):
                        began = time.perf_counter()
                        await storage.commit([Put(NOTES, f"{writer}/{number % 1000}", {"n": number, "text": TEXT})])
                        took.append(time.perf_counter() - began)

                writers = [asyncio.create_task(write(writer)) for writer in range(WRITERS)]
                await asyncio.sleep(4)
                rest = sorted(took)
                took.clear()
                began = time.perf_counter()
                backup = await asyncio.create_subprocess_exec(
                    *HOMEPORT, "backup", str(folder / "b.jsonl"), "--storage", url, stdout=subprocess.DEVNULL
                )
                await backup.wait()
                seconds = time.perf_counter() - began
                during = sorted(took)
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()
    for label, times in ("at rest", rest), (f"during a backup of {seconds:.1f} s", during):
        middle, longest = times[len(times) // 2] * 1000, times[-1] * 1000
        print(f"{SERVED:9,} {backend:6} {middle:6.1f} ms a commit, {longest:6.1f} at most, {label}", flush=True)


def main() -> None:
    moves(FEW)
    moves(RECORDS)
    for backend in ("sqlite", "file"):
        uvloop.run(pauses(backend))
