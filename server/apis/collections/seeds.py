"""The records that a collection begins with: a JSON file, a JSON Lines file, or a folder of JSON files.

A JSON file holds a list of records, or an object of records by id; a JSON Lines file, a record a line; a folder, a
record a file. A record without an ``id`` has that of its object's member or its file's name, else its place, from 1 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ....storage import InvalidDocument, Put
from ...errors import BadRequest
from .ids import check_id, id_in
from .records import kept, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .user_collection import UserCollection

MAX_SEED = 16 * 2**20
"""Bytes, in all."""

_list = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SeedError(Exception):
    """A seed cannot be loaded: a line for each record that is wrong."""


def read_seed(collection: UserCollection, now: int) -> list[Put]:
    """What writes a collection's seed. Raises `SeedError`."""
    seed = collection.seed
    assert seed is not None
    writes: dict[str, Put] = {}
    problems: list[str] = []
    try:
        for where, fallback, body in _records(seed):
            try:
                body, document = parse(body)
                id = check_id(id_in(document) or fallback)
                collection.check(document)
                if id in writes:
                    problems.append(f"{where}: there is a record {id} already")
                writes[id] = Put(collection.storage, id, kept(body, now))
            except InvalidDocument as error:
                problems.append(f"{where}: {error}")
            except BadRequest as error:
                problems += [f"{where}: {problem.field} {problem.message}" for problem in error.problems]
    except OSError as error:
        problems.append(f"{seed}: cannot be read: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problems.append(f"{seed}: {error}")
    if problems:
        raise SeedError("\n".join(problems))
    return list(writes.values())


def _records(seed: Path) -> Iterator[tuple[str, str, bytes]]:
    """Where each record stands, the id that it has if it says none, and the record."""
    files = sorted(seed.glob("*.json")) if seed.is_dir() else [seed]
    if (size := sum(file.stat().st_size for file in files)) > MAX_SEED:
        raise SeedError(f"{seed}: {size:,} bytes; a seed holds at most {MAX_SEED:,}")
    if seed.is_dir():
        for file in files:
            yield str(file), file.stem, file.read_bytes()
        return
    text = seed.read_bytes()
    if seed.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{seed}:{number}", str(number), line
    elif text.lstrip().startswith(b"{"):
        for name, body in _object.decode(text).items():
            yield f"{seed}: {name}", name, bytes(body)
    else:
        for number, body in enumerate(_list.decode(text), 1):
            yield f"{seed}: record {number}", str(number), bytes(body)
