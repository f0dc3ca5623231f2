"""`homeport backup` and `homeport restore`: of a store at rest, and of one that a server writes to."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from homeport.server.cli import cli
from homeport.storage import Change, Collection, Delete, Floor, Put, Storage, open_storage
from homeport.storage.backup import read_backup
from homeport.storage.lockfile import StoreLock
from homeport.storage.remote import RemoteStorage
from homeport.storage.transfer import Tallies, tally

from ..test_serve import Server

LEFT = Collection("left", tombstones=True)
RIGHT = Collection("right")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="homeport")


def done(*arguments: str) -> Any:
    """What a command prints."""
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    """The line of a command that fails."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line


def fill(url: str) -> None:
    async def work() -> None:
        async with open_storage(url, [LEFT, RIGHT]) as storage:
            await storage.commit([Put(LEFT, f"{n}", {"n": n}) for n in range(5)])
            await storage.commit([Put(RIGHT, "a", {}), Delete(LEFT, "1"), Delete(LEFT, "2")])

    asyncio.run(work())


def held(url: str) -> tuple[str, int, Tallies]:
    """A store's id and version, and what it holds."""

    async def work() -> tuple[str, int, Tallies]:
        async with open_storage(url) as storage, storage.snapshot() as snapshot:
            return storage.id, snapshot.version, await tally(snapshot)

    return asyncio.run(work())


COLLECTIONS = [
    {"name": "left", "records": 3, "tombstones": 2, "floor": 0},
    {"name": "right", "records": 1, "tombstones": 0, "floor": 0},
]


@pytest.mark.parametrize("target", ["sqlite:new/y", "file:new/y"])
@pytest.mark.parametrize("file", ["b.jsonl", "b.jsonl.gz"])
def test_a_store_is_backed_up_and_restored(url: str, file: str, target: str) -> None:
    fill(url)
    assert done("backup", file) == {"version": 8, "collections": COLLECTIONS}
    assert done("restore", file, "--storage", target) == {"version": 8, "collections": COLLECTIONS}
    assert held(target)[1:] == held(url)[1:]
    assert held(target)[0] != held(url)[0]
    assert done("restore", file, "--storage", target)["version"] == 8


def test_for_people(folder: Path, url: str) -> None:
    fill(url)
    assert run("backup", "b.jsonl").stdout == "wrote 4 records and 2 deletions in 2 collections to b.jsonl\n"
    at = json.loads((folder / "b.jsonl").read_text().partition("\n")[0])["at"]
    restored = run("restore", "b.jsonl", "--storage", "sqlite:y").stdout
    assert restored == (
        f"restored 4 records and 2 deletions in 2 collections, of {at[:10]} {at[11:16]} UTC, to sqlite:{folder}/y\n"
    )


# What is refused


def test_a_store_that_is_not_empty(folder: Path, url: str) -> None:
    fill(url)
    done("backup", "b.jsonl")

    async def work() -> None:
        async with open_storage(url, [LEFT]) as storage:
            await storage.commit([Put(LEFT, "more", {})])

    asyncio.run(work())
    before = held(url)
    line = refused("restore", "b.jsonl")
    assert line == f"homeport: {folder}/x.db: the store is not empty: it is at version 9"
    assert held(url) == before


def test_a_file_that_is_no_backup(folder: Path, url: str) -> None:
    fill(url)
    done("backup", "b.jsonl")
    whole = (folder / "b.jsonl").read_bytes()
    for damaged, why in {
        whole[:-1]: "line 10: the checksum is wrong: the file was damaged or changed",
        whole.replace(b'{"n":3}', b'{"n":4}'): "line 10: the checksum is wrong: the file was damaged or changed",
        b"{}": "line 1: this is no backup of Homeport",
    }.items():
        (folder / "b.jsonl").write_bytes(damaged)
        assert refused("restore", "b.jsonl", "--storage", "sqlite:y") == f"homeport: b.jsonl, {why}"
    (folder / "b.jsonl").write_bytes(whole[:200])
    assert "b.jsonl" in refused("restore", "b.jsonl", "--storage", "sqlite:y")
    assert refused("restore", "nowhere") == "homeport: cannot read nowhere: No such file or directory"
    assert not (folder / "y").exists()


def test_no_other_file_is_replaced(folder: Path) -> None:
    fill("sqlite:x.db")
    before = held("sqlite:x.db")
    line = refused("backup", "x.db", "--storage", "sqlite:x.db")
    assert line == "homeport: x.db is there and is no backup: it is left as it is"
    assert held("sqlite:x.db") == before
    assert refused("backup", "d/b.jsonl", "--storage", "sqlite:x.db").endswith("No such file or directory")


def test_what_makes_no_sense(folder: Path) -> None:
    line = "homeport: storage is memory: nothing of it outlives a process"
    assert refused("backup", "b.jsonl", "--storage", "memory:") == line
    assert refused("restore", "b.jsonl", "--storage", "memory:") == line
    assert refused("backup", "b.jsonl", "--storage", "sqlite:y") == f"homeport: there is no store at {folder}/y"
    assert [*folder.iterdir()] == []


# A server that goes on


class History:
    """What writers had acknowledged, by version."""

    def __init__(self) -> None:
        self.changes: dict[int, Change] = {}

    async def write(self, storage: Storage, writer: int) -> None:
        """Writes and deletes pairs of records, each in one commit."""
        rng = random.Random(writer)
        while True:
            id = f"{writer}/{rng.randrange(300)}"
            document = b'{"n":%d,"text":"%s"}' % (rng.randrange(1 << 30), b"x" * 400)
            delete = rng.random() < 0.2
            commit = await storage.commit(
                [Delete(kind, id) if delete else Put(kind, id, document) for kind in (LEFT, RIGHT)]
            )
            for kind, version in zip((LEFT, RIGHT), commit.versions, strict=True):
                if version:
                    self.changes[version] = Change(kind.name, id, version, None if delete else document)

    def at(self, version: int) -> set[Change | Floor]:
        """What a store holds that has done all of it up to a version."""
        latest = {(c.collection, c.id): c for v, c in sorted(self.changes.items()) if v <= version}
        kept = {c for c in latest.values() if not (c.deleted and c.collection == "right")}
        floor = max([v for v, c in self.changes.items() if c.deleted and c.collection == "right" and v <= version])
        return kept | {Floor("left", 0), Floor("right", floor)}


@pytest.fixture
def server(folder: Path, url: str) -> Iterator[Server]:
    server = Server(folder, "--port", "0", environ=dict(os.environ))
    assert server.ready
    yield server
    server.kill()


async def under_load(place: Path, work: Callable[[], None]) -> History:
    """Does some work in a thread while eight writers go on."""
    history = History()
    async with RemoteStorage(place) as storage:
        await storage.declare(LEFT, RIGHT)
        writers = [asyncio.create_task(history.write(storage, writer)) for writer in range(8)]
        try:
            while len(history.changes) < 800:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(work)
            size = len(history.changes)
            while len(history.changes) < size + 100:  # what it may have seen is acknowledged
                await asyncio.sleep(0.01)
        finally:
            for writer in writers:
                writer.cancel()
            ended = await asyncio.gather(*writers, return_exceptions=True)
        assert {type(end) for end in ended} == {asyncio.CancelledError}
    return history


def test_a_backup_of_a_busy_server_is_one_version(server: Server, folder: Path) -> None:
    def work() -> None:
        for number in range(2):
            done("backup", f"{number}.jsonl")

    history = asyncio.run(under_load(folder / "x.db", work))
    versions = []
    for number in range(2):
        backup = read_backup(folder / f"{number}.jsonl")
        versions.append(backup.version)

        async def found(backup: Any = backup) -> set[Change | Floor]:
            return {change async for change in backup.snapshot().changes if change.collection in ("left", "right")}

        assert asyncio.run(found()) == history.at(backup.version)
    assert versions == sorted(set(versions))
    assert server.stop() == 0
    done("restore", "1.jsonl", "--storage", "sqlite:y")
    assert held("sqlite:y")[1] == versions[-1]


def test_a_copy_of_a_busy_server_is_one_version(server: Server, folder: Path, url: str) -> None:
    history = asyncio.run(under_load(folder / "x.db", lambda: copy(url)))

    async def found() -> tuple[int, set[Change | Floor]]:
        async with open_storage("file:y") as storage, storage.snapshot() as snapshot:
            return snapshot.version, {c async for c in snapshot.changes if c.collection in ("left", "right")}

    version, changes = asyncio.run(found())
    assert changes == history.at(version)


def copy(url: str) -> None:
    done("copy", "--from", url, "--to", "file:y")


def test_a_store_in_use_is_not_filled(server: Server, folder: Path, url: str) -> None:
    fill("sqlite:y")
    done("backup", "b.jsonl", "--storage", "sqlite:y")
    line = f"homeport: {folder}/x.db is in use by process {server.process.pid}: stop it first, "
    line += "a store is filled while nobody uses it"
    assert refused("restore", "b.jsonl") == line
    assert refused("copy", "--from", "sqlite:y", "--to", url) == line


def test_a_server_that_ends_meanwhile(server: Server, folder: Path, url: str) -> None:
    """There is no backup then, and nothing is left of it."""

    async def work() -> None:
        async with RemoteStorage(folder / "x.db") as storage:
            await storage.declare(LEFT)
            for part in range(20):
                await storage.commit([Put(LEFT, f"{part}/{n}", {"text": "x" * 2000}) for n in range(1000)])

    asyncio.run(work())
    before = {path.name for path in folder.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-m", "homeport", "backup", "b.jsonl"], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        while not [*folder.glob(".b.jsonl.*")] and process.poll() is None:
            time.sleep(0.001)
        server.process.send_signal(signal.SIGKILL)
        out, error = process.communicate()
    if process.returncode:  # it may have been as fast
        assert error.decode().startswith("homeport: the server ended before it had answered")
        assert {path.name for path in folder.iterdir()} == before
    else:
        assert out.startswith(b"wrote 20,000 records")
        assert read_backup(folder / "b.jsonl").size == 20_000


def test_a_store_whose_owner_does_not_answer(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.storage.remote.reach.PATIENCE", 0.1)
    fill(url)
    lock = StoreLock(folder / "x.db")
    lock.acquire()
    try:
        line = refused("backup", "b.jsonl")
    finally:
        lock.release()
    assert line.startswith(f"homeport: {folder}/x.db is in use by process {os.getpid()}; no server answers at")
