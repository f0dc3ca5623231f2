"""Where collections come from: tables of the configuration, and files in a folder of schemas."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....storage import Collection, Field
from ...config import ConfigError
from ...formats import is_collection_name, is_field_name
from .schemas import HINTS, CompiledSchema
from .user_collection import PREFIX, UserCollection

if TYPE_CHECKING:
    from ...config import CollectionConfig, Config
    from .user_collection import Access

log = logging.getLogger(__name__)

SUFFIX = ".schema.json"
MAX_INDEXES = 100
"""Of one collection."""


@dataclass(frozen=True)
class Source:
    """Where a collection comes from: a table of the configuration, or a file in the folder of schemas."""

    setting: str
    file: Path
    folder: Path
    seed: Path | None
    config: CollectionConfig | None = None


def find_sources(config: Config, problems: list[str]) -> dict[str, Source]:
    """What is to become a collection, by name."""
    found: dict[str, Source] = {}
    if config.apis.collections.schemas is not None:
        found = _in_folder(Path(config.apis.collections.schemas), problems)
    for place, table in enumerate(config.collections):
        setting, file = f"collections[{place}]", Path(table.schema)
        if table.name in found:
            problems.append(f"{setting}.name: there is a collection {table.name} already; give another name")
        seed = None if table.seed is None else Path(table.seed)
        found[table.name] = Source(setting, file, file.parent, seed, table)
    return found


def _in_folder(folder: Path, problems: list[str]) -> dict[str, Source]:
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
        found[name] = Source("", file, folder, next((seed for seed in seeds if seed.exists()), None))
    if not found:
        log.warning("%s holds no *%s: there are no collections", folder, SUFFIX)
    return found


def make_collection(name: str, source: Source, *, exposed: bool) -> UserCollection:
    """The collection of a source. Raises `SchemaError` and `ConfigError`."""
    schema = CompiledSchema(source.file, source.folder)
    given = source.config
    default: Access = "key" if exposed else "public"
    return UserCollection(
        name=name,
        storage=Collection(PREFIX + name, _fields(source, schema), tombstones=True),
        schema=schema,
        file=source.file,
        read=(given and given.read) or default,
        write=(given and given.write) or default,
        seed=source.seed,
        keep_deleted_days=given.keep_deleted_days if given else 90,
    )


def _fields(source: Source, schema: CompiledSchema) -> tuple[Field, ...]:
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
