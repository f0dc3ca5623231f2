"""`homeport licenses`: who may spend tokens, and on which devices (contracts/metering.md, "Who")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from .options import Failure, config_option, configuration, help_option, json_option, on_store, storage_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...storage import Storage
    from ..apis.metering.documents import Profile, Tier
    from ..apis.metering.ledger import Ledger
    from ..apis.metering.licenses import License, Licenses

T = TypeVar("T")

_TIERS = ("free", "pro", "enterprise")


def _checked(check: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """For an option, what `licenses` checks it with."""

    def callback(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
        from ..apis.metering import licenses

        try:
            return None if given is None else cast("str", getattr(licenses, check)(given))
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from None

    return callback


@click.group(
    epilog="\b\nExamples:\n"
    "  homeport licenses create --email a@example.com\n"
    "  homeport licenses list --json\n\n"
    "A key is shown when it is made, and never again: the store has a hash of it. "
    "Where a server runs, it knows at once."
)
@help_option
def licenses() -> None:
    """Create, list and switch licenses, and grant tokens."""


@licenses.command(
    epilog="\b\nExamples:\n"
    "  homeport licenses create --email a@example.com --tier pro > a.key\n"
    "  homeport licenses create --email a@example.com --device-name Laptop\n"
    "  homeport licenses create --email a@example.com --key ABCD-1234-EFGH-5678\n\n"
    "Somebody who has a license gets one for a further device, with the same tokens."
)
@click.option("--email", required=True, callback=_checked("checked_email"), help="Whose it is; they may be new.")
@click.option("--tier", type=click.Choice(_TIERS), help="What somebody new starts with.  [default: free]")
@click.option(
    "--device-name",
    metavar="NAME",
    default="Desktop",
    callback=_checked("checked_device_name"),
    help="What people call the device.  [default: Desktop]",
)
@click.option("--key", callback=_checked("checked_key"), help="The key, XXXX-XXXX-XXXX-XXXX.  [default: a random one]")
@config_option
@storage_option
@json_option
@help_option
def create(
    email: str,
    tier: Tier | None,
    device_name: str,
    key: str | None,
    config_file: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Make a license for a device, and print its key."""

    async def work(licenses: Licenses, ledger: Ledger) -> tuple[License, str, Profile]:
        license_, text = await licenses.create(email, tier, device_name, key)
        return license_, text, await ledger.profile(license_.user_id)

    license_, text, profile = _with_licenses(config_file, storage, work)
    if as_json:
        click.echo(json.dumps(_describe(license_, profile) | {"key": text}, indent=2))
    else:  # the key alone on standard output, so that it can go into a file or a variable
        click.echo(text)
        click.echo(
            f"{license_.license_id} of {email}, {profile.subscription_tier}: keep it, it is not shown again", err=True
        )


@licenses.command("list", epilog="\b\nExample:\n  homeport licenses list --json")
@config_option
@storage_option
@json_option
@help_option
def list_(config_file: str | None, storage: str | None, as_json: bool) -> None:
    """List all licenses, by ids that are no part of the keys."""

    async def work(licenses: Licenses, ledger: Ledger) -> list[dict[str, Any]]:
        return [_describe(*found) async for found in licenses.list()]

    rows = _with_licenses(config_file, storage, work)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max([5, *(len(row["email"]) for row in rows)])
    click.echo(f"{'LICENSE ID':36}  {'EMAIL':{width}}  {'TIER':10}  {'STATE':8}  DEVICE" if rows else "no licenses")
    for row in rows:
        state = "inactive" if not row["is_active"] else "bound" if row["is_bound"] else "unbound"
        click.echo(f"{row['license_id']}  {row['email']:{width}}  {row['tier']:10}  {state:8}  {row['device_name']}")


def _switch(name: str, done: str, summary: str, more: str) -> None:
    """A command that changes one license, by the method of that name."""

    @licenses.command(
        name,
        help=summary,
        epilog=f"\b\nExample:\n  homeport licenses {name} ID    as `homeport licenses list` prints it\n\n{more}",
    )
    @click.argument("license_id", metavar="ID")
    @config_option
    @storage_option
    @json_option
    @help_option
    def switch(license_id: str, config_file: str | None, storage: str | None, as_json: bool) -> None:
        async def work(licenses: Licenses, ledger: Ledger) -> dict[str, Any]:
            license_ = await getattr(licenses, name)(license_id)
            return _describe(license_, await ledger.profile(license_.user_id))

        row = _with_licenses(config_file, storage, work)
        click.echo(json.dumps(row, indent=2) if as_json else f"{license_id} {done}")


_switch("activate", "is active", "Let a device in again.", "The device keeps the machine that it was bound to.")
_switch(
    "deactivate",
    "is not active",
    "Keep a device out, from its next request on.",
    "`homeport licenses activate` lets it in again.",
)
_switch("reset", "is bound to no machine", "Unbind a license from its machine.", "The next machine that asks is bound.")


@licenses.command(epilog="\b\nExample:\n  homeport licenses grant a@example.com 100000")
@click.argument("email", callback=_checked("checked_email"))
@click.argument("tokens", type=click.IntRange(1, 10**12))
@config_option
@storage_option
@json_option
@help_option
def grant(email: str, tokens: int, config_file: str | None, storage: str | None, as_json: bool) -> None:
    """Give tokens to somebody, which stay until they are spent."""

    async def work(licenses: Licenses, ledger: Ledger) -> dict[str, Any]:
        entry = await ledger.purchase(await licenses.user_id(email), tokens, "Granted")
        return {
            "email": email,
            "tokens_granted": tokens,
            "tokens_balance": entry.tokens_balance_after,
            "transaction_id": entry.transaction_id,
        }

    done = _with_licenses(config_file, storage, work)
    click.echo(json.dumps(done, indent=2) if as_json else f"{email} has {done['tokens_balance']:,} tokens")


def _describe(license_: License, profile: Profile) -> dict[str, Any]:
    return {
        "license_id": license_.license_id,
        "user_id": license_.user_id,
        "device_id": license_.device_id,
        "email": profile.email,
        "tier": profile.subscription_tier,
        "tokens_balance": profile.tokens_balance,
        "device_name": license_.device_name,
        "is_active": license_.is_active,
        "is_bound": license_.device_fingerprint is not None,
        "created_at": license_.created_at,
    }


def _with_licenses(
    config_file: str | None, storage_url: str | None, work: Callable[[Licenses, Ledger], Awaitable[T]]
) -> T:
    config = configuration(config_file, storage__url=storage_url)

    from ..apis.metering.documents import EMAILS, PROFILES, RESERVATIONS, TRANSACTIONS
    from ..apis.metering.ledger import Ledger
    from ..apis.metering.licenses import LICENSES, SECRETS, LicenseError, Licenses
    from ..clock import Clock

    async def on(storage: Storage) -> T:
        clock = Clock()
        ledger = Ledger(storage, clock, config.apis.metering)
        return await work(Licenses(storage, clock, ledger), ledger)

    try:
        return on_store(config, (PROFILES, EMAILS, TRANSACTIONS, RESERVATIONS, LICENSES, SECRETS), on)
    except LicenseError as error:
        raise Failure(str(error)) from None
