"""A server that is killed: many committers, and a line on standard output for each commit that was acknowledged.

    python crash_child.py URL '{"homeport.storage.file.MIN_CHECKPOINT_BYTES": 65536}'

Each commit of a committer writes four records in three collections, which say the same ``n``, and deletes what it wrote
ten commits before; so a commit that is half there shows.
"""

import asyncio
import json
import os
import random
import sys
from importlib import import_module
from itertools import count

import uvloop

from homeport.storage import (
    ABSENT,
    Collection,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Put,
    Query,
    Storage,
    Tombstones,
    Write,
    make_storage,
    starts_with,
)

COMMITTERS = 16
KEPT = 10

PAIRS = Collection("pairs", (Field("n", "integer", indexed=True),))
FILES = Collection("files", layout="files")
LEDGER = Collection("ledger", (Field("n", "integer"),), tombstones=True)
COLLECTIONS = PAIRS, FILES, LEDGER


def entry(committer: int, n: int) -> str:
    return f"{committer}/{n:08}"


def document(n: int, size: int) -> dict[str, object]:
    """``text`` can be told from ``n`` and ``size``."""
    return {"n": n, "size": size, "text": chr(97 + n % 26) * size}


def writes(committer: int, n: int, version: int) -> list[Write]:
    """The commit ``n`` of a committer whose first record is at a version."""
    big = random.random() < 0.05
    old: Write = Delete(LEDGER, entry(committer, n - KEPT))
    if random.random() < 0.2:
        old = DeleteWhere(Query(LEDGER, (*starts_with(f"{committer}/"), Filter("n", "<=", n - KEPT))))
    return [
        Put(PAIRS, f"{committer}/left", document(n, 100), if_version=version),
        Put(PAIRS, f"{committer}/right", document(n, 10)),
        Put(FILES, f"{committer}", document(n, 50)),
        Put(LEDGER, entry(committer, n), document(n, random.randint(50_000, 300_000) if big else 200)),
        old,
    ]


async def commit(storage: Storage, committer: int) -> None:
    left = f"{committer}/left"
    record = (await storage.get(PAIRS, [left])).get(left)
    version = record.version if record else ABSENT
    for n in count(record.decode()["n"] + 1 if record else 0):
        done = await storage.commit(writes(committer, n, version))
        version = done.versions[0]
        say({"by": committer, "n": n, "versions": done.versions})


async def forget(storage: Storage) -> None:
    while True:
        await storage.purge(Tombstones(LEDGER, (await storage.changes(LEDGER, 0, 1)).store_version - 500))
        await asyncio.sleep(0.02)


def say(what: dict[str, object]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


async def main(url: str) -> None:
    async with make_storage(url) as storage:
        await storage.declare(*COLLECTIONS)
        say({"id": storage.id, "version": (await storage.commit([])).version})
        await asyncio.gather(forget(storage), *[commit(storage, committer) for committer in range(COMMITTERS)])


if __name__ == "__main__":
    for name, value in json.loads(sys.argv[2]).items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)
    uvloop.run(main(sys.argv[1]))
