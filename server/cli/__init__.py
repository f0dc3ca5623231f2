"""The command `homeport` (contracts/cli.md)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ... import __version__
from .backup import backup, restore
from .check import check
from .copy import copy
from .keys import keys
from .licenses import licenses
from .openapi import openapi
from .options import help_option
from .serve import serve
from .users import users

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXAMPLE_CONFIG = Path(__file__).parents[2] / "config.example.toml"


class _Cli(click.Group):
    """Reports what went wrong in one line, or in one line a problem, instead of three."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "homeport"
            click.echo(f"{command}: {error.format_message()} See {command} --help.", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(1)
        if standalone_mode:
            sys.exit(code)
        return code


@click.group(
    cls=_Cli,
    context_settings={"max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  homeport serve                           on http://127.0.0.1:8000\n"
    "  homeport example-config > homeport.toml  every setting, to change\n"
    "  homeport check                           before you serve",
)
@click.version_option(__version__, message="%(prog)s %(version)s", help="Print the version.")
@help_option
def cli() -> None:
    """A self-hosted sync server: devices push JSON, it is checked, and kept."""


@cli.command("example-config", epilog="\b\nExample:\n  homeport example-config > homeport.toml")
@help_option
def example_config() -> None:
    """Print a configuration file with every setting."""
    click.echo(_EXAMPLE_CONFIG.read_text("utf-8"), nl=False)


cli.add_command(serve)
cli.add_command(check)
cli.add_command(keys)
cli.add_command(licenses)
cli.add_command(users)
cli.add_command(copy)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(openapi)


def main() -> NoReturn:
    """Run the command line of this process; exits 0, 1, or 2 for bad configuration or arguments."""
    cli(prog_name="homeport")
    raise AssertionError("click exits")
