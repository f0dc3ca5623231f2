"""How the file back end keeps a collection, and what people may do to that.

``data/<collection>.jsonl`` has a line ``{"id", "version", "checksum", "record"}`` a record, in order of id. A
collection of layout ``files`` has a document a file, ``data/<collection>/<id>.json``, and its versions and checksums in
``index/<collection>.idx``, where the tombstones of both layouts are: sealed lines ``[id, version, checksum]``, with
null for the checksum of a tombstone. A checksum is the CRC-32 of id, version and document: it tells an edited record
from one that is as it was written, and need not withstand anybody.

While no server runs, people may

- edit a record, in place;
- add one: a line ``{"id": "…", "record": {…}}``, or a file whose name is its id's (`names.file_name`);
- remove one. Of a line nobody knows afterwards which it was, so that the collection's floor rises, and clients that
  follow its changes are told to start over; so they are after changing a line's id, copying a line with its checksum,
  or putting back an older one. A removed file is a deletion like any other.

Lines may stand in any order and end as in DOS; blank ones do not count. Anything else is damage: what is no JSON object
or cannot be indexed, an id that stands twice, a missing file or folder. If the last server did not stop cleanly, the
journal holds later writes than the data files; an edit comes after them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from ..disk import NewFile, make_folder
from ..documents import encode
from ..errors import StorageDamaged
from ..records import Change, Collection, Record
from ..table import Row
from ..tables import Tables
from .checkpoint import Checkpoint, Folder, Kept
from .names import SUFFIX, document_id, file_name, folder_name
from .sealed import seal, unseal

_LINES = ".jsonl"
_INDEX = ".idx"
_MAX_SUM = 2**53

Documents = dict[str, tuple[int, str]]
"""Of the files of a collection: id -> version and checksum."""


def checksum(id: str, version: int, document: bytes) -> str:
    return f"{crc32(document, crc32(f'{id} {version} '.encode())):08x}"


def _head(id: str, version: int, checksum: str) -> bytes:
    """What stands before the document in a line; after it, ``}`` and a line break."""
    return b'{"id":%b,"version":%d,"checksum":"%b","record":' % (encode(id), version, checksum.encode())


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    record: msgspec.Raw
    version: int | None = None
    checksum: str | None = None


class _Sum:
    """Shows whether two sets of records have the same ids and versions."""

    def __init__(self) -> None:
        self.records = 0
        self.sum = 0

    def add(self, id: str, version: int) -> None:
        self.records += 1
        self.sum = (self.sum + crc32(f"{id} {version}".encode())) % _MAX_SUM


# Reading

_decode_line = msgspec.json.Decoder(_Line).decode
_decode_index = msgspec.json.Decoder(tuple[str, int, str | None]).decode


class Edit(NamedTuple):
    """A record that a person wrote, and where."""

    place: str
    id: str
    document: bytes


class Contents(NamedTuple):
    """What was found besides records that are as they were written, which are in the tables already: edits, the ids of
    records whose files are gone, and whether some record is gone of which nobody knows the id."""

    edits: list[Edit]
    missing: list[str]
    lost: bool
    documents: Documents


def read(folder: Folder, kept: Kept, tables: Tables) -> Contents:
    """Reads a collection into the tables, to which it is declared. Raises `StorageDamaged`."""
    name = kept.collection.name
    documents: Documents = {}
    try:
        for id, version, stated in _read_index(folder.index / file_name(name, _INDEX), kept.indexed):
            if stated is None:
                tables.restore(Change(name, id, version, None))
            else:
                documents[id] = version, stated
        if kept.collection.layout == "files":
            return _read_files(folder.data / folder_name(name), name, documents, tables)
        return _read_lines(folder.data / file_name(name, _LINES), kept, tables)
    except FileNotFoundError as error:
        raise StorageDamaged(f"{error.filename} is missing") from error


def _read_index(path: Path, lines: int) -> Iterator[tuple[str, int, str | None]]:
    if not lines:
        return
    found = 0
    with path.open("rb") as file:
        for found, line in enumerate(file, 1):
            try:
                yield _decode_index(unseal(line))
            except ValueError as error:
                raise StorageDamaged(f"{path}, line {found}: {error}") from error
    if found != lines:
        raise StorageDamaged(f"{path}: there are {found} lines and should be {lines}")


def _read_lines(path: Path, kept: Kept, tables: Tables) -> Contents:
    records: dict[str, Record] = {}
    edits: dict[str, Edit] = {}
    written = _Sum()
    if kept.records or path.exists():
        with path.open("rb") as file:
            for at, text in enumerate(file, 1):
                if text.isspace():
                    continue
                place = f"{path}, line {at}"
                try:
                    line = _decode_line(text)
                except (ValueError, RecursionError) as error:
                    raise StorageDamaged(f"{place}: {error}") from error
                if line.id in records or line.id in edits:
                    raise StorageDamaged(f"{place}: the id {line.id!r} stands twice")
                if line.version is not None and line.checksum is not None:
                    written.add(line.id, line.version)
                    # Not `line.record`, which lacks the white space around the document.
                    document = text.rstrip()[len(_head(line.id, line.version, line.checksum)) : -1]
                    if line.checksum == checksum(line.id, line.version, document):
                        records[line.id] = Record(line.id, line.version, document)
                        continue
                edits[line.id] = Edit(place, line.id, bytes(line.record))
    tables.fill(kept.collection.name, list(records.values()))
    lost = (written.records, written.sum) != (kept.records, kept.sum)
    return Contents(list(edits.values()), [], lost, {})


def _read_files(folder: Path, name: str, documents: Documents, tables: Tables) -> Contents:
    present = {path.name for path in folder.iterdir()} if documents or folder.exists() else set()
    records: list[Record] = []
    edits: list[Edit] = []
    missing: list[str] = []
    for id, (version, stated) in documents.items():
        path = folder / file_name(id)
        if path.name not in present:
            missing.append(id)
            continue
        present.remove(path.name)
        document = _content(path)
        if stated == checksum(id, version, document):
            records.append(Record(id, version, document))
        else:
            edits.append(Edit(str(path), id, document))
    tables.fill(name, records)
    for added in sorted(present):
        if added.endswith(SUFFIX) and not added.startswith("."):
            path = folder / added
            known = document_id(added)
            if known is None:
                raise StorageDamaged(f"{path}: no id has this file name; capitals, blanks and the like stand as %41")
            edits.append(Edit(str(path), known, _content(path)))
    return Contents(edits, missing, False, documents)


def _content(path: Path) -> bytes:
    return path.read_bytes().removesuffix(b"\n")


# Writing


class Writer(ABC):
    """Writes a collection for a checkpoint: all of its rows, in order of id, then its tombstones.

    ``before``: how the last checkpoint left it, and its files, if it had any.
    """

    def __init__(self, checkpoint: Checkpoint, collection: Collection, before: Kept | None, files: Documents) -> None:
        self.documents: Documents = {}
        self._checkpoint = checkpoint
        self._collection = collection
        self._files = files
        self._written = _Sum()
        self._indexed = 0
        self._size = 0
        self._lines_path = checkpoint.folder.data / file_name(collection.name, _LINES)
        self._files_path = checkpoint.folder.data / folder_name(collection.name)
        self._index_path = checkpoint.folder.index / file_name(collection.name, _INDEX)
        self._index: NewFile | None = None
        if before is not None and before.collection.layout == "lines" != collection.layout:
            checkpoint.remove(self._lines_path)

    @abstractmethod
    def add(self, rows: Iterable[Row]) -> None: ...

    def bury(self, tombstones: Iterable[tuple[int, str]]) -> None:
        """Tombstones, as version and id."""
        for version, id in tombstones:
            self._note(id, version, None)

    def done(self, floor: int) -> Kept:
        """Makes all of it durable."""
        for id in self._files.keys() - self.documents.keys():
            self._checkpoint.remove(self._files_path / file_name(id))
        if self._index is not None:
            self._index.done()
        else:
            self._checkpoint.remove(self._index_path)
        return Kept(self._collection, floor, self._size, self._written.records, self._written.sum, self._indexed)

    def _note(self, id: str, version: int, checksum: str | None) -> None:
        if self._index is None:
            self._index = self._checkpoint.create(self._index_path)
        line = seal(encode([id, version, checksum]))
        self._index.write(line)
        self._indexed += 1
        self._size += len(line)


class LinesWriter(Writer):
    def __init__(self, checkpoint: Checkpoint, collection: Collection, before: Kept | None, files: Documents) -> None:
        super().__init__(checkpoint, collection, before, files)
        self._file = checkpoint.create(self._lines_path)

    def add(self, rows: Iterable[Row]) -> None:
        for id, version, document, _ in rows:
            if b"\n" in document:
                raise ValueError(f"{self._collection.name}/{id}: a document that is loaded must be one line")
            line = b"%b%b}\n" % (_head(id, version, checksum(id, version, document)), document)
            self._file.write(line)
            self._written.add(id, version)
            self._size += len(line)

    def done(self, floor: int) -> Kept:
        self._file.done()
        return super().done(floor)


class FilesWriter(Writer):
    """Writes only the files of records that have changed."""

    def __init__(self, checkpoint: Checkpoint, collection: Collection, before: Kept | None, files: Documents) -> None:
        super().__init__(checkpoint, collection, before, files)
        make_folder(self._files_path)

    def add(self, rows: Iterable[Row]) -> None:
        for id, version, document, _ in rows:
            known = self._files.get(id)
            if known is not None and known[0] == version:
                stated = known[1]
            else:
                stated = checksum(id, version, document)
                file = self._checkpoint.create(self._files_path / file_name(id))
                file.write(document + b"\n")
                file.done()
            self._note(id, version, stated)
            self.documents[id] = version, stated
            self._written.add(id, version)
            self._size += len(document)
