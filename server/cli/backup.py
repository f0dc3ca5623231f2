"""`homeport backup` and `homeport restore` (contracts/cli.md); `storage.backup` describes the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .copy import must_exist, progress, run, size_of, summary, tell, to_fill
from .options import Failure, config_option, configuration, help_option, json_option, on_store, storage_option, store

if TYPE_CHECKING:
    from ...storage import Storage
    from ...storage.backup import Backup
    from ...storage.transfer import Tallies

_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.command(
    epilog="\b\nExamples:\n"
    "  homeport backup homeport.jsonl\n"
    "  homeport backup homeport.jsonl.gz    the same, compressed\n\n"
    "A server may go on meanwhile: the backup is what its store held at one moment. An older backup of that name is "
    "replaced when the new one is whole; any other file is left alone."
)
@_file_argument
@config_option
@storage_option
@json_option
@help_option
def backup(file: Path, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Write all data to one file, whether a server runs or not."""
    config = configuration(config_file, storage__url=storage)
    must_exist(store(config))

    async def work(storage: Storage) -> tuple[int, Tallies]:
        from ...storage.backup import write_backup

        with progress("writing", await size_of(storage)) as told:
            async with storage.snapshot() as snapshot:
                return snapshot.version, await write_backup(file, storage.id, snapshot, told)

    version, tallies = on_store(config, (), work)
    tell(tallies, f"wrote {summary(tallies)} to {file}", as_json, version=version)


@click.command(
    epilog="\b\nExample:\n"
    "  homeport restore homeport.jsonl --storage sqlite:homeport.db\n\n"
    "The file is read through before anything is written. The store has to be new or empty, and no server may run on "
    "it. Clients find that it is another store, and start over."
)
@_file_argument
@config_option
@storage_option
@json_option
@help_option
def restore(file: Path, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Fill an empty store from a backup."""
    config = configuration(config_file, storage__url=storage)
    if config.storage.url == "memory:":
        raise Failure("storage is memory: nothing of it outlives a process")
    found, tallies = run(_restore(file, store(config)))
    text = f"restored {summary(tallies)}, of {found.at[:16].replace('T', ' ')} UTC, to {config.storage.url}"
    tell(tallies, text, as_json, version=found.version)


async def _restore(file: Path, target: Storage) -> tuple[Backup, Tallies]:
    from ...storage.backup import read_backup
    from ...storage.transfer import transfer

    found = read_backup(file)
    async with to_fill(target):
        with progress("restoring", 2 * found.size) as told:
            return found, await transfer(found.snapshot(), target, told)
