"""The command `homeport` (contracts/cli.md)."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ... import __version__
from .options import help_option

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXAMPLE_CONFIG = Path(__file__).parents[2] / "config.example.toml"
_MODULES = {
    "backup": ".backup",
    "check": ".check",
    "copy": ".copy",
    "keys": ".keys",
    "licenses": ".licenses",
    "openapi": ".openapi",
    "restore": ".backup",
    "serve": ".serve",
    "users": ".users",
}
"""Where each command is, by its name; a server does not hold the others in memory."""


class _Cli(click.Group):
    """Imports a command when it is called, or when help names it. Reports what went wrong in one line, or in one line
    a problem, instead of three."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Click compares a misspelt one with all that it has.
        wanted = {cmd_name} if cmd_name in self.list_commands(ctx) else _MODULES.keys()
        for name in wanted - self.commands.keys():
            self.add_command(getattr(import_module(_MODULES[name], __name__), name))
        return super().get_command(ctx, cmd_name)

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


def main() -> NoReturn:
    """Run the command line of this process; exits 0, 1, or 2 for bad configuration or arguments."""
    cli(prog_name="homeport")
    raise AssertionError("click exits")
