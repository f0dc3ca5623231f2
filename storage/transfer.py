"""A store's whole content into another store: what `homeport copy` and `homeport restore` do.

A snapshot goes into `Storage.load`, which does all of it or nothing: a copy that is killed leaves an empty store, and
done again it starts over. It does not go on from where it was, because a source that a server writes to has moved on
since. Afterwards both sides are compared, by count and by digest; a copy that was killed in between is compared when it
is done again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from hashlib import blake2b

from .base import Storage
from .errors import NotEmpty, StorageDamaged
from .records import Change, Floor
from .snapshots import Snapshot

Progress = Callable[[int], object]
"""Told, now and then, how many more records and tombstones have been dealt with."""

_TOLD_EVERY = 1000
_DIGEST_BYTES = 16


def unheard(_: int) -> None:
    """For who wants to see no progress."""


@dataclass(slots=True)
class Tally:
    """What a collection holds: counts, and a digest of all ids, versions and documents, whatever their order.

    The digest shows failing disks and programs, and need not withstand anybody.
    """

    records: int = 0
    tombstones: int = 0
    floor: int = 0
    digest: int = 0

    def add(self, change: Change | Floor) -> None:
        if isinstance(change, Floor):
            self.floor = max(self.floor, change.version)
            return
        item = blake2b(f"{change.version} {change.id}\0".encode(), digest_size=_DIGEST_BYTES)
        if change.document is None:
            self.tombstones += 1
        else:
            self.records += 1
            item.update(change.document)
        self.digest = (self.digest + int.from_bytes(item.digest())) % (1 << 8 * _DIGEST_BYTES)

    def __str__(self) -> str:
        return f"{self.records} records, {self.tombstones} tombstones, floor {self.floor}, digest {self.digest:x}"


Tallies = dict[str, Tally]
"""By collection."""


async def counted(snapshot: Snapshot, tallies: Tallies, progress: Progress = unheard) -> AsyncIterator[Change | Floor]:
    """The changes of a snapshot, each added to its collection's tally when it has been taken."""
    tallies.update({collection.name: Tally() for collection in snapshot.collections})
    done = 0
    async for change in snapshot.changes:
        yield change
        tallies[change.collection].add(change)
        done += 1
        if done % _TOLD_EVERY == 0:
            progress(_TOLD_EVERY)
    progress(done % _TOLD_EVERY)


async def tally(snapshot: Snapshot, progress: Progress = unheard) -> Tallies:
    """What a snapshot holds."""
    tallies: Tallies = {}
    async for _ in counted(snapshot, tallies, progress):
        pass
    return tallies


async def transfer(source: Snapshot, target: Storage, progress: Progress = unheard) -> Tallies:
    """Loads a snapshot into an empty store, reads the store and compares; returns what both hold.

    A store that holds just that already is only compared. Raises `NotEmpty` where it holds something else, and
    `StorageDamaged` where it does not give back what was loaded; and whatever `Storage.load` does.
    """
    version = await check_fillable(source, target)
    expected: Tallies = {}
    if version:
        expected = await tally(source, progress)
    else:
        await target.declare(*source.collections)
        await target.load(counted(source, expected, progress))
    problem = await _difference(source, expected, target, progress)
    if problem and version:
        raise _not_empty(version)
    if problem:
        raise StorageDamaged(f"what was written is not what can be read: {problem}")
    return expected


async def check_fillable(source: Snapshot, target: Storage) -> int:
    """The version of a store that can be the target of a transfer: it is empty, or may be the result of one.

    Raises `NotEmpty`."""
    async with target.snapshot() as present:
        version = present.version
    if version not in (0, source.version):
        raise _not_empty(version)
    return version


def _not_empty(version: int) -> NotEmpty:
    return NotEmpty(f"the store is not empty: it is at version {version}")


async def _difference(source: Snapshot, expected: Tallies, target: Storage, progress: Progress) -> str | None:
    async with target.snapshot() as copy:
        found = await tally(copy, progress)
    if copy.version != source.version:
        return f"it is at version {copy.version} and should be at {source.version}"
    declared = {collection.name: collection for collection in copy.collections}
    for collection in source.collections:
        if declared.get(collection.name) != collection:
            return f"collection {collection.name} is declared differently"
    for name, its in found.items():
        if its != expected.get(name, Tally()):
            return f"collection {name} has {its}, and should have {expected.get(name, Tally())}"
    return None
