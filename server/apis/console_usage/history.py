"""Console usage as it is kept: the newest snapshots, each a version.

A version's id is its number among all that were ever accepted. The newest one is never removed, so that the next number
is one more than its. A stored document is the posted one with two members more (`_ACCEPTED`, `_FILLED_FROM`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ....storage import (
    ABSENT,
    Collection,
    DeleteWhere,
    Field,
    Filter,
    Put,
    Query,
    Record,
    Storage,
    StorageUnavailable,
    retry,
)
from ....storage.disk import NewFile, replace, translated
from ....storage.documents import decode, encode
from ....storage.times import DAY, format_instant, parse_time

if TYPE_CHECKING:
    from ...clock import Clock
    from ...config import ConsoleUsageConfig

log = logging.getLogger(__name__)

FILE = "console-usage-synced.json"
"""The newest snapshot as posted, in the folder of a store that is one."""

_ACCEPTED = "homeport:accepted"
"""When the snapshot was accepted."""
_FILLED_FROM = "homeport:filledFrom"
"""For each of `_PARTS` that the snapshot lacks, the number of the newest one before it that has it, or null."""

SNAPSHOTS = Collection("console_usage", (Field(_ACCEPTED, "time", indexed=True),))

_PARTS = (
    "currentSession",
    "weeklyLimits",
    "currentSession.resetsIn",
    "weeklyLimits.allModels.resetsIn",
    "weeklyLimits.sonnetOnly.resetsIn",
)
"""What a partial snapshot may lack: a section before what is in it."""
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Snapshot(NamedTuple):
    """``accepted``: microseconds since the epoch. ``members``: as posted, byte by byte."""

    number: int
    accepted: int
    filled_from: Mapping[str, int | None]
    members: dict[str, msgspec.Raw]

    @classmethod
    def of(cls, record: Record) -> Snapshot:
        members = _decode_members(record.document)
        accepted, filled_from = decode(bytes(members.pop(_ACCEPTED))), decode(bytes(members.pop(_FILLED_FROM)))
        return cls(int(record.id), parse_time(accepted), filled_from, members)

    def sections(self) -> dict[str, Any]:
        """The sections that it has."""
        return _sections(self.members)

    def newest_with(self, part: str) -> int | None:
        """The number of the newest snapshot up to this one that has a part."""
        return self.filled_from.get(part, self.number)


class Place(NamedTuple):
    """A snapshot and where it is among those that are kept, from the oldest, 1."""

    snapshot: Snapshot
    current: int


@dataclass(frozen=True)
class Kept:
    """What is kept at one moment: the ``newest`` snapshot, and how many in all.

    ``since``: how far back, in microseconds since the epoch. Methods may find nothing that is removed in the meantime.
    """

    newest: Snapshot
    total: int
    since: int
    _storage: Storage

    async def at(self, place: int) -> Place | None:
        """The snapshot at a place from 1 to ``total``."""
        if place == self.total:
            return Place(self.newest, place)
        # Counted from the newest, since the oldest may go.
        query = Query(SNAPSHOTS, _before(self.newest, self.since), ("-id",), limit=1, offset=self.total - place - 1)
        found = (await self._storage.find(query)).records
        return Place(Snapshot.of(found[0]), place) if found else None

    async def accepted_by(self, instant: int) -> Place | None:
        """The newest snapshot that was accepted by then."""
        if self.newest.accepted <= instant:
            return Place(self.newest, self.total)
        older = _before(self.newest, self.since)
        query = Query(SNAPSHOTS, (*older, Filter(_ACCEPTED, "<=", instant)), ("-id",), limit=1)
        found = (await self._storage.find(query)).records
        if not found:
            return None
        between = await self._storage.count(Query(SNAPSHOTS, (*older, Filter("id", ">", found[0].id))))
        return Place(Snapshot.of(found[0]), self.total - 1 - between)

    async def filled(self, snapshot: Snapshot) -> dict[str, Any]:
        """The members of a snapshot, with what it lacks from the newest one before it that has it; where none is kept,
        from the newest of all that has it."""
        wanted = {part: (snapshot.filled_from[part], self.newest.newest_with(part)) for part in snapshot.filled_from}
        ids = {_id(number) for numbers in wanted.values() for number in numbers if number}
        if not ids:
            return dict(snapshot.members)
        records = await self._storage.get(SNAPSHOTS, list(ids))
        sources = {
            source.number: source.sections()
            for source in map(Snapshot.of, records.values())
            if source.accepted >= self.since or source.number == self.newest.number
        }
        sections = snapshot.sections()
        for part, numbers in wanted.items():
            source = next((sources[number] for number in numbers if number in sources), None)
            if source is not None:
                _set(sections, part, _get(source, part))
        return {**snapshot.members, **sections}


class History:
    """The snapshots in a store. ``folder``: where the newest one is put as a file, if anywhere."""

    def __init__(self, storage: Storage, clock: Clock, settings: ConsoleUsageConfig, folder: Path | None) -> None:
        self._storage = storage
        self._clock = clock
        self._settings = settings
        self._folder = folder

    async def add(self, body: bytes) -> Snapshot:
        """Keeps a snapshot, and removes what is no longer to be kept with it."""
        members = _decode_members(body)
        sections = _sections(members)

        async def attempt() -> Snapshot:
            newest = await self._newest()
            number = newest.number + 1 if newest else 1
            lacking = [part for part in _PARTS if not _get(sections, part)]
            filled_from = {part: newest.newest_with(part) if newest else None for part in lacking}
            accepted = self._clock.now()
            added = {_ACCEPTED: format_instant(accepted), _FILLED_FROM: filled_from}
            await self._storage.commit(
                [
                    Put(SNAPSHOTS, _id(number), encode({**members, **added}), ABSENT),
                    DeleteWhere(self._superfluous(number)),
                    DeleteWhere(Query(SNAPSHOTS, (Filter(_ACCEPTED, "<", self._since(accepted)),))),
                ]
            )
            snapshot = Snapshot(number, accepted, filled_from, members)
            await self._publish(snapshot)  # the lock is held: no older one comes later
            return snapshot

        return await retry(self._storage, [SNAPSHOTS.name], attempt)

    async def kept(self) -> Kept | None:
        """What is kept now; None where there is nothing."""
        newest = await self._newest()
        if newest is None:
            return None
        since = self._since(self._clock.now())
        return Kept(
            newest, await self._storage.count(Query(SNAPSHOTS, _before(newest, since))) + 1, since, self._storage
        )

    async def forget_old(self) -> int:
        """Removes what is no longer to be kept; returns how many."""
        newest = await self._newest()
        if newest is None:
            return 0
        since = self._since(self._clock.now())
        old = Query(SNAPSHOTS, (Filter("id", "<", _id(newest.number)), Filter(_ACCEPTED, "<", since)))
        return await self._storage.purge(old) + await self._storage.purge(self._superfluous(newest.number))

    async def publish(self) -> None:
        """Puts the newest snapshot in its file."""
        async with self._storage.locks.hold([SNAPSHOTS.name]):
            if newest := await self._newest():
                await self._publish(newest)

    async def unpublish(self) -> None:
        """Removes the file."""
        if self._folder is not None:
            await asyncio.to_thread((self._folder / FILE).unlink, missing_ok=True)

    async def _publish(self, snapshot: Snapshot) -> None:
        if self._folder is None:
            return
        try:
            await asyncio.to_thread(_write, self._folder / FILE, encode(snapshot.members) + b"\n")
        except StorageUnavailable as error:  # the snapshot is kept; the next one, or the next start, writes the file
            log.error("%s is out of date: %s", FILE, error)

    async def _newest(self) -> Snapshot | None:
        found = (await self._storage.find(Query(SNAPSHOTS, sort=("-id",), limit=1))).records
        return Snapshot.of(found[0]) if found else None

    def _since(self, now: int) -> int:
        return now - self._settings.keep_days * DAY

    def _superfluous(self, newest: int) -> Query:
        """What is beyond the number of snapshots to be kept."""
        return Query(SNAPSHOTS, (Filter("id", "<=", _id(max(0, newest - self._settings.keep_versions))),))


def _id(number: int) -> str:
    return f"{number:016}"


def _before(newest: Snapshot, since: int) -> tuple[Filter, ...]:
    """What is kept besides the newest."""
    return Filter("id", "<", _id(newest.number)), Filter(_ACCEPTED, ">=", since)


def _sections(members: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    return {name: decode(bytes(value)) for name, value in members.items() if name in _PARTS}


def _get(sections: Mapping[str, Any], part: str) -> Any:
    """A part of a snapshot; nothing that is true where it is absent, null or empty."""
    value: Any = sections
    for step in part.split("."):
        value = value and value.get(step)
    return value


def _set(sections: dict[str, Any], part: str, value: Any) -> None:
    *outer, last = part.split(".")
    for step in outer:
        sections = sections.get(step) or {}  # a section that nobody has needs no parts
    sections[last] = value


def _write(path: Path, content: bytes) -> None:
    with translated(f"write {path}"):
        file = NewFile(path.with_name(f"{path.name}.new"))
        try:
            file.write(content)
            file.done()
        finally:
            file.close()
        replace(path, file.path)
