"""`homeport copy`: everything from one back end to another (contracts/cli.md), and what it shares with `backup`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...storage import NotEmpty, Query, StorageError, StorageLocked, make_storage
from .options import BadConfig, Failure, help_option, json_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from ...storage import Storage
    from ...storage.transfer import Progress, Tallies

T = TypeVar("T")


@click.command(
    epilog="\b\nExamples:\n"
    "  homeport copy --from sqlite:homeport.db --to file:data --dry-run\n"
    "  homeport copy --from sqlite:homeport.db --to file:data\n\n"
    "A server may run on the store that is copied: the copy is what it held at one moment. The other has to be new or "
    "empty, and no server may run on it. Should the copy be interrupted, run it again: it starts over."
)
@click.option("--from", "source_url", metavar="URL", required=True, help="The store to copy: file:PATH or sqlite:PATH.")
@click.option("--to", "target_url", metavar="URL", required=True, help="The store to fill, which has to be empty.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied; change nothing.")
@json_option
@help_option
def copy(source_url: str, target_url: str, dry_run: bool, as_json: bool) -> None:
    """Copy all data, with its versions, to another back end. Both are compared afterwards."""
    source, target = _named("--from", source_url), _named("--to", target_url)
    must_exist(source)
    if source.path is not None and target.path is not None and _real(source.path) == _real(target.path):
        raise Failure(f"--from and --to are the same store: {source.path}")
    tallies = run(_rehearse(source_url, target) if dry_run else _copy(source_url, target))
    verb = "would copy" if dry_run else "copied"
    tell(tallies, f"{verb} {summary(tallies)} to {target_url}", as_json, dry_run=dry_run)


async def _copy(source_url: str, target: Storage) -> Tallies:
    from ...storage.remote.reach import reach_storage
    from ...storage.transfer import transfer

    async with reach_storage(source_url) as source, to_fill(target):
        with progress("copying", 2 * await size_of(source)) as told:
            async with source.snapshot() as snapshot:
                return await transfer(snapshot, target, told)


async def _rehearse(source_url: str, target: Storage) -> Tallies:
    from ...storage.remote.reach import reach_storage
    from ...storage.transfer import check_fillable, tally

    async with reach_storage(source_url) as source:
        with progress("counting", await size_of(source)) as told:
            async with source.snapshot() as snapshot:
                if target.path is not None and not target.path.exists():
                    _can_be_made(target.path)
                else:
                    async with to_fill(target):
                        await target.ping()
                        await check_fillable(snapshot, target)
                return await tally(snapshot, told)


def _named(flag: str, url: str) -> Storage:
    """The store, not open."""
    if url == "memory:":
        raise Failure(f"{flag} memory: nothing of it outlives a process")
    try:
        return make_storage(url)
    except ValueError as error:
        raise BadConfig([f"{flag}: {error}"]) from None


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _can_be_made(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(f"{path} cannot be made: {folder} is not {'writable' if folder.is_dir() else 'a folder'}")


# Shared with backup and restore


def must_exist(storage: Storage) -> None:
    """Ends the command where opening a store would make it."""
    if storage.path is not None and not storage.path.exists():
        raise Failure(f"there is no store at {storage.path}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of work on stores; ends the command where one fails."""
    try:
        return asyncio.run(work)
    except StorageError as error:
        raise Failure(str(error)) from None


@asynccontextmanager
async def to_fill(target: Storage) -> AsyncIterator[None]:
    """Opens a store that is to be filled: not through its server, whose APIs know already that it is empty."""
    place = target.path or "the store"
    try:
        async with target:
            yield
    except StorageLocked as error:
        raise Failure(f"{error}: stop it first, a store is filled while nobody uses it") from None
    except NotEmpty as error:
        raise Failure(f"{place}: {error}") from None


async def size_of(storage: Storage) -> int:
    """Its records, for a bar."""
    return sum([await storage.count(Query(collection)) for collection in storage.collections.values()])


@contextmanager
def progress(label: str, size: int) -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    with click.progressbar(length=size, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield bar.update


def tell(tallies: Tallies, text: str, as_json: bool, **more: object) -> None:
    """Prints what was dealt with."""
    rows = [
        {"name": name, "records": its.records, "tombstones": its.tombstones, "floor": its.floor}
        for name, its in sorted(tallies.items())
    ]
    click.echo(json.dumps({**more, "collections": rows}, indent=2) if as_json else text)


def summary(tallies: Tallies) -> str:
    """What was dealt with, in half a line."""
    records = sum([its.records for its in tallies.values()])
    tombstones = sum([its.tombstones for its in tallies.values()])
    filled = sum([bool(its.records or its.tombstones) for its in tallies.values()])
    return f"{_number(records, 'record')} and {_number(tombstones, 'deletion')} in {_number(filled, 'collection')}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
