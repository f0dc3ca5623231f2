"""What commands share: the options that say which configuration, and how a command fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...storage import StorageError, make_storage
from ..config import ConfigError, load_config
from ..config.settings import defaults

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ...storage import Collection, Storage
    from ..config import Config

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

help_option = click.help_option(help="Print this page.")
config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="The configuration file.  [default: $HOMEPORT_CONFIG, else ./homeport.toml]",
)
storage_option = click.option(
    "--storage",
    metavar="URL",
    help="memory:, file:PATH or sqlite:PATH.  [default: SQLite in your data folder]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def setting_option(flag: str, name: str, metavar: str, text: str) -> Callable[[_F], _F]:
    """An option for a setting; ``text`` is its help, to which the default is added."""
    return click.option(flag, metavar=metavar, help=f"{text}  [default: {defaults()[name]}]")


class Failure(click.ClickException):
    """Ends the command: one line, exit code 1."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"homeport: {reason}")
        self.reason = reason


class BadConfig(click.ClickException):
    """Ends the command: one line a problem, exit code 2."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def configuration(file: str | None, **settings: object) -> Config:
    """The configuration; ``settings`` are what arguments gave, `server__port` for `server.port`, or None.

    Raises `BadConfig`.
    """
    given = {name.replace("__", "."): value for name, value in settings.items() if value is not None}
    try:
        return load_config(file, overrides=given)
    except ConfigError as error:
        raise BadConfig(error.problems) from None


def store(config: Config) -> Storage:
    """The configured store, not yet open. Raises `BadConfig` where there is no such back end."""
    try:
        return make_storage(config.storage.url)
    except ValueError as error:
        raise BadConfig([f"storage.url: {error}"]) from None


def on_store(config: Config, collections: tuple[Collection, ...], work: Callable[[Storage], Awaitable[_T]]) -> _T:
    """The result of ``work`` on the configured store, whether a server runs on it or not.

    Raises `BadConfig`, and `Failure` where the store cannot be had or fails.
    """
    if config.storage.url == "memory:":
        raise Failure("storage is memory: nothing of it outlives a process")
    store(config)

    from ...storage.remote.reach import reach_storage

    async def run() -> _T:
        async with reach_storage(config.storage.url, collections) as storage:
            return await work(storage)

    try:
        return asyncio.run(run())
    except StorageError as error:
        raise Failure(str(error)) from None
