"""The ledger: profiles, and every token that they get, spend, reserve and have back.

A profile and its new entries are written in one commit, with the profile's version as the fence and under its lock:
whoever else changes it in between tries again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from aiohttp import web

from ....storage import Conflict, Delete, Query, Storage, StorageError, Write, retry, walk
from ....storage.times import HOUR, SECOND
from ...errors import ApiError, NotFound
from ...ids import new_id
from ...keys import CLOCK, CONFIG, STORAGE
from .account import Account
from .documents import PROFILES, RESERVATIONS, Profile, Reservation, Tier, Transaction
from .spending import Spending, Turn

if TYPE_CHECKING:
    from ....storage import Record
    from ...clock import Clock
    from ...config import MeteringConfig

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_HELD: WeakKeyDictionary[Storage, set[str]] = WeakKeyDictionary()
"""The reservations on a store that somebody in this process works on."""


_MAX_KNOWN = 10_000
"""Profiles; some 700 bytes each."""


class AlreadyDone(Exception):
    """What was to be written together with a change is there already, or gone already: somebody else has done it."""


class Ledger:
    """The profiles on a store. Whatever is done to one raises `NotFound` where there is none."""

    def __init__(self, storage: Storage, clock: Clock, config: MeteringConfig) -> None:
        self._storage = storage
        self._clock = clock
        self._tiers = config.tiers
        self._longest = config.transcription.timeout * SECOND + HOUR
        self._spending = Spending(self._change)
        self._held = _HELD.setdefault(storage, set())
        # As they were committed last, the latest at the end. What is committed on the strength of it has the version
        # as its fence.
        self._known: OrderedDict[str, tuple[Profile, int]] = OrderedDict()

    def starting_balance(self, tier: Tier) -> int:
        """The tokens that a tier begins with."""
        tokens: int = getattr(self._tiers, tier)
        return tokens

    def opened(self, user_id: str, email: str, tier: Tier) -> list[Write]:
        """The writes of a new profile, with its starting balance. In their commit, `Conflict` means that the email has
        one."""
        return Account.opened(user_id, email, tier, self.starting_balance(tier), self._clock.now()).writes

    async def profile(self, user_id: str) -> Profile:
        """A profile as it is now."""
        return _profile(await self._record(user_id))

    async def _record(self, user_id: str) -> Record:
        record = (await self._storage.get(PROFILES, [user_id])).get(user_id)
        if record is None:
            raise NotFound("No such profile")
        return record

    async def _change(self, user_id: str, turn: Turn[_T], writes: Sequence[Write] = ()) -> _T:
        """What ``turn`` does to a profile, in one commit with other ``writes``. Raises `AlreadyDone` where one of those
        has a version that does not hold."""

        async def attempt() -> _T:
            known = self._known.pop(user_id, None)
            if known is not None:
                account = Account(*known, self._clock.now())
                with suppress(ApiError):
                    result = turn(account)
                    if account.changed:
                        return await self._commit(account, writes, result)
            # Nothing came of it, or nobody knew: it is decided by what there is now.
            record = await self._record(user_id)
            account = Account(_profile(record), record.version, self._clock.now())
            return await self._commit(account, writes, turn(account))

        return await retry(self._storage, [f"{PROFILES.name}/{user_id}"], attempt)

    async def _commit(self, account: Account, writes: Sequence[Write], result: _T) -> _T:
        changes = account.writes
        try:
            if changes or writes:
                commit = await self._storage.commit([*changes, *writes])
        except Conflict as conflict:
            if conflict.collection != PROFILES.name:
                raise AlreadyDone from conflict
            raise
        if changes:
            profile = account.profile
            self._known[profile.user_id] = profile, commit.versions[0]
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return result

    # Spending

    async def consume(
        self, user_id: str, tokens: int, description: str, also: Callable[[Transaction], Iterable[Write]]
    ) -> Transaction:
        """Spends tokens. ``also``: what goes into the same commit, such as what is remembered of the answer; writes
        without preconditions, to records that nobody else writes. Raises `InsufficientTokens`."""

        def turn(account: Account) -> Transaction:
            entry = account.spend(tokens, description)
            account.add(also(entry))
            return entry

        return await self._spending.take(user_id, turn)

    async def reserve(self, user_id: str, tokens: int, description: str) -> Reservation:
        """Takes tokens until it is known whether they are spent: that is, until `settle` or `release`. Raises
        `InsufficientTokens`."""
        id = new_id()
        until = self._clock.now() + self._longest
        self._held.add(id)
        try:
            return await self._spending.take(user_id, lambda account: account.reserve(id, tokens, description, until))
        except BaseException:
            self._held.discard(id)
            raise

    async def settle(self, reservation: Reservation, writes: Sequence[Write] = ()) -> None:
        """The reserved tokens are spent; ``writes`` go into the same commit. Raises `AlreadyDone` where they were given
        back meanwhile."""
        id = reservation.transaction_id
        record = (await self._storage.get(RESERVATIONS, [id])).get(id)
        if record is None:
            raise AlreadyDone
        try:
            await self._storage.commit([Delete(RESERVATIONS, id, record.version), *writes])
        except Conflict as conflict:
            raise AlreadyDone from conflict
        self._held.discard(id)

    async def release(self, reservation: Reservation) -> None:
        """Gives the reserved tokens back, unless that was done, or they are spent. Where it fails,
        `give_back_abandoned` does it later."""
        id = reservation.transaction_id
        try:
            record = (await self._storage.get(RESERVATIONS, [id])).get(id)
            if record is not None:
                version = record.version
                await self._change(reservation.user_id, lambda account: account.give_back(reservation, version))
        except AlreadyDone:
            log.debug("reservation %s was settled or given back by somebody else", id)
        finally:
            self._held.discard(id)

    async def give_back_abandoned(self) -> int:
        """Gives back what nobody works on any more, as after a crash; returns how many reservations.

        A store on this machine's disk is one process's; of one that others may use too, a reservation's time must be
        over.
        """
        count = 0
        async for record in walk(self._storage, Query(RESERVATIONS)):
            reservation = Reservation(**record.decode())
            alone = self._storage.path is not None
            if record.id not in self._held and (alone or reservation.until <= self._clock.now()):
                await self.release(reservation)
                count += 1
        if count:
            log.warning("gave back %d reservations that nobody worked on", count)
        return count

    # Getting tokens

    async def purchase(self, user_id: str, tokens: int, description: str, writes: Sequence[Write] = ()) -> Transaction:
        """Adds bought tokens; ``writes`` go into the same commit. Raises `AlreadyDone` where a version in those does
        not hold."""
        return await self._change(user_id, lambda account: account.buy(tokens, description), writes)

    async def subscribe(self, user_id: str, tier: Tier, writes: Sequence[Write] = (), *, anew: bool = False) -> Profile:
        """Makes a tier the profile's, with its starting balance and what is left of the bought tokens; where it is the
        profile's already, only the ``writes`` are done. Where it takes another's place, what was spent of that this
        month is spent, unless it was paid for ``anew``. Raises `AlreadyDone` as `purchase` does."""

        def turn(account: Account) -> Profile:
            if account.profile.subscription_tier != tier:
                account.change_tier(tier, self.starting_balance(tier), anew=anew)
            return account.profile

        return await self._change(user_id, turn, writes)

    async def unsubscribe(self, user_id: str, writes: Sequence[Write] = (), *, late: bool = False) -> Profile:
        """Back to free: what is left of the tier's tokens goes, bought ones stay; where the profile is free already,
        only the ``writes`` are done. ``late``: free as it is, it had a subscription, of whose start was told after its
        end: that had replaced the tier's tokens. Raises `AlreadyDone` as `purchase` does."""

        def turn(account: Account) -> Profile:
            if late or account.profile.renews:
                account.change_tier("free", 0)
            return account.profile

        return await self._change(user_id, turn, writes)

    async def refresh(self, user_id: str, month: str) -> bool:
        """Begins a month (YYYY-MM) for a profile, unless it or a later one has begun; whether it did."""
        return await self._change(
            user_id,
            lambda account: account.refresh(month, self.starting_balance(account.profile.subscription_tier)),
        )


def _profile(record: Record) -> Profile:
    return Profile.of(record.decode())


LEDGER = web.AppKey("metering_ledger", Ledger)
"""Set when the application starts."""


@asynccontextmanager
async def bookkeeping(app: web.Application) -> AsyncIterator[None]:
    """The application's `LEDGER`, once what a crash left reserved is given back."""
    app[LEDGER] = Ledger(app[STORAGE], app[CLOCK], app[CONFIG].apis.metering)
    try:
        await app[LEDGER].give_back_abandoned()
    except StorageError:
        log.exception("reservations that a crash left could not be given back yet")
    yield
