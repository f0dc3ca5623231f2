"""Whether balances are what the ledgers come to; also while a server runs on the store, whose entries never change."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ....storage import Filter, Query, walk
from .documents import PROFILES, RESERVATIONS, TRANSACTIONS, Profile, Reservation, Transaction, entries_of, entry_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ....storage import Storage


async def audit(storage: Storage) -> AsyncIterator[tuple[str, str | None]]:
    """Everybody who has a profile, an entry of a ledger or a reservation, and what is wrong, if anything is."""
    # Read first: of each, the entry is there by now.
    reservations: defaultdict[str, dict[str, int]] = defaultdict(dict)
    async for record in walk(storage, Query(RESERVATIONS)):
        reservation = Reservation(**record.decode())
        reservations[reservation.user_id][record.id] = reservation.tokens
    async for user_id in _user_ids(storage):
        yield user_id, await _problem(storage, user_id, reservations.pop(user_id, {}))
    for user_id in reservations:
        yield user_id, "there are reservations, but no profile"


async def _user_ids(storage: Storage) -> AsyncIterator[str]:
    """Everybody who has a profile or an entry of a ledger, in order."""
    last = ""
    while True:
        first = [await storage.find(Query(c, (Filter("id", ">=", last),), limit=1)) for c in (PROFILES, TRANSACTIONS)]
        ids = [record.id.partition("/")[0] for page in first for record in page.records]
        if not ids:
            return
        yield min(ids)
        last = f"{min(ids)}0"  # "0" follows "/"


async def _problem(storage: Storage, user_id: str, reserved: Mapping[str, int]) -> str | None:
    record = (await storage.get(PROFILES, [user_id])).get(user_id)
    if record is None:
        return "there are entries, but no profile"
    profile = Profile.of(record.decode())
    balance = number = 0
    missing = dict(reserved)
    async for row in walk(storage, entries_of(user_id)):
        if number == profile.entries:
            break  # what follows came later than the profile was read
        number += 1
        entry = Transaction(**row.decode())
        balance += entry.tokens_amount
        if row.id != entry_id(user_id, number):
            return f"entry {number} is missing"
        if entry.tokens_balance_after != balance or balance < 0:
            return f"after entry {number} the balance is {entry.tokens_balance_after:,}, not {balance:,}"
        tokens = missing.pop(entry.transaction_id, None)
        if tokens is not None and entry.tokens_amount != -tokens:
            return f"entry {number} is of {-entry.tokens_amount:,} tokens, its reservation of {tokens:,}"
    if number < profile.entries:
        return f"entry {number + 1} is missing"
    if profile.tokens_balance != balance:
        return f"the balance is {profile.tokens_balance:,}, the ledger comes to {balance:,}"
    if not 0 <= profile.bought <= balance:
        return f"of {balance:,} tokens {profile.bought:,} are bought ones"
    if profile.monthly != (left := profile.allowances[-1].left):
        return f"{profile.monthly:,} of the tier's tokens are left, not {left:,}"
    if missing:
        return f"the reservation {min(missing)} has no entry"
    return None
