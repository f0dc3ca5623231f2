"""Whether the records of collections fit their schemas, which may have been edited since, for `homeport check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...storage import Query, make_storage, walk
from ..config import ConfigError
from .findings import Finding
from .options import Failure, on_store

if TYPE_CHECKING:
    from ...storage import Storage
    from ..apis.collections.user_collection import UserCollection
    from ..config import Config

_SHOWN = 5


def fitting(config: Config, *, store: bool) -> Iterator[Finding]:
    """What is wrong with the schemas; and with ``store`` what every record of the configured store comes to, also
    while a server runs on it."""
    from ..apis.collections.registry import Registry

    try:
        collections = Registry(config).all()
    except ConfigError as error:
        yield from (Finding("fatal", "collections", problem, "correct it") for problem in error.problems)
        return
    if not store or not collections:
        return
    path = make_storage(config.storage.url).path
    if path is not None and not path.exists():
        return
    declared = tuple([collection.storage for collection in collections])
    try:
        misfits = on_store(config, declared, lambda storage: _misfits(storage, collections))
    except Failure as failure:
        yield Finding("note", "records", f"they were not looked at: {failure.reason}", "stop what has the store")
        return
    for name, (count, ids) in misfits.items():
        if not ids:
            yield Finding("ok", "records", f"{name}: {count:,}, which fit the schema")
            continue
        names = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else "")
        yield Finding(
            "warning",
            "records",
            f"{name}: {len(ids):,} of {count:,} do not fit the schema: {names}",
            "they can be read; write them anew, or correct the schema",
        )


async def _misfits(storage: Storage, collections: list[UserCollection]) -> dict[str, tuple[int, list[str]]]:
    """For each collection how many records there are, and the ids of those that do not fit."""
    found: dict[str, tuple[int, list[str]]] = {}
    for collection in collections:
        count, ids = 0, []
        async for record in walk(storage, Query(collection.storage)):
            count += 1
            document = record.decode()
            document.pop("_meta", None)
            if not collection.schema.accepts(document):
                ids.append(record.id)
        found[collection.name] = count, ids
    return found
