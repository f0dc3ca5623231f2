"""The collections that a server has."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web

from ....storage import Conflict, DeleteWhere, Query
from ...config import ConfigError
from ...errors import NotFound
from .references import SchemaError
from .seeds import SeedError, read_seed
from .sources import find_sources, make_collection

if TYPE_CHECKING:
    from ....storage import Storage
    from ...clock import Clock
    from ...config import Config
    from .user_collection import UserCollection

log = logging.getLogger(__name__)


class Registry:
    """The collections of a server. Raises `ConfigError` with what is wrong with them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        problems: list[str] = []
        self._collections: dict[str, UserCollection] = {}
        for name, source in find_sources(config, problems).items():
            try:
                collection = self._collections[name] = make_collection(name, source, exposed=config.exposed)
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
        sources = await asyncio.to_thread(find_sources, self._config, problems)
        for name, source in sources.items():
            old = self._collections.get(name)
            try:
                new = await asyncio.to_thread(make_collection, name, source, exposed=self._config.exposed)
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


COLLECTIONS = web.AppKey("collections", Registry)
