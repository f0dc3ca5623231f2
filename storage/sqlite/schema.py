"""The tables of an SQLite store: how they are made and made anew. Synchronous functions of one connection, as all here.

One ordinary table a collection, pleasant to read in `sqlite3` and Datasette: ``version`` (the primary key, so that what
changed is a range of it), ``id``, ``document`` and a typed column for each declared field. Beside them ``homeport``
(the store's id and version), ``homeport_collections`` and ``homeport_tombstones``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from ..documents import decode, encode
from ..errors import Conflict, StorageDamaged
from ..queries import Tombstones
from ..records import Collection, Field
from .sql import LAST_VERSION, MAX_ROWS, Sql, quoted
from .writing import derived, forget, insert

_TYPES = {"integer": "INTEGER", "text": "TEXT", "boolean": "BOOLEAN", "double": "REAL", "time": "INTEGER"}


# Versions


def _version_1(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE homeport (key TEXT PRIMARY KEY, value NOT NULL)")
    db.execute("INSERT INTO homeport VALUES ('store', ?), ('version', 0)", (str(uuid4()),))
    db.execute("CREATE TABLE homeport_collections (name TEXT PRIMARY KEY, declaration TEXT NOT NULL, floor INTEGER)")
    db.execute(
        "CREATE TABLE homeport_tombstones (version INTEGER PRIMARY KEY, collection TEXT NOT NULL, id TEXT NOT NULL)"
    )
    db.execute("CREATE UNIQUE INDEX homeport_tombstones_id ON homeport_tombstones (collection, id)")
    db.execute("CREATE INDEX homeport_tombstones_version ON homeport_tombstones (collection, version)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_version_1,)
"""What takes a store from each schema version (``PRAGMA user_version``) to the next."""


def schema_version(db: sqlite3.Connection) -> int:
    """Raises `StorageDamaged` for a store of a later Homeport."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StorageDamaged(f"was written by a later Homeport (schema {version}; this one knows {len(MIGRATIONS)})")
    return version


def migrate(db: sqlite3.Connection) -> None:
    """Takes the tables to the newest schema version, all or nothing."""
    with transaction(db):
        for version, step in enumerate(MIGRATIONS[schema_version(db) :], schema_version(db) + 1):
            step(db)
            db.execute(f"PRAGMA user_version = {version}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Any:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors, a full disk among them, have rolled back already
            db.execute("ROLLBACK")
        raise


def identity(db: sqlite3.Connection) -> tuple[str, int]:
    """The store's id and version."""
    rows = dict(db.execute("SELECT key, value FROM homeport"))
    return rows["store"], rows["version"]


def new_identity(db: sqlite3.Connection) -> None:
    db.execute("UPDATE homeport SET value = ? WHERE key = 'store'", (str(uuid4()),))


# Collections


def declared(db: sqlite3.Connection) -> dict[str, Collection]:
    rows = db.execute("SELECT declaration FROM homeport_collections")
    return {c.name: c for c in (_collection(decode(row[0].encode())) for row in rows)}


def _collection(declaration: dict[str, Any]) -> Collection:
    return Collection(**{**declaration, "fields": tuple(Field(**field) for field in declaration["fields"])})


def declare(db: sqlite3.Connection, collection: Collection) -> None:
    """Makes or remakes a collection's table; within a transaction."""
    present = declared(db).get(collection.name)
    if present == collection:
        return
    db.execute(
        "INSERT INTO homeport_collections VALUES (?, ?, 0)"
        " ON CONFLICT (name) DO UPDATE SET declaration = excluded.declaration",
        (collection.name, encode(asdict(collection)).decode()),
    )
    if present is None:
        _create(db, Sql(collection))
        return
    if present.fields != collection.fields:
        _recreate(db, Sql(present), Sql(collection))
    if not collection.tombstones:
        forget(db, Tombstones(collection, LAST_VERSION))


def _create(db: sqlite3.Connection, sql: Sql) -> None:
    columns = [f"{quoted(c)} {_TYPES[f.type]}" for c, f in zip(sql.columns, sql.collection.fields, strict=True)]
    db.execute(
        f"CREATE TABLE {sql.table} ("
        + ", ".join(["version INTEGER PRIMARY KEY", "id TEXT NOT NULL UNIQUE", *columns, "document TEXT NOT NULL"])
        + ")"
    )
    for column, field in zip(sql.columns, sql.collection.fields, strict=True):
        if field.indexed or field.unique:
            db.execute(f"CREATE INDEX {_index(sql, column)} ON {sql.table} ({quoted(column)}, id)")


def _recreate(db: sqlite3.Connection, old: Sql, new: Sql) -> None:
    for column, field in zip(old.columns, old.collection.fields, strict=True):
        if field.indexed or field.unique:
            db.execute(f"DROP INDEX {_index(old, column)}")
    db.execute(f"ALTER TABLE {old.table} RENAME TO homeport_former")
    _create(db, new)
    rows = db.execute("SELECT version, id, document FROM homeport_former")
    while chunk := rows.fetchmany(MAX_ROWS):
        insert(db, new, [derived(new.collection, *row) for row in chunk])
    db.execute("DROP TABLE homeport_former")
    check_unique(db, new)


def _index(sql: Sql, column: str) -> str:
    # No collection's name has a colon, so no index takes a table's name.
    return quoted(f"{sql.collection.name}:{column}")


def check_unique(db: sqlite3.Connection, sql: Sql) -> None:
    """Raises `Conflict` where two records hold one value of a unique field."""
    for place, name in sql.collection.unique:
        column = quoted(sql.columns[place])
        row = db.execute(
            f"SELECT max(id), max(version) FROM {sql.table} WHERE {column} IS NOT NULL"
            f" GROUP BY {column} HAVING count(*) > 1 LIMIT 1"
        ).fetchone()
        if row is not None:
            raise Conflict(0, sql.collection.name, row[0], "unique", row[1], name)
