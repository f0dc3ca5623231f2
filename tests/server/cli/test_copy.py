"""`homeport copy`, done and interrupted."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from homeport.server.cli import cli
from homeport.storage import Collection, Delete, Put, open_storage
from homeport.storage.lockfile import StoreLock
from homeport.storage.transfer import Tallies, Tally, tally

NOTES = Collection("notes", tombstones=True)
PLAIN = Collection("plain", layout="files")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["copy", *arguments], prog_name="homeport")


def copy(source: str, target: str, *arguments: str) -> Any:
    """What the command prints."""
    result = run("--from", source, "--to", target, "--json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(source: str, target: str, *arguments: str, code: int = 1) -> str:
    """The line of a command that fails."""
    result = run("--from", source, "--to", target, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    return line


def fill(url: str, records: int = 5) -> None:
    async def work() -> None:
        async with open_storage(url, [NOTES, PLAIN]) as storage:
            await storage.commit([Put(NOTES, f"{n}", {"n": n, "text": "x" * 100}) for n in range(records)])
            await storage.commit([Put(PLAIN, "a", {}), Delete(NOTES, "1"), Delete(NOTES, "2")])

    asyncio.run(work())


def held(url: str) -> tuple[int, Tallies]:
    """The version of a store, and what it holds."""

    async def work() -> tuple[int, Tallies]:
        async with open_storage(url) as storage, storage.snapshot() as snapshot:
            return snapshot.version, await tally(snapshot)

    return asyncio.run(work())


COLLECTIONS = [
    {"name": "notes", "records": 3, "tombstones": 2, "floor": 0},
    {"name": "plain", "records": 1, "tombstones": 0, "floor": 0},
]


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite:a", "file:b"), ("file:a", "sqlite:b"), ("sqlite:a", "sqlite:b"), ("file:a", "file:b")],
)
def test_a_store_is_copied(source: str, target: str) -> None:
    fill(source)
    assert copy(source, target) == {"dry_run": False, "collections": COLLECTIONS}
    assert held(target) == held(source)
    assert copy(source, target)["collections"] == COLLECTIONS


def test_for_people() -> None:
    fill("sqlite:a")
    what = "4 records and 2 deletions in 2 collections to file:b\n"
    result = run("--from", "sqlite:a", "--to", "file:b", "--dry-run")
    assert (result.stdout, result.stderr) == (f"would copy {what}", "")
    assert run("--from", "sqlite:a", "--to", "file:b").stdout == f"copied {what}"


def test_a_terminal_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    fill("sqlite:a", 3000)
    process_output, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "homeport", "copy", "--from", "sqlite:a", "--to", "file:b"],
        env={**os.environ, "TERM": "xterm"},
        stderr=terminal,
        stdout=subprocess.PIPE,
        check=True,
    )
    os.close(terminal)
    shown = os.read(process_output, 1 << 16).decode()
    os.close(process_output)
    assert "copying" in shown
    assert "100%" in shown
    assert done.stdout.startswith(b"copied 2,999 records")


# A dry run


@pytest.mark.parametrize("target", ["file:b", "sqlite:d/b", "file:d/e/b"])
def test_a_dry_run_changes_nothing(folder: Path, target: str) -> None:
    fill("sqlite:a")
    before = {path.name for path in folder.iterdir()}
    assert copy("sqlite:a", target, "--dry-run") == {"dry_run": True, "collections": COLLECTIONS}
    assert {path.name for path in folder.iterdir()} == before


def test_a_dry_run_says_why_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill("sqlite:a")
    fill("file:b", 7)
    (folder / "taken").write_text("a file")
    line = f"homeport: {folder}/b: the store is not empty: it is at version 10"
    assert refused("sqlite:a", "file:b", "--dry-run") == refused("sqlite:a", "file:b") == line
    line = f"homeport: {folder}/taken/b cannot be made: {folder}/taken is not a folder"
    assert refused("sqlite:a", "file:taken/b", "--dry-run") == line
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = f"homeport: {folder}/d/b cannot be made: {folder} is not writable"
    assert refused("sqlite:a", "file:d/b", "--dry-run") == line


# What is refused


def test_what_makes_no_sense(folder: Path) -> None:
    fill("sqlite:a")
    (folder / "link").symlink_to("a")
    assert refused("memory:", "file:b") == "homeport: --from memory: nothing of it outlives a process"
    assert refused("sqlite:a", "memory:") == "homeport: --to memory: nothing of it outlives a process"
    assert refused("sqlite:nowhere", "file:b") == f"homeport: there is no store at {folder}/nowhere"
    assert refused("sqlite:a", "sqlite:link") == f"homeport: --from and --to are the same store: {folder}/a"
    assert refused("sqlite:a", "what:b", code=2).startswith("--to: 'what:b' is no storage: use ")
    assert refused("file:", "sqlite:b", code=2).startswith("--from: 'file:' is no storage: use ")
    assert {path.name for path in folder.iterdir()} == {"a", "a.lock", "link"}


def test_a_target_in_use(folder: Path) -> None:
    fill("sqlite:a")
    lock = StoreLock(folder / "b")
    lock.acquire()
    try:
        line = refused("sqlite:a", "file:b")
    finally:
        lock.release()
    used = f"{folder}/b is in use by process {os.getpid()}"
    assert line == f"homeport: {used}: stop it first, a store is filled while nobody uses it"


def test_a_source_that_is_damaged(folder: Path) -> None:
    (folder / "a").write_text("no database at all" * 1000)
    assert refused("sqlite:a", "file:b") == f"homeport: {folder}/a: file is not a database"
    assert not (folder / "b").exists()


# A kill in the middle

STALLING = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from dataclasses import replace
from homeport.storage.sqlite import SqliteStorage

class Stalling(SqliteStorage):
    @asynccontextmanager
    async def snapshot(self):
        async def stalled(changes):
            number = 0
            async for change in changes:
                yield change
                if (number := number + 1) == 2000:
                    print("stalled", flush=True)
                    await asyncio.sleep(60)

        async with super().snapshot() as snapshot:
            yield replace(snapshot, changes=stalled(snapshot.changes))

def factory():
    return Stalling(Path("a"))
"""


def started(source: str, target: str, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "homeport", "copy", "--from", source, "--to", target],
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("target", ["file:b", "sqlite:b"])
def test_a_copy_that_is_killed_starts_over(folder: Path, target: str) -> None:
    """What is left of it is a store of nothing, which the next copy fills."""
    fill("sqlite:a", 4000)
    (folder / "stalling.py").write_text(STALLING)
    for number in signal.SIGKILL, signal.SIGINT:
        with started("stalling:factory", target, folder) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"stalled\n"
            process.send_signal(number)
        assert held(target) == (0, {"notes": Tally(), "plain": Tally()})
    copy("sqlite:a", target)
    assert held(target) == held("sqlite:a")


@pytest.mark.parametrize("target", ["file:b", "sqlite:b"])
def test_a_copy_that_is_killed_at_any_moment(folder: Path, target: str) -> None:
    fill("sqlite:a", 10_000)
    expected = held("sqlite:a")
    rng = random.Random(3)
    for _ in range(2):
        with started("sqlite:a", target, folder) as process:
            while not (folder / "b").exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.3)
            process.kill()
        found = held(target)
        assert found[0] == 0 or found == expected
    copy("sqlite:a", target)
    assert held(target) == expected
