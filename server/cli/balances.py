"""Whether balances are what the ledgers of metering come to, for `homeport check`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ...storage import Query, make_storage
from .findings import Finding
from .options import Failure, on_store

if TYPE_CHECKING:
    from ...storage import Storage
    from ..config import Config

_SHOWN = 5
_RESTORE = "undo what was changed by hand, or keep a copy of the store as it is and put a backup in its place"


def balances(config: Config) -> Finding | None:
    """Adds up every ledger of the configured store, also while a server runs on it. None where there is no store."""
    path = make_storage(config.storage.url).path
    if path is not None and not path.exists():
        return None

    from ..apis.metering.documents import PROFILES, RESERVATIONS, TRANSACTIONS

    try:
        wrong, count = on_store(config, (PROFILES, TRANSACTIONS, RESERVATIONS), _audit)
    except Failure as failure:
        return Finding("note", "balances", f"they were not looked at: {failure.reason}", "stop what has the store")
    if not wrong:
        return Finding("ok", "balances", f"those of {count:,} profiles are what their ledgers come to")
    shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else "")
    return Finding(
        "fatal", "balances", f"{len(wrong):,} of {count:,} are not what the ledger comes to: {shown}", _RESTORE
    )


async def _audit(storage: Storage) -> tuple[list[str], int]:
    """What is wrong, profile by profile; and how many there are in all."""
    from ..apis.metering.audit import audit
    from ..apis.metering.documents import PROFILES

    wrong, count = [], 0
    length = await storage.count(Query(PROFILES))
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=length, label="balances", file=sys.stderr, hidden=hidden) as progress:
        async for user_id, problem in audit(storage):
            count += 1
            if problem is not None:
                wrong.append(f"{user_id}, {problem}")
            progress.update(1)
    return wrong, count
