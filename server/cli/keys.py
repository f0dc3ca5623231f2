"""`homeport keys`: API keys (contracts/leaderboard.md, "Keys")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

import click

from .options import Failure, config_option, configuration, help_option, json_option, on_store, storage_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...storage import Storage
    from ..api_keys import ApiKeys, Key

T = TypeVar("T")


def _username(context: click.Context, parameter: click.Parameter, given: str) -> str:
    from ..api_keys import USERNAME

    if not USERNAME.fullmatch(given):
        raise click.BadParameter("it has to be 3 to 50 of A-Z, a-z, 0-9, _ and -.")
    return given


def _scopes(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    from ..api_keys import SCOPES

    known = click.Choice(SCOPES)
    return tuple([known.convert(scope, parameter, context) for scope in given])


_username_argument = click.argument("username", callback=_username)


@click.group(
    epilog="\b\nExamples:\n"
    "  homeport keys create alice\n"
    "  homeport keys list --json\n\n"
    "A key is shown when it is made, and never again: the store has a hash of it. "
    "Where a server runs, it knows at once."
)
@help_option
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command(
    epilog="\b\nExamples:\n"
    "  homeport keys create alice > alice.key       may sync and read\n"
    "  homeport keys create alice --scope read      a further key, to read with\n"
    "  homeport keys create alice --json"
)
@_username_argument
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    multiple=True,
    callback=_scopes,
    help="What the key may do: sync, read, collections:read or collections:write; may be repeated.  "
    "[default: sync and read]",
)
@config_option
@storage_option
@json_option
@help_option
def create(username: str, scopes: tuple[str, ...], config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Make a key for a user, who may be new, and print it."""
    from ..api_keys import DEFAULT_SCOPES, UsernameTaken

    try:
        key, text = _with_keys(config_file, storage, lambda keys: keys.create(username, scopes or DEFAULT_SCOPES))
    except UsernameTaken as error:
        raise Failure(error.message) from None
    _show(key, text, f"{key.id} of {username}: keep it, it is not shown again", as_json)


@keys.command("list", epilog="\b\nExample:\n  homeport keys list --json")
@config_option
@storage_option
@json_option
@help_option
def list_(config_file: str | None, storage: str | None, as_json: bool) -> None:
    """List all keys, by their ids, which are no part of them."""
    from ..admin import describe

    rows = [describe(key) for key in _with_keys(config_file, storage, lambda keys: keys.list())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max([8, *(len(row["username"]) for row in rows)])
    click.echo(f"{'KEY ID':16}  {'USERNAME':{width}}  {'CREATED':24}  SCOPES" if rows else "no keys")
    for row in rows:
        click.echo(f"{row['id']:16}  {row['username']:{width}}  {row['created_at']}  {', '.join(row['scopes'])}")


@keys.command(
    epilog="\b\nExamples:\n  homeport keys rotate alice > alice.key\n  homeport keys rotate alice --json\n\n"
    "The old key is refused from then on. Where the user has several, the new one takes the place of all, "
    "and may do what they could together."
)
@_username_argument
@config_option
@storage_option
@json_option
@help_option
def rotate(username: str, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Put a new key in the place of a user's, and print it."""
    from ..api_keys import NoSuchKey

    try:
        key, text = _with_keys(config_file, storage, lambda keys: keys.rotate_user(username))
    except NoSuchKey:
        raise Failure(f"{username} has no key; see homeport keys list") from None
    _show(key, text, f"{key.id} of {username}, whose old keys are refused from now on: it is not shown again", as_json)


@keys.command(epilog="\b\nExample:\n  homeport keys revoke 9f86d081884c7d65    as `homeport keys list` prints it")
@click.argument("key_id")
@config_option
@storage_option
@json_option
@help_option
def revoke(key_id: str, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Remove a key: it is refused from then on. The user's other keys go on, and so does the name."""
    if not _with_keys(config_file, storage, lambda keys: keys.revoke(key_id)):
        raise Failure("no such key; see homeport keys list")
    click.echo(json.dumps({"id": key_id, "revoked": True}, indent=2) if as_json else f"{key_id} revoked")


def _with_keys(config_file: str | None, storage_url: str | None, work: Callable[[ApiKeys], Awaitable[T]]) -> T:
    config = configuration(config_file, storage__url=storage_url)

    from ..api_keys import KEYS, USERS, ApiKeys
    from ..clock import Clock

    async def on(storage: Storage) -> T:
        keys = ApiKeys(storage, Clock())
        try:
            return await work(keys)
        finally:
            keys.close()

    return on_store(config, (KEYS, USERS), on)


def _show(key: Key, text: str, note: str, as_json: bool) -> None:
    """The key alone on standard output, so that it can go into a file or a variable."""
    from ..admin import describe

    if as_json:
        click.echo(json.dumps(describe(key, text), indent=2))
    else:
        click.echo(text)
        click.echo(note, err=True)
