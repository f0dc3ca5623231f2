"""`homeport check`: what stands in the way of serving, and its cure."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from .balances import balances
from .credentials import credentials
from .findings import Finding, clock, exposure, https, runtime
from .fitting import fitting
from .options import BadConfig, config_option, configuration, help_option, json_option, storage_option
from .stores import usable_store
from .totals import totals

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "fatal": "red"}


@click.command(
    epilog="\b\nExamples:\n  homeport check\n  homeport check --config /etc/homeport.toml --json\n"
    "  homeport check --repair-totals\n\n"
    "Exits 1 where a finding is fatal."
)
@config_option
@storage_option
@click.option("--repair-totals", is_flag=True, help="Rebuild the leaderboard's totals from its entries.")
@json_option
@help_option
def check(config_file: str | None, storage: str | None, repair_totals: bool, as_json: bool) -> None:
    """Look for what stands in the way, and name its cure. A server may run on the store."""
    found = _check(config_file, storage, repair_totals)
    fatal = any(finding.level == "fatal" for finding in found)
    if as_json:
        click.echo(json.dumps({"fatal": fatal, "findings": [finding._asdict() for finding in found]}, indent=2))
    else:
        _print(found)
    raise click.exceptions.Exit(1 if fatal else 0)


def _check(config_file: str | None, storage: str | None, repair_totals: bool) -> list[Finding]:
    found = [*runtime(), *clock()]
    try:
        config = configuration(config_file, storage__url=storage)
    except BadConfig as error:
        return [*(Finding("fatal", "configuration", problem) for problem in error.problems), *found]
    source = config.file or "defaults, environment and arguments"
    store = usable_store(config)
    audits: list[Finding | None] = []
    if store.level == "ok" and "leaderboard" in config.apis.enabled:
        audits.append(totals(config, repair=repair_totals))
    if store.level == "ok" and "metering" in config.apis.enabled:
        audits.append(balances(config))
    records = [*fitting(config, store=store.level == "ok")] if "collections" in config.apis.enabled else []
    return [
        Finding("ok", "configuration", source),
        store,
        *[audit for audit in audits if audit],
        *records,
        *exposure(config),
        *https(config),
        *credentials(config),
        *found,
    ]


def _print(found: Iterable[Finding]) -> None:
    """A line a finding, and one for its cure."""
    for level, subject, message, cure in found:
        click.echo(f"{click.style(level.ljust(8), fg=_COLOURS[level])} {subject:14} {message}")
        if cure:
            click.echo(f"{'':23} -> {cure}")
