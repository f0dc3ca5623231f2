"""The collections that the configuration names, and what is known of each."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from aiohttp import web

from ....storage import Collection, Conflict, DeleteWhere, Field, Query
from ...config import ConfigError
from ...errors import InvalidBody, NotFound
from ...formats import is_collection_name, is_field_name
from .references import SchemaError
from .schemas import HINTS, CompiledSchema
from .seeds import SeedError, read_seed

if TYPE_CHECKING:
    from ....storage import Storage
    from ...clock import Clock
    from ...config import CollectionConfig, Config

log = logging.getLogger(__name__)

SUFFIX = ".schema.json"
MAX_INDEXES = 100
"""Of one collection."""
_ON_LOOP = 32 * 1024
"""Bytes of a document that is checked at once; a larger one, on a thread."""

Access = Literal["public", "key"]


@dataclass(kw_only=True, eq=False)
class UserCollection:
    """A collection of documents that fit a schema. ``storage`` and ``schema`` become others when that is edited."""

    name: str
    storage: Collection
    schema: CompiledSchema
    file: Path
    """The schema's."""
    read: Access
    write: Access
    seed: Path | None
    keep_deleted_days: int

    def check(self, document: Any) -> None:
        """Raises `InvalidBody` with every problem of a document, at most a hundred. May take a while: `verify`."""
        if not self.schema.accepts(document):
            raise InvalidBody(f"The record does not fit {self.name}", self.schema.problems(document))

    async def verify(self, document: Any, size: int) -> None:
        """`check` without making the loop wait; ``size``: bytes that the document came in."""
        if size > _ON_LOOP or not self.schema.accepts(document):
            await asyncio.to_thread(self.check, document)


class Registry:
    """The collections of a server. Raises `ConfigError` with what is wrong with them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        problems: list[str] = []
        self._collections: dict[str, UserCollection] = {}
        for name, source in _sources(config, problems).items():
            try:
                collection = self._collections[name] = self._compile(name, source)
            except (SchemaError, ConfigError) as error:
                problems += str(error).splitlines()
                continue
            if config.exposed and collection.write == "public":
                problems.append(
                    f'{source.setting}.write: {name} is "public", and the server is exposed '
                    f'({config.exposed_by[0]}); set it to "key"'
                )
        if problems:
            raise ConfigError(problems)
        self.store_id = ""
        """What clients see as the store; new with every store, and with every `reset`."""

    def get(self, name: str) -> UserCollection:
        """Raises `NotFound`."""
        try:
            return self._collections[name]
        except KeyError:
            raise NotFound("There is no such collection") from None

    def all(self) -> list[UserCollection]:
        """By name."""
        return [self._collections[name] for name in sorted(self._collections)]

    async def open(self, storage: Storage, clock: Clock) -> None:
        """Declares the collections to an open store, and fills empty ones from their seeds. Raises `ConfigError`."""
        self._storage, self._clock = storage, clock
        self.store_id = storage.id
        await asyncio.gather(*map(self._declare, self.all()))
        for collection in self.all():
            await self._plant(collection)

    @property
    def folders(self) -> set[Path]:
        """Where the schemas are."""
        folder = self._config.apis.collections.schemas
        return {c.file.parent for c in self.all()} | ({Path(folder)} if folder else set())

    async def reload(self) -> None:
        """Takes in what was edited and what is new. Where a schema cannot be used the old one stays, as a collection
        does whose file is gone, until the server starts again."""
        problems: list[str] = []
        sources = await asyncio.to_thread(_sources, self._config, problems)
        for name, source in sources.items():
            old = self._collections.get(name)
            try:
                new = await asyncio.to_thread(self._compile, name, source)
                if old is None:
                    await self._declare(new)
                    await self._plant(new)
                    self._collections[name] = new
                    log.info("collection %s: new, from %s", name, source.file)
                elif old.schema.documents != new.schema.documents:
                    if old.storage != new.storage:
                        await self._declare(new)
                    old.storage, old.schema = new.storage, new.schema
                    log.info("collection %s: the edited schema is live", name)
            except (SchemaError, ConfigError) as error:
                stays = "" if old is None else "; the old schema stays"
                problems += [line + stays for line in str(error).splitlines()]
        for problem in problems:
            log.error("%s", problem)

    async def reset(self) -> None:
        """Empties every collection and loads its seed again. To clients it is another store."""
        for collection in self.all():
            await self._storage.commit([DeleteWhere(Query(collection.storage))])
            await self._plant(collection)
        self.store_id = str(uuid4())

    async def _declare(self, collection: UserCollection) -> None:
        try:
            await self._storage.declare(collection.storage)
        except Conflict as conflict:
            raise ConfigError([f"collection {collection.name}: {conflict.field} cannot be unique: it is not"]) from None

    async def _plant(self, collection: UserCollection) -> None:
        """Loads the seed of a collection that is empty, in one commit."""
        if collection.seed is None or await self._storage.count(Query(collection.storage)):
            return
        try:
            writes = await asyncio.to_thread(read_seed, collection, self._clock.now())
            await self._storage.commit(writes)
        except SeedError as error:
            raise ConfigError(str(error).splitlines()) from None
        except Conflict as conflict:
            raise ConfigError([f"{collection.seed}: {conflict.id}: {conflict.field} is taken"]) from None
        log.info("collection %s: %d records from %s", collection.name, len(writes), collection.seed)

    def _compile(self, name: str, source: _Source) -> UserCollection:
        schema = CompiledSchema(source.file, source.folder)
        given = source.config
        default: Access = "key" if self._config.exposed else "public"
        return UserCollection(
            name=name,
            storage=Collection(f"collections_{name}", _fields(source, schema), tombstones=True),
            schema=schema,
            file=source.file,
            read=(given and given.read) or default,
            write=(given and given.write) or default,
            seed=source.seed,
            keep_deleted_days=given.keep_deleted_days if given else 90,
        )


COLLECTIONS = web.AppKey("collections", Registry)


@dataclass(frozen=True)
class _Source:
    """Where a collection comes from: a table of the configuration, or a file in the folder of schemas."""

    setting: str
    file: Path
    folder: Path
    seed: Path | None
    config: CollectionConfig | None = None


def _sources(config: Config, problems: list[str]) -> dict[str, _Source]:
    """What is to become a collection, by name."""
    found: dict[str, _Source] = {}
    if config.apis.collections.schemas is not None:
        found = _in_folder(Path(config.apis.collections.schemas), problems)
    for place, table in enumerate(config.collections):
        setting, file = f"collections[{place}]", Path(table.schema)
        if table.name in found:
            problems.append(f"{setting}.name: there is a collection {table.name} already; give another name")
        seed = None if table.seed is None else Path(table.seed)
        found[table.name] = _Source(setting, file, file.parent, seed, table)
    return found


def _in_folder(folder: Path, problems: list[str]) -> dict[str, _Source]:
    if not folder.is_dir():
        problems.append(f"apis.collections.schemas: {folder} is no folder")
        return {}
    found = {}
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        name = file.name.removesuffix(SUFFIX)
        if not is_collection_name(name):
            problems.append(f"{file}: a collection's name is up to 50 of a-z, 0-9, _ and -, first a letter")
            continue
        seeds = (folder / f"{name}.json", folder / f"{name}.jsonl", folder / name)
        found[name] = _Source("", file, folder, next((seed for seed in seeds if seed.exists()), None))
    if not found:
        log.warning("%s holds no *%s: there are no collections", folder, SUFFIX)
    return found


def _fields(source: _Source, schema: CompiledSchema) -> tuple[Field, ...]:
    """The indexed fields: those that the configuration and the schema ask for and, in a folder of schemas, all that
    can be."""
    given = source.config
    unique = dict.fromkeys([*(given.unique if given else ()), *schema.unique])
    asked = dict.fromkeys([*(given.indexes if given else ()), *schema.indexes, *unique])
    problems, fields = [], []
    for name in asked:
        type_ = schema.fields.get(name)
        if type_ is not None and is_field_name(name):
            fields.append(Field(name, type_, indexed=True, unique=name in unique))
        else:
            by_config = given is not None and name in (*given.indexes, *given.unique)
            where = f"{source.setting}.indexes" if by_config else f"{source.file}: /{HINTS}"
            problems.append(f"{where}: {name} cannot be indexed: {_why_not(name, schema)}")
    if problems:
        raise ConfigError(problems)
    if given is None:
        rest = [name for name in schema.fields if name not in asked and is_field_name(name)]
        scalars = [Field(name, type_, indexed=True) for name in rest if (type_ := schema.fields[name]) is not None]
        fields += scalars[: max(0, MAX_INDEXES - len(fields))]
    return tuple(fields)


def _why_not(name: str, schema: CompiledSchema) -> str:
    if not is_field_name(name):
        return "id always is" if name == "id" else "the name is not one that a field can have"
    if name not in schema.fields:
        return "the schema has no such property"
    return "the schema does not say that it is a string, an integer, a number or a boolean, and one of these"
