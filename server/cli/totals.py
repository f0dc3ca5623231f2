"""Whether the leaderboard's totals are what its entries come to, for `homeport check`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ...storage import StorageDamaged, make_storage
from .findings import Finding
from .options import Failure, on_store

if TYPE_CHECKING:
    from ...storage import Storage
    from ..config import Config

_SHOWN = 5
_RESTORE = "stop the server, keep a copy of the store as it is, and correct the record or put a backup in its place"


def totals(config: Config, *, repair: bool) -> Finding | None:
    """Looks at every user of the configured store, also while a server runs on it; ``repair``: and puts right.

    None where there is no store yet.
    """
    path = make_storage(config.storage.url).path
    if path is not None and not path.exists():
        return None

    from ..apis.leaderboard.documents import MONTHS, TOTALS, USERS

    try:
        found = on_store(config, (MONTHS, TOTALS, USERS), lambda storage: _audit(storage, repair=repair))
    except Failure as failure:
        return Finding("note", "totals", f"they were not looked at: {failure.reason}", "stop what has the store")
    if found is None:
        return Finding("note", "totals", "they are of an earlier version; a start brings them up to date")
    if isinstance(found, StorageDamaged):
        return Finding("fatal", "totals", str(found), _RESTORE)
    wrong, count = found
    if not wrong:
        return Finding("ok", "totals", f"those of {count:,} users are what their entries come to")
    names = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else "")
    if repair:
        return Finding("ok", "totals", f"rebuilt of {names}; {count:,} users were looked at")
    return Finding(
        "fatal", "totals", f"they are not what the entries come to, of {names}", "homeport check --repair-totals"
    )


async def _audit(storage: Storage, *, repair: bool) -> tuple[list[str], int] | StorageDamaged | None:
    """The users whose totals are, or were, wrong, and how many there are in all; None on a store of an earlier
    version; or which record cannot be read."""
    from ..apis.leaderboard.ledger import Ledger
    from ..apis.leaderboard.upgrading import check_unpacked, first_unpacked

    ledger = Ledger(storage)
    wrong, count = [], 0
    length = await ledger.count()
    hidden = not sys.stderr.isatty()
    try:
        if await first_unpacked(storage):
            await check_unpacked(storage)
            return None
        with click.progressbar(length=length, label="totals", file=sys.stderr, hidden=hidden) as progress:
            async for username in ledger.usernames():
                count += 1
                if not await ledger.audit(username, repair=repair):
                    wrong.append(username)
                progress.update(1)
    except StorageDamaged as error:
        return error
    return wrong, count
