"""What is written: batches, what another store held, tombstones that are forgotten. All within a transaction.

Every `sqlite3_step` gives the GIL away and has to win it back, which on a busy loop takes milliseconds. So a statement
writes many rows.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from ..commits import Resolution
from ..documents import decode, encode
from ..queries import Tombstones
from ..records import Change, Collection, Floor, Value
from .sql import LAST_VERSION, LISTED, Sql, listed


def insert(db: sqlite3.Connection, sql: Sql, rows: Sequence[tuple[Value, ...]]) -> None:
    """Writes rows over those with the same ids, in statements of 256, 128 … 1 rows, so that few are ever prepared."""
    at = 0
    size = sql.rows_a_statement
    while at < len(rows):
        while size > len(rows) - at:
            size //= 2
        db.execute(sql.insert(size), list(chain.from_iterable(rows[at : at + size])))
        at += size


def write(db: sqlite3.Connection, resolution: Resolution, sqls: Mapping[str, Sql]) -> None:
    """Writes what a batch came to; within a transaction."""
    puts: defaultdict[str, list[tuple[Value, ...]]] = defaultdict(list)
    deletions: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for collection, id, version, put in resolution.latest():
        if put is not None:
            puts[collection.name].append((version, id, *put.values, str(put.document, "utf-8")))
        else:
            deletions[collection.name].append((id, version))
    for name, rows in puts.items():
        insert(db, sqls[name], rows)
        if sqls[name].collection.tombstones:
            _unbury(db, name, [str(row[1]) for row in rows])
    for name, deleted in deletions.items():
        ids = [id for id, _ in deleted]
        db.execute(f"DELETE FROM {sqls[name].table} WHERE id IN {LISTED}", (listed(ids),))
        if sqls[name].collection.tombstones:
            _unbury(db, name, ids)
            _bury(db, name, deleted)
    for name, floor in resolution.floors().items():
        _raise_floor(db, name, floor)
    _set_version(db, resolution.version)


def _set_version(db: sqlite3.Connection, version: int) -> None:
    db.execute("UPDATE homeport SET value = ? WHERE key = 'version'", (version,))


def _bury(db: sqlite3.Connection, name: str, deleted: Iterable[tuple[str, int]]) -> None:
    db.execute(
        "INSERT INTO homeport_tombstones (version, collection, id)"
        " SELECT json_extract(value, '$[1]'), ?, json_extract(value, '$[0]') FROM json_each(?)",
        (name, encode(list(deleted)).decode()),
    )


def _unbury(db: sqlite3.Connection, name: str, ids: Sequence[str]) -> None:
    db.execute(f"DELETE FROM homeport_tombstones WHERE collection = ? AND id IN {LISTED}", (name, listed(ids)))


def _raise_floor(db: sqlite3.Connection, name: str, floor: int) -> None:
    db.execute("UPDATE homeport_collections SET floor = max(floor, ?) WHERE name = ?", (floor, name))


def forget(db: sqlite3.Connection, what: Tombstones, limit: int = -1) -> int:
    """Drops old tombstones, the oldest first; within a transaction."""
    name = what.collection.name
    count, last = db.execute(
        "SELECT count(*), max(version) FROM (SELECT version FROM homeport_tombstones"
        " WHERE collection = ? AND version <= ? ORDER BY version LIMIT ?)",
        (name, min(what.up_to, LAST_VERSION), limit),
    ).fetchone()
    if count:
        db.execute("DELETE FROM homeport_tombstones WHERE collection = ? AND version <= ?", (name, last))
        _raise_floor(db, name, last)
    return int(count)


def restore(db: sqlite3.Connection, changes: Sequence[Change | Floor], sqls: Mapping[str, Sql]) -> None:
    """Takes over records, tombstones and floors from another store, with their versions; within a transaction."""
    rows: defaultdict[str, list[tuple[Value, ...]]] = defaultdict(list)
    deletions: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for change in changes:
        sql = sqls.get(change.collection)
        if sql is None:
            raise ValueError(f"collection {change.collection} was not declared to this store")
        if isinstance(change, Change) and change.document is not None:
            document = change.document.decode()
            rows[change.collection].append(derived(sql.collection, change.version, change.id, document))
        elif isinstance(change, Change) and sql.collection.tombstones:
            deletions[change.collection].append((change.id, change.version))
        else:
            _raise_floor(db, change.collection, change.version)
    for name, values in rows.items():
        insert(db, sqls[name], values)
    for name, deleted in deletions.items():
        _bury(db, name, deleted)
    newest = max((change.version for change in changes), default=0)
    db.execute("UPDATE homeport SET value = max(value, ?) WHERE key = 'version'", (newest,))


def derived(collection: Collection, version: int, id: str, document: str) -> tuple[Value, ...]:
    """A table's row, with its fields made from the document."""
    return version, id, *collection.values(decode(document.encode()), strict=False), document
