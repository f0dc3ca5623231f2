"""The tables of an SQLite store, and every statement on them: synchronous functions of one connection.

One ordinary table a collection, pleasant to read in `sqlite3` and Datasette: ``version`` (the primary key, so that what
changed is a range of it), ``id``, ``document`` and a typed column for each declared field. Beside them ``homeport``
(the store's id and version), ``homeport_collections`` and ``homeport_tombstones``.

Every `sqlite3_step` gives the GIL away and has to win it back, which on a busy loop takes milliseconds. So statements
write many rows each, and a read's rows come back as one, in a JSON array.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as Sized
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any
from uuid import uuid4

from ..commits import Key, Resolution, UniqueValue
from ..documents import decode, encode
from ..errors import Conflict, Gone, StorageDamaged
from ..queries import Filter, Page, Query, Tombstones
from ..records import Change, Changes, Collection, Field, Floor, Record, Value, is_text
from .recent import Held, values_of

_TYPES = {"integer": "INTEGER", "text": "TEXT", "boolean": "BOOLEAN", "double": "REAL", "time": "INTEGER"}
_MAX_PARAMETERS = 32_000
_MAX_ROWS = 256
_LAST_VERSION = 2**63 - 1
_OWN_COLUMNS = ("version", "id", "document")


# Schema versions


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
        forget(db, Tombstones(collection, _LAST_VERSION))


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
    while chunk := rows.fetchmany(_MAX_ROWS):
        insert(db, new, [_derived(new.collection, *row) for row in chunk])
    db.execute("DROP TABLE homeport_former")
    check_unique(db, new)


def _index(sql: Sql, column: str) -> str:
    # No collection's name has a colon, so no index takes a table's name.
    return quoted(f"{sql.collection.name}:{column}")


def _derived(collection: Collection, version: int, id: str, document: str) -> tuple[Value, ...]:
    """A table's row, with its fields made from the document."""
    return version, id, *collection.values(decode(document.encode()), strict=False), document


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


# Writing


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
        db.execute(f"DELETE FROM {sqls[name].table} WHERE id IN {_LISTED}", (_list(ids),))
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
    db.execute(f"DELETE FROM homeport_tombstones WHERE collection = ? AND id IN {_LISTED}", (name, _list(ids)))


def _raise_floor(db: sqlite3.Connection, name: str, floor: int) -> None:
    db.execute("UPDATE homeport_collections SET floor = max(floor, ?) WHERE name = ?", (floor, name))


def forget(db: sqlite3.Connection, what: Tombstones, limit: int = -1) -> int:
    """Drops old tombstones, the oldest first; within a transaction."""
    name = what.collection.name
    count, last = db.execute(
        "SELECT count(*), max(version) FROM (SELECT version FROM homeport_tombstones"
        " WHERE collection = ? AND version <= ? ORDER BY version LIMIT ?)",
        (name, min(what.up_to, _LAST_VERSION), limit),
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
            rows[change.collection].append(_derived(sql.collection, change.version, change.id, document))
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


def new_identity(db: sqlite3.Connection) -> None:
    db.execute("UPDATE homeport SET value = ? WHERE key = 'store'", (str(uuid4()),))


class Present:
    """What the tables hold: the `State` of a batch. ``known``: some of it, which is not asked for."""

    def __init__(self, db: sqlite3.Connection, sqls: Mapping[str, Sql], known: Mapping[Key, Held]) -> None:
        self._db = db
        self._sqls = sqls
        self._known = known

    def versions(self, keys: Sized[Key]) -> Mapping[Key, int]:
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        found: dict[Key, int] = {}
        for key in keys:
            if key in self._known:
                found[key] = self._known[key].version
            else:
                by_name[key[0]].append(key[1])
        for name, ids in by_name.items():
            (rows,) = self._db.execute(
                f"SELECT json_group_array(json_array(id, version)) FROM {self._sqls[name].table} WHERE id IN {_LISTED}",
                (_list(ids),),
            ).fetchone()
            found.update({(name, id): version for id, version in decode(rows.encode())})
        return found

    def holders(self, values: Sized[UniqueValue]) -> Mapping[UniqueValue, str]:
        by_field: defaultdict[tuple[str, int], list[Value]] = defaultdict(list)
        found: dict[UniqueValue, str] = {}
        for (name, id), held in self._known.items():
            collection = self._sqls[name].collection
            if collection.unique:
                known = values_of(held, collection)
                found.update({(name, place, known[place]): id for place, _ in collection.unique})
        for name, place, value in values:
            if (name, place, value) not in found:
                by_field[name, place].append(value)
        for (name, place), wanted in by_field.items():
            sql = self._sqls[name]
            for start in range(0, len(wanted), _MAX_ROWS):
                chunk = wanted[start : start + _MAX_ROWS]
                size = 1 << (len(chunk) - 1).bit_length()  # few texts, so that statements are prepared once
                numbered = ", ".join([f"({number}, ?)" for number in range(size)])
                (rows,) = self._db.execute(
                    f"WITH wanted (number, value) AS (VALUES {numbered})"
                    f" SELECT json_group_array(json_array(wanted.number, held.id)) FROM wanted"
                    f" CROSS JOIN {sql.table} AS held ON held.{quoted(sql.columns[place])} = wanted.value",
                    (*chunk, *[None] * (size - len(chunk))),
                ).fetchone()
                found.update({(name, place, chunk[number]): id for number, id in decode(rows.encode())})
        return found

    def select(self, query: Query) -> Sequence[str]:
        sql = self._sqls[query.collection.name]
        where, parameters = sql.where(query.filters)
        (ids,) = self._db.execute(
            f"SELECT json_group_array(id) FROM (SELECT id FROM {sql.table}{where} ORDER BY id LIMIT ?)",
            (*parameters, -1 if query.limit is None else query.limit),
        ).fetchone()
        return list(decode(ids.encode()))


# Reading


def get(db: sqlite3.Connection, sql: Sql, ids: Sequence[str]) -> dict[str, Record]:
    if len(ids) == 1 and is_text(ids[0]):
        row = db.execute(sql.get_one, ids).fetchone()
        return {} if row is None else {ids[0]: Record(ids[0], row[0], row[1].encode())}
    (rows,) = db.execute(sql.get_many, (_list(ids),)).fetchone()
    return {record.id: record for record in _records(rows)}


def find(db: sqlite3.Connection, sql: Sql, query: Query) -> Page:
    """A page, from one snapshot."""
    db.execute("BEGIN")
    try:
        limit = -1 if query.limit is None else query.limit + 1
        records: list[Record] = []
        for where, parameters in sql.pages(query):
            (rows,) = db.execute(
                f"SELECT json_group_array(json_array(id, version, document)) FROM (SELECT id, version, document"
                f" FROM {sql.table}{where} ORDER BY {sql.order(query)} LIMIT ? OFFSET ?)",
                (*parameters, limit if limit < 0 else limit - len(records), query.offset),
            ).fetchone()
            records += _records(rows)
            if len(records) == limit:
                break
        following = None
        if query.limit is not None and len(records) > query.limit:
            records.pop()
            following = query.cursor([_value(query, records[-1], name) for name, _ in query.order])
        rank = None
        if query.rank and records:
            before = query.preceding(_value(query, records[0], query.order[0][0]))
            rank = 1 + sum(factor * count(db, sql, filters) for factor, filters in before)
        total = count(db, sql, query.filters) if query.total else None
        return Page(tuple(records), following, identity(db)[1], total, rank)
    finally:
        db.execute("COMMIT")


def count(db: sqlite3.Connection, sql: Sql, filters: Sequence[Filter]) -> int:
    where, parameters = sql.where(filters)
    return int(db.execute(f"SELECT count(*) FROM {sql.table}{where}", parameters).fetchone()[0])


def changes(db: sqlite3.Connection, sql: Sql, after: int, limit: int, began: int) -> Changes:
    name = sql.collection.name
    version, floor, rows = db.execute(
        "SELECT (SELECT value FROM homeport WHERE key = 'version'),"
        " (SELECT floor FROM homeport_collections WHERE name = :name),"
        " (SELECT json_group_array(json_array(version, id, document)) FROM ("
        f"SELECT version, id, document FROM {sql.table} WHERE version > :after"
        " UNION ALL SELECT version, id, NULL FROM homeport_tombstones"
        " WHERE collection = :name AND version > :after ORDER BY version LIMIT :limit))",
        {"name": name, "after": min(after, _LAST_VERSION), "limit": limit + 1},
    ).fetchone()
    if after > version or (after and max(after, began) < floor):
        raise Gone(f"{name}: changes after version {after} are not remembered")
    found = [
        Change(name, id, at, None if document is None else document.encode())
        for at, id, document in decode(rows.encode())
    ]
    more = len(found) > limit
    page = tuple(found[:limit])
    return Changes(page, page[-1].version if more else version, more, version, floor)


def begin_snapshot(db: sqlite3.Connection) -> tuple[int, tuple[Collection, ...]]:
    """Begins a transaction that sees no later commit; the store's version and collections in it."""
    db.execute("BEGIN")
    return identity(db)[1], tuple(declared(db).values())


def _records(rows: str) -> list[Record]:
    return [Record(id, version, document.encode()) for id, version, document in decode(rows.encode())]


def _value(query: Query, record: Record, name: str) -> Value:
    """What a record sorts by."""
    if name == "id":
        return record.id
    place = list(query.collection.by_name).index(name)
    return query.collection.values(record.decode(), strict=False)[place]


# Statements

_LISTED = "(SELECT value FROM json_each(?))"


def _list(ids: Sequence[str]) -> str:
    """The parameter of ``_LISTED``, without ids that no record can have: JSON functions end a text at U+0000."""
    return encode([id for id in ids if "\0" not in id and is_text(id)]).decode()


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class Sql:
    """The names and statements of a collection's table."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.table = quoted(collection.name)
        self.columns = _columns(collection)
        self.rows_a_statement = _MAX_ROWS
        while self.rows_a_statement > max(1, _MAX_PARAMETERS // (len(self.columns) + len(_OWN_COLUMNS))):
            self.rows_a_statement //= 2
        self.get_one = f"SELECT version, document FROM {self.table} WHERE id = ?"
        self.get_many = (
            f"SELECT json_group_array(json_array(id, version, document)) FROM {self.table} WHERE id IN {_LISTED}"
        )
        self._by_name = {"id": "id"} | {
            field.name: quoted(column) for field, column in zip(collection.fields, self.columns, strict=True)
        }
        self._inserts: dict[int, str] = {}

    def insert(self, rows: int) -> str:
        """The statement that writes so many rows of version, id, fields and document."""
        if rows not in self._inserts:
            names = ", ".join(["version", "id", *map(quoted, self.columns), "document"])
            row = "(" + ", ".join("?" * (len(self.columns) + len(_OWN_COLUMNS))) + ")"
            self._inserts[rows] = f"INSERT OR REPLACE INTO {self.table} ({names}) VALUES " + ", ".join([row] * rows)
        return self._inserts[rows]

    def order(self, query: Query) -> str:
        return ", ".join(self._by_name[name] + (" DESC" if down else "") for name, down in query.order)

    def where(self, filters: Sequence[Filter]) -> tuple[str, list[Value]]:
        conditions = [self._condition(*condition) for condition in filters]
        text = " AND ".join(condition for condition, _ in conditions)
        return (f" WHERE {text}" if text else ""), [value for _, values in conditions for value in values]

    def pages(self, query: Query) -> list[tuple[str, list[Value]]]:
        """The conditions of what follows a query's cursor: ranges without overlap, in order, each fit for an index."""
        if query.position is None:
            return [self.where(query.filters)]
        ranges = []
        for last in reversed(range(len(query.order))):
            same = [Filter(query.order[i][0], "==", query.position[i]) for i in range(last)]
            name, descending = query.order[last]
            value = query.position[last]
            if value is None and not descending:
                where, parameters = self.where([*query.filters, *same])
                glue = " AND " if where else " WHERE "
                ranges.append((f"{where}{glue}{self._by_name[name]} IS NOT NULL", parameters))
            elif value is not None:
                beyond = Filter(name, "<" if descending else ">", value)
                ranges.append(self.where([*query.filters, *same, beyond]))
                if descending and name != "id":
                    ranges.append(self.where([*query.filters, *same, Filter(name, "==", None)]))
        return ranges

    def _condition(self, name: str, op: str, value: Any) -> tuple[str, Sequence[Value]]:
        column = self._by_name[name]
        if op == "in":
            present = [item for item in value if item is not None]
            listed = f"{column} IN ({', '.join('?' * len(present))})"
            return (listed if len(present) == len(value) else f"({listed} OR {column} IS NULL)"), present
        if value is None:
            return f"{column} IS NULL", ()
        return f"{column} {op} ?", (value,)


def _columns(collection: Collection) -> list[str]:
    """A column for each field, called like it where SQLite, which folds case, has not given the name away."""
    taken = set(_OWN_COLUMNS)
    columns = []
    for field in collection.fields:
        column, number = field.name, 2
        while column.lower() in taken:
            column, number = f"{field.name}_{number}", number + 1
        taken.add(column.lower())
        columns.append(column)
    return columns
