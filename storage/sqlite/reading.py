"""What is read. A read's rows come back as one: for each the GIL would be given away and won back."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..documents import decode_kept
from ..errors import Gone, StorageDamaged
from ..queries import Filter, Page, Query
from ..records import Change, Changes, Collection, Record, Value, is_text
from .schema import declared, identity
from .sql import AS_ONE_ROW, LAST_VERSION, SEPARATOR, Sql, listed


def get(db: sqlite3.Connection, sql: Sql, ids: Sequence[str]) -> dict[str, Record]:
    if len(ids) == 1 and is_text(ids[0]):
        row = db.execute(sql.get_one, ids).fetchone()
        records = [] if row is None else [Record(ids[0], row[0], row[1].encode())]
    else:
        records = _records(*db.execute(sql.get_many, (listed(ids),)).fetchone())
    sql.largest = max([sql.largest, *[len(record.document) for record in records]])
    return {record.id: record for record in records}


def find(db: sqlite3.Connection, sql: Sql, query: Query) -> Page:
    """A page, from one snapshot."""
    db.execute("BEGIN")
    try:
        limit = -1 if query.limit is None else query.limit + 1
        records: list[Record] = []
        for where, parameters in sql.pages(query):
            rows = db.execute(
                f"SELECT {AS_ONE_ROW} FROM (SELECT id, version, document"
                f" FROM {sql.table}{where} ORDER BY {sql.order(query)} LIMIT ? OFFSET ?)",
                (*parameters, limit if limit < 0 else limit - len(records), query.offset),
            ).fetchone()
            records += _records(*rows)
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
    version, floor, *rows = db.execute(
        "SELECT (SELECT value FROM homeport WHERE key = 'version'),"
        f" (SELECT floor FROM homeport_collections WHERE name = :name), {AS_ONE_ROW} FROM ("
        f"SELECT version, id, document FROM {sql.table} WHERE version > :after"
        " UNION ALL SELECT version, id, '' FROM homeport_tombstones"
        " WHERE collection = :name AND version > :after ORDER BY version LIMIT :limit)",
        {"name": name, "after": min(after, LAST_VERSION), "limit": limit + 1},
    ).fetchone()
    if after > version or (after and max(after, began) < floor):
        raise Gone(f"{name}: changes after version {after} are not remembered")
    found = [Change(name, id, at, document or None) for id, at, document in _records(*rows)]
    more = len(found) > limit
    page = tuple(found[:limit])
    return Changes(page, page[-1].version if more else version, more, version, floor)


def begin_snapshot(db: sqlite3.Connection) -> tuple[int, tuple[Collection, ...]]:
    """Begins a transaction that sees no later commit; the store's version and collections in it."""
    db.execute("BEGIN")
    return identity(db)[1], tuple(declared(db).values())


def _records(heads: str, documents: str | None) -> list[Record]:
    """What was selected `AS_ONE_ROW`."""
    if documents is None:
        return []
    known, texts = decode_kept(heads.encode()), documents.encode().split(SEPARATOR)
    if len(known) != len(texts):
        raise StorageDamaged(f"a document among {known[0][0]} to {known[-1][0]} is no JSON")
    return [Record(id, version, text) for (id, version), text in zip(known, texts, strict=True)]


def _value(query: Query, record: Record, name: str) -> Value:
    """What a record sorts by."""
    if name == "id":
        return record.id
    place = list(query.collection.by_name).index(name)
    return query.collection.values(record.decode(), strict=False)[place]
