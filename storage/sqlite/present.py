"""What a batch of commits is judged by."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection as Sized
from collections.abc import Mapping, Sequence

from ..commits import Key, UniqueValue
from ..documents import decode
from ..queries import Query
from ..records import Value
from .recent import Held, values_of
from .sql import LISTED, MAX_ROWS, Sql, listed, quoted


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
                f"SELECT json_group_array(json_array(id, version)) FROM {self._sqls[name].table} WHERE id IN {LISTED}",
                (listed(ids),),
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
            for start in range(0, len(wanted), MAX_ROWS):
                chunk = wanted[start : start + MAX_ROWS]
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
