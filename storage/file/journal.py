"""The journal of the file back end: what was committed since the data files were last written.

It is a folder of segments, ``1.log``, ``2.log``, …, of sealed lines, one an entry. Only the last segment grows; a
checkpoint begins a new one, folds those before it into the data files and drops them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from .. import disk
from ..commits import Written
from ..disk import translated
from ..documents import embedded, encode, extracted
from ..errors import StorageDamaged, StorageUnavailable
from ..records import Change, Collection
from .sealed import may_be_torn, seal, unseal

_SEGMENT = re.compile(r"([1-9][0-9]*)\.log")


class Entry(msgspec.Struct, omit_defaults=True):
    """What takes the store to a version: writes (collection, id, document or null), which take one version each;
    collections declared; the version up to which collections' tombstones were forgotten."""

    version: int
    writes: list[tuple[str, str, msgspec.Raw]] = []
    declared: list[Collection] = []
    forgotten: dict[str, int] = {}

    @classmethod
    def of(cls, written: Sequence[Written], version: int) -> Entry:
        """The entry of a batch of commits."""
        return cls(version, [(w.collection.name, w.id, embedded(w.put.document if w.put else None)) for w in written])

    def changes(self) -> Iterator[Change]:
        first = self.version - len(self.writes) + 1
        for version, (collection, id, raw) in enumerate(self.writes, first):
            yield Change(collection, id, version, extracted(raw))


_decode = msgspec.json.Decoder(Entry).decode


class Journal:
    """Reads once, with `replay`, unless it is new; then appends. No two calls may overlap.

    ``size``: bytes of all segments. ``failure``: why nothing more can be appended, ever, if so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure: str | None = None
        self._sizes: dict[int, int] = {}
        self._last = 0
        self._descriptor: int | None = None
        self._torn = False
        """Whether what was not acknowledged may follow what was."""

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def create(self) -> None:
        """Begins the first segment."""
        self._begin(1)

    def segments(self) -> list[int]:
        """The numbers of the segments that are there, in order."""
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _SEGMENT.fullmatch(path.name)))

    def replay(self, first: int, version: int) -> Iterator[Entry]:
        """The entries from a segment on, for a store at a version; then the journal is ready to be appended to.

        A last line whose writing was broken off is cut away. Raises `StorageDamaged` for anything else amiss.
        """
        segments = [number for number in self.segments() if number >= first]
        while len(segments) > 1 and not self._path(segments[-1]).stat().st_size:
            # Begun for a checkpoint that did not come about: appending may have gone on in the one before.
            disk.remove(self._path(segments.pop()))
        for number in range(first, max([first, *segments]) + 1):
            if number not in segments:
                raise StorageDamaged(f"{self._path(number)} is missing")
            for entry in self._read(number, number == segments[-1]):
                if entry.version - len(entry.writes) != version:
                    raise StorageDamaged(f"{self._path(number)}: versions after {version} are missing")
                version = entry.version
                yield entry
        self._last = segments[-1]
        self._open()
        self._cut()

    def be_whole(self) -> None:
        """Returns when the journal holds what was acknowledged and nothing else; raises `StorageUnavailable` where that
        cannot be, and so nothing more can follow."""
        if self.failure is not None:
            raise StorageUnavailable(self.failure)
        if self._torn:
            with translated(f"repair {self._path(self._last)}"):
                self._mend()

    def append(self, entry: Entry) -> None:
        """Returns when the entry is durable; where it raises, nothing of it stays."""
        self.be_whole()
        assert self._descriptor is not None
        line = seal(encode(entry))
        with translated(f"write {self._path(self._last)}"):
            try:
                disk.write(self._descriptor, line)
                disk.sync(self._descriptor)
            except OSError:
                self._torn = True
                with suppress(OSError):  # then it is tried again before the next
                    self._mend()
                raise
        self._sizes[self._last] += len(line)

    def rotate(self) -> int:
        """Begins a new segment, and returns its number."""
        self.be_whole()
        with translated(f"write {self._path(self._last + 1)}"):
            self._begin(self._last + 1)
        return self._last

    def drop(self, before: int) -> None:
        """Removes the segments before a number, for good."""
        old = [number for number in self.segments() if number < before]
        for number in old:
            disk.remove(self._path(number))
            self._sizes.pop(number, None)
        if old:
            disk.sync_folder(self.folder)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            disk.close(descriptor)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def _read(self, number: int, last: bool) -> Iterator[Entry]:
        self._sizes[number] = 0
        with self._path(number).open("rb") as file:
            for at, line in enumerate(file, 1):
                try:
                    entry = _decode(unseal(line))
                except ValueError as error:
                    if last and may_be_torn(line) and not file.peek(1):
                        return
                    raise StorageDamaged(f"{self._path(number)}, line {at}: {error}") from error
                self._sizes[number] += len(line)
                yield entry

    def _begin(self, number: int) -> None:
        path = self._path(number)
        descriptor = disk.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            disk.sync_folder(self.folder)
        except OSError:
            disk.close(descriptor)
            disk.remove(path)
            raise
        previous, self._descriptor = self._descriptor, descriptor
        self._last, self._sizes[number] = number, 0
        if previous is not None:
            disk.close(previous)

    def _open(self) -> None:
        self.close()
        self._descriptor = disk.open_file(self._path(self._last), os.O_WRONLY | os.O_APPEND)

    def _cut(self) -> None:
        assert self._descriptor is not None
        disk.truncate(self._descriptor, self._sizes[self._last])
        disk.sync(self._descriptor)

    def _mend(self) -> None:
        """After a failed write or fsync nobody knows what the file holds, nor would the descriptor tell again: what was
        not acknowledged is cut away through a new one."""
        self._open()
        self._cut()
        self._torn = False
