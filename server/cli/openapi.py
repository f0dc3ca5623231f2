"""`homeport openapi`: the server's description of itself (contracts/cli.md)."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..config import ConfigError
from .options import BadConfig, Failure, config_option, configuration, help_option


@click.command(epilog="\b\nExamples:\n  homeport openapi --out openapi.json\n  homeport openapi --config homeport.toml")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it, instead of standard output.",
)
@config_option
@help_option
def openapi(out: Path | None, config_file: str | None) -> None:
    """Print the OpenAPI 3.1 document of what would be served."""
    config = configuration(config_file)

    from ..app import create_app
    from ..keys import OPENAPI

    try:
        document = create_app(config)[OPENAPI]()
    except ConfigError as error:
        raise BadConfig(error.problems) from None
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return
    try:
        out.write_text(f"{text}\n", "utf-8")
    except OSError as error:
        raise Failure(f"cannot write {out}: {error.strerror}") from None
