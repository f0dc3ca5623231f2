"""`homeport users`: who may report device usage where registration is closed (contracts/device-usage.md, "Limits")."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...storage import StorageError
from .options import Failure, config_option, configuration, help_option, json_option, storage_option, store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..apis.device_usage.ledger import Ledger

T = TypeVar("T")

_KEY = re.compile(r"[0-9A-Fa-f]{64}")


def _checked(context: click.Context, parameter: click.Parameter, key: str) -> str:
    """The key is a password: an error does not repeat it."""
    if not _KEY.fullmatch(key):
        raise click.BadParameter("it has to be 64 hexadecimal digits, such as `openssl rand -hex 32` prints.")
    return key.lower()


@click.group(
    epilog="\b\nExamples:\n"
    '  homeport users add "$(openssl rand -hex 32)"\n'
    "  homeport users list --json\n\n"
    'With apis.device_usage.registration = "closed" only these users may report.'
)
@help_option
def users() -> None:
    """Add, list and remove users of the device-usage API."""


@users.command(epilog="\b\nExample:\n  homeport users add 0123…cdef   64 hexadecimal digits")
@click.argument("key", callback=_checked)
@config_option
@storage_option
@json_option
@help_option
def add(key: str, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Let a user key report where registration is closed."""
    from ..apis.device_usage.ledger import user_id

    user = user_id(key)
    added = _with_ledger(config_file, storage, lambda ledger: ledger.register(user, registered=True))
    _tell({"user": user, "added": added}, f"{user} {'added' if added else 'was added before'}", as_json)


@users.command("list", epilog="\b\nExample:\n  homeport users list --json")
@config_option
@storage_option
@json_option
@help_option
def list_(config_file: str | None, storage: str | None, as_json: bool) -> None:
    """List all users, by a hash of their keys."""
    found = _with_ledger(config_file, storage, lambda ledger: ledger.users())
    rows = [{"user": user, "devices": state["devices"], "added": state["registered"]} for user, state in found]
    lines = [f"{row['user']}  {row['devices']:3} devices{'' if row['added'] else ', not added'}" for row in rows]
    _tell(rows, "\n".join(lines) or "no users", as_json)


@users.command(epilog="\b\nExample:\n  homeport users remove 0123…cdef   a key, or a user as `list` prints them")
@click.argument("key")
@config_option
@storage_option
@json_option
@help_option
def remove(key: str, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Take it back: the user may no longer report. What is there stays until it is old."""
    from ..apis.device_usage.ledger import user_id

    user = user_id(key) if _KEY.fullmatch(key) else key
    if not _with_ledger(config_file, storage, lambda ledger: ledger.register(user, registered=False)):
        raise Failure("no such user was added")
    _tell({"user": user, "removed": True}, f"{user} removed", as_json)


def _with_ledger(config_file: str | None, storage_url: str | None, work: Callable[[Ledger], Awaitable[T]]) -> T:
    """The result of ``work`` on the configured store."""
    config = configuration(config_file, storage__url=storage_url)
    if config.storage.url == "memory:":
        raise Failure("storage is memory: nothing of it outlives a process")

    from ..apis.device_usage.ledger import USERS, Ledger

    async def run() -> T:
        async with store(config) as storage:
            await storage.declare(USERS)
            return await work(Ledger(storage))

    try:
        return asyncio.run(run())
    except StorageError as error:
        raise Failure(str(error)) from None


def _tell(document: Any, text: str, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2) if as_json else text)
