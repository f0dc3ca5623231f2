"""`homeport users`: who may report device usage where registration is closed (contracts/device-usage.md, "Limits")."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import Failure, config_option, configuration, help_option, json_option, on_store, storage_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..apis.device_usage.ledger import Ledger

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")

_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_KEY_OR_USER = re.compile(r"[0-9A-Fa-f]{64}|[0-9a-f]{32}")


def _key_argument(form: re.Pattern[str], wanted: str) -> Callable[[F], F]:
    """The argument KEY, with ``-`` for a line of standard input. It is a password: no error repeats it."""

    def checked(context: click.Context, parameter: click.Parameter, given: str) -> str:
        key = sys.stdin.readline().strip() if given == "-" else given
        if not form.fullmatch(key):
            raise click.BadParameter(f"it has to be {wanted}.")
        return key

    return click.argument("key", callback=checked)


@click.group(
    epilog="\b\nExamples:\n"
    "  openssl rand -hex 32 | tee key | homeport users add -\n"
    "  homeport users list --json\n\n"
    'With apis.device_usage.registration = "closed" only these users may report. '
    "Where a server runs, it knows at once."
)
@help_option
def users() -> None:
    """Add, list and remove users of the device-usage API."""


@users.command(
    epilog="\b\nExamples:\n"
    "  homeport users add 0123…cdef    64 hexadecimal digits\n"
    "  homeport users add - < key      the same, unseen by the shell's history"
)
@_key_argument(_KEY, "64 hexadecimal digits, such as `openssl rand -hex 32` prints")
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
    rows = [{"user": user, "devices": state["devices"], "registered": state["registered"]} for user, state in found]
    lines = [f"{'USER':32}  DEVICES  REGISTERED"] if rows else ["no users"]
    lines += [f"{row['user']}  {row['devices']:7}  {'yes' if row['registered'] else 'no'}" for row in rows]
    _tell(rows, "\n".join(lines), as_json)


@users.command(
    epilog="\b\nExamples:\n"
    "  homeport users remove - < key\n"
    "  homeport users remove 0123…cdef    a key, or a user as `list` prints them"
)
@_key_argument(_KEY_OR_USER, "64 hexadecimal digits, or a user as `homeport users list` prints them")
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
    config = configuration(config_file, storage__url=storage_url)

    from ..apis.device_usage.ledger import USERS, Ledger

    return on_store(config, (USERS,), lambda storage: work(Ledger(storage)))


def _tell(document: Any, text: str, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2) if as_json else text)
