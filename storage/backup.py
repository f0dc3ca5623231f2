"""Backups: a store in one file, which says itself whether it is whole.

JSON Lines, compressed with gzip where the file's name ends in ``.gz``. First what the store is::

    {"homeport_backup":1,"store":"<id>","version":14,"at":"2025-12-30T18:00:00.000Z","collections":[…]}

Then a line a record, with its document as it was sent; tombstones, with null for the document; and, for each
collection, the version up to which its deletions are not remembered::

    {"collection":"notes","id":"a","version":3,"document":{"title":"A note"}}
    {"collection":"notes","id":"b","version":9,"document":null}
    {"floor":2,"collection":"notes"}

Last how many lines there were, and the SHA-256 of all their bytes, uncompressed::

    {"sha256":"<64 hexadecimal digits>","records":1,"tombstones":1,"floors":1}
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import zlib
from collections.abc import AsyncIterator, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from . import disk
from .disk import NewFile, translated
from .documents import embedded, encode, extracted
from .errors import StorageDamaged, StorageUnavailable
from .records import Change, Collection, Floor
from .snapshots import Snapshot
from .times import format_time
from .transfer import Progress, Tallies, counted, unheard

FORMAT = 1
_COMPRESSION = 1
"""Of nine levels: six takes three times as long for a file that is a tenth smaller."""
_GZIP = b"\x1f\x8b"
_BEGINNING = b'{"homeport_backup":'
_FLOOR = b'{"floor":'
_END = b'{"sha256":'
_MAX_LINE_BYTES = 256 << 20


class _Format(msgspec.Struct):
    homeport_backup: int


class _Header(_Format):
    store: str
    version: int
    at: str
    collections: tuple[Collection, ...]


class _Record(msgspec.Struct):
    collection: str
    id: str
    version: int
    document: msgspec.Raw


class _Floor(msgspec.Struct):
    floor: int
    collection: str


class _Trailer(msgspec.Struct):
    sha256: str
    records: int = 0
    tombstones: int = 0
    floors: int = 0

    def count(self, change: Change | Floor) -> None:
        if isinstance(change, Floor):
            self.floors += 1
        elif change.document is None:
            self.tombstones += 1
        else:
            self.records += 1


_decode_format = msgspec.json.Decoder(_Format).decode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_record = msgspec.json.Decoder(_Record).decode
_decode_floor = msgspec.json.Decoder(_Floor).decode


# Writing


async def write_backup(path: Path, store: str, snapshot: Snapshot, progress: Progress = unheard) -> Tallies:
    """Writes a snapshot of the store with this id.

    The file has its name, and replaces an older backup, when it is whole and durable. Raises `StorageFull`, and
    `StorageUnavailable` where the disk fails or another file has the name.
    """
    _must_be_replaceable(path)
    tallies: Tallies = {}
    with translated(f"write {path}"):
        lines = _Lines(path.with_name(f".{path.name}.{os.getpid()}.new"), compressed=path.suffix == ".gz")
        try:
            now = format_time(time.time_ns() // 1_000_000 * 1000)
            lines.write(encode(_Header(FORMAT, store, snapshot.version, now, snapshot.collections)))
            async for change in counted(snapshot, tallies, progress):
                lines.add(change)
            lines.done()
            disk.replace(path, lines.file.path)
            disk.sync_folder(path.parent)
        finally:
            lines.file.close()
            disk.remove(lines.file.path)
    return tallies


def _must_be_replaceable(path: Path) -> None:
    """Whoever names the database itself must not lose it."""
    if not path.exists():
        return
    if path.is_file():
        with translated(f"read {path}"), closing(_opened(path)) as file, suppress(EOFError, zlib.error):
            if file.read(len(_BEGINNING)) == _BEGINNING:
                return
    raise StorageUnavailable(f"{path} is there and is no backup: it is left as it is")


class _Lines:
    """The lines of a backup, on their way to a file."""

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.file = NewFile(path)
        self._sha256 = hashlib.sha256()
        self._trailer = _Trailer("")
        # Window bits of 16 and more are gzip's format.
        self._gzip = zlib.compressobj(_COMPRESSION, wbits=31) if compressed else None

    def add(self, change: Change | Floor) -> None:
        self._trailer.count(change)
        if isinstance(change, Floor):
            self.write(encode(_Floor(change.version, change.collection)))
        else:
            self.write(encode(_Record(change.collection, change.id, change.version, embedded(change.document))))

    def write(self, line: bytes) -> None:
        line += b"\n"
        self._sha256.update(line)
        self.file.write(line if self._gzip is None else self._gzip.compress(line))

    def done(self) -> None:
        self._trailer.sha256 = self._sha256.hexdigest()
        self.write(encode(self._trailer))
        if self._gzip is not None:
            self.file.write(self._gzip.flush())
        self.file.done()


# Reading


@dataclass(frozen=True)
class Backup:
    """A backup that is whole. ``store``, ``version``, ``at``: of what, and when; ``size``: records and tombstones."""

    path: Path
    store: str
    version: int
    at: str
    collections: tuple[Collection, ...]
    size: int

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, self.collections, self._changes())

    async def _changes(self) -> AsyncIterator[Change | Floor]:
        with closing(_read(self.path)) as lines:
            next(lines)
            for line in lines:
                if isinstance(line, Change | Floor):
                    yield line


def read_backup(path: Path) -> Backup:
    """Reads all of a backup, to see whether it is whole. Raises `StorageDamaged` where it is not or is no backup, and
    `StorageUnavailable` where it cannot be read."""
    size = 0
    with closing(_read(path)) as lines:
        header = next(lines)
        assert isinstance(header, _Header)
        for line in lines:
            size += isinstance(line, Change)
    return Backup(path, header.store, header.version, header.at, header.collections, size)


def _read(path: Path) -> Generator[_Header | Change | Floor]:
    """The header, then the changes; raises at the latest at the end where the file is not whole."""
    at = 0
    sha256 = hashlib.sha256()
    counts = _Trailer("")
    header: _Header | None = None
    with translated(f"read {path}"), closing(_opened(path)) as file:
        try:
            while line := file.readline(_MAX_LINE_BYTES):
                at += 1
                if header is None:
                    header = _header(line)
                    yield header
                elif not line.startswith(_END):
                    change = _change(line, header)
                    counts.count(change)
                    yield change
                else:
                    counts.sha256 = sha256.hexdigest()
                    if line != encode(counts) + b"\n" or file.read(1):
                        raise ValueError("the checksum is wrong: the file was damaged or changed")
                    return
                sha256.update(line)
        except ValueError as error:
            raise StorageDamaged(f"{path}, line {at}: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise StorageDamaged(f"{path}: what is compressed is damaged or cut off after line {at}") from error
    raise StorageDamaged(f"{path} is " + (f"cut off after line {at}" if at else "empty"))


def _opened(path: Path) -> BinaryIO:
    """The file, uncompressed."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return cast("BinaryIO", gzip.open(path)) if compressed else path.open("rb")


def _header(line: bytes) -> _Header:
    if not line.startswith(_BEGINNING):
        raise ValueError("this is no backup of Homeport")
    format_ = _decode_format(line).homeport_backup
    if format_ != FORMAT:
        raise ValueError(f"this backup was written by a later Homeport (format {format_}; this one knows {FORMAT})")
    return _decode_header(line)


def _change(line: bytes, header: _Header) -> Change | Floor:
    change: Change | Floor
    if line.startswith(_FLOOR):
        floor = _decode_floor(line)
        change = Floor(floor.collection, floor.floor)
    else:
        record = _decode_record(line)
        change = Change(record.collection, record.id, record.version, extracted(record.document))
    if change.version > header.version or all(change.collection != known.name for known in header.collections):
        raise ValueError("the version or the collection is not the backup's")
    return change
