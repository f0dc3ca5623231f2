"""What the file back end does when it starts: read the data files, do again what the journal says, take in what people
have edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..commits import Written
from ..documents import InvalidDocument
from ..errors import Conflict, StorageDamaged
from ..records import Floor
from ..table import Table
from ..tables import Tables
from ..writes import Put
from .checkpoint import Folder, Kept
from .datafiles import Contents, Documents, read
from .journal import Entry


@dataclass
class Recovered:
    """A store as it is after its last commit. ``kept`` and ``documents``: its collections as the data files hold them;
    ``dirty``: the names of those for which they are not up to date; ``edited``: whether people have changed them, which
    must be made durable before anything else is."""

    id: str
    tables: Tables = field(default_factory=Tables)
    kept: dict[str, Kept] = field(default_factory=dict)
    documents: dict[str, Documents] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    edited: bool = False


def recover(folder: Folder) -> Recovered:
    """The store in a folder, which is made where there is none. Raises `StorageDamaged` and OSError."""
    manifest = folder.open()
    store = Recovered(manifest.id)
    found: dict[str, Contents] = {}
    for kept in manifest.collections:
        name = kept.collection.name
        store.kept[name] = kept
        store.tables.declare(kept.collection)
        store.tables.restore(Floor(name, kept.floor))
        found[name] = read(folder, kept, store.tables)
    store.tables.version = max(store.tables.version, manifest.version)
    for entry in folder.journal.replay(manifest.journal, manifest.version):
        _redo(entry, store)
    for name, table in store.tables.tables.items():
        if name not in found:
            # Declared since the last checkpoint: it has no files but those that a person may have put there.
            found[name] = read(folder, Kept(table.collection), store.tables)
    for name, contents in found.items():
        store.documents[name] = contents.documents
        _take_in(name, contents, store)
    return store


def _redo(entry: Entry, store: Recovered) -> None:
    """Does again what an entry says. The data files may be ahead of it, but not of the entries that follow."""
    for collection in entry.declared:
        store.tables.declare(collection)
        store.dirty.add(collection.name)
    for name, up_to in entry.forgotten.items():
        store.tables.tables[name].forget(up_to)
        store.dirty.add(name)
    for change in entry.changes():
        store.tables.restore(change)
        store.dirty.add(change.collection)


def _take_in(name: str, found: Contents, store: Recovered) -> None:
    """Gives what people did to a collection versions of its own."""
    table = store.tables.tables[name]
    written: list[Written] = []
    version = store.tables.version
    for edit in found.edits:
        version += 1
        try:
            put = Put(table.collection, edit.id, edit.document)
        except InvalidDocument as error:
            raise StorageDamaged(f"{edit.place}: {error}") from error
        written.append(Written(table.collection, edit.id, version, put))
    for id in found.missing:
        if id not in table.rows:  # else it was written anew, as the journal says
            version += 1
            written.append(Written(table.collection, id, version, None))
    if found.lost:
        version += 1
        table.floor = version
    store.tables.apply(written, version)
    if written or found.lost:
        store.edited = True
        store.dirty.add(name)
    if found.edits:
        _check_unique(table, {edit.id: edit.place for edit in found.edits})


def _check_unique(table: Table, edited: Mapping[str, str]) -> None:
    try:
        table.check_unique()
    except Conflict as conflict:
        place = next(i for i, field in enumerate(table.collection.fields) if field.name == conflict.field)
        value = table.rows[conflict.id].values[place]
        ids = [id for id in edited if table.rows[id].values[place] == value]
        raise StorageDamaged(
            f"{edited[ids[0]]}: {conflict.field} must be unique, and another record has the same"
        ) from conflict
