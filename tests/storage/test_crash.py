"""A server is killed at any moment, again and again: what it acknowledged is there, and nothing is half there."""

import asyncio
import json
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from homeport.storage import Filter, Query, Storage, open_storage

from . import crash_child as child
from .conftest import BackEnd


@dataclass
class Acknowledged:
    """What the killed servers had said, in all their lives."""

    id: str = ""
    version: int = 0
    commits: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    """By committer, the newest commit's number and the versions of its writes."""
    unsaid: int = 0
    """Lives since the last check: at the end of each, a committer may have committed once more without a word."""

    def take(self, output: bytes) -> None:
        """The lines of one life, of which the last may have been cut off."""
        self.unsaid += 1
        lines = [json.loads(line) for line in output.split(b"\n")[:-1]]
        if not lines:
            return
        opened, *commits = lines
        assert self.id in ("", opened["id"])
        assert opened["version"] >= self.version
        self.id, self.version = opened["id"], opened["version"]
        met = set()
        for said in commits:
            by, n, versions = said["by"], said["n"], said["versions"]
            former = self.commits[by][0] if by in self.commits else -1
            assert former < n <= former + 1 + (0 if by in met else self.unsaid)
            met.add(by)
            self.commits[by] = n, versions
            self.version = max(self.version, *versions)


async def live_and_die(back_end: BackEnd, path: Path, rng: random.Random) -> bytes:
    """Runs a server on a store and kills it: soon after it has begun to work, or while it starts. What it said."""
    arguments = [child.__file__, back_end.url(path), json.dumps(back_end.often)]
    server = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    said = b""
    if rng.random() < 0.8:
        said = await server.stdout.readline() + await server.stdout.readline()
        moment = rng.uniform(0.02, 0.25)
    else:
        moment = rng.uniform(0.1, 0.3)
    reading = asyncio.create_task(server.stdout.read())
    await asyncio.wait([reading], timeout=moment)
    server.kill()
    said += await reading
    assert await server.wait() == -signal.SIGKILL, "it ended by itself"
    return said


async def check(storage: Storage, said: Acknowledged) -> None:
    version = (await storage.commit([])).version
    assert storage.id == said.id or not said.id
    assert version >= said.version
    said.version = version
    entries: dict[int, list[int]] = {}
    for record in (await storage.find(Query(child.LEDGER))).records:
        by, n = map(int, record.id.split("/"))
        entries.setdefault(by, []).append(n)
        assert record.decode() == child.document(n, record.decode()["size"])
    for by in range(child.COMMITTERS):
        acknowledged, versions = said.commits.get(by, (-1, []))
        pair = await storage.get(child.PAIRS, [f"{by}/left", f"{by}/right"])
        files = await storage.get(child.FILES, [f"{by}"])
        if not pair:
            assert (acknowledged, files, by in entries) == (-1, {}, False)
            continue
        left, right, file = pair[f"{by}/left"], pair[f"{by}/right"], files[f"{by}"]
        n = left.decode()["n"]
        assert acknowledged <= n <= acknowledged + said.unsaid
        assert [r.decode() for r in (left, right, file)] == [child.document(n, size) for size in (100, 10, 50)]
        assert entries[by] == list(range(max(0, n - child.KEPT + 1), n + 1))
        newest = (await storage.get(child.LEDGER, [child.entry(by, n)]))[child.entry(by, n)]
        present = [record.version for record in (left, right, file, newest)]
        assert present == list(range(left.version, left.version + 4))
        assert present == versions[:4] or n > acknowledged
        found = await storage.find(Query(child.PAIRS, (Filter("n", "==", n), Filter("id", "==", left.id))))
        assert found.records == (left,)
        said.commits[by] = n, present
    await check_changes(storage, version, {by: numbers[0] for by, numbers in entries.items()})


async def check_changes(storage: Storage, version: int, first: dict[int, int]) -> None:
    """They are the records that there are, and the tombstones of the entries before each committer's first."""
    for collection in child.COLLECTIONS:
        changes = await storage.changes(collection, 0, 1_000_000)
        assert changes.store_version == version
        assert len({change.id for change in changes.changes}) == len(changes.changes)
        alive = {(change.id, change.version) for change in changes.changes if not change.deleted}
        assert alive == {(record.id, record.version) for record in (await storage.find(Query(collection))).records}
    ledger = await storage.changes(child.LEDGER, 0, 1_000_000)
    deleted = {change.id for change in ledger.changes if change.deleted}
    for by, present in first.items():
        forgotten = [n for n in range(present) if child.entry(by, n) not in deleted]
        assert forgotten == list(range(len(forgotten)))
        assert ledger.floor > 0 or not forgotten


@pytest.mark.parametrize("kills", [8, pytest.param(300, marks=pytest.mark.slow)])
async def test_every_acknowledged_commit_survives_a_kill(durable: BackEnd, tmp_path: Path, kills: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    rng, said, path = random.Random(seed), Acknowledged(), tmp_path / "store"
    for kill in range(kills):
        said.take(await live_and_die(durable, path, rng))
        if kill == kills - 1 or rng.random() < 0.5:  # else the next server finds what this one left
            async with open_storage(durable.url(path), child.COLLECTIONS) as storage:
                await check(storage, said)
            said.unsaid = 0
    assert len(said.commits) == child.COMMITTERS
