"""What may happen to a profile's tokens: arithmetic alone, gathered for one commit.

However it is called, the balance stays at 0 or above and is the sum of the ledger, and of the balance at most as much
is bought as there is.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ....storage import ABSENT, Delete, Put
from ....storage.times import format_time
from ...errors import ApiError
from ...ids import new_id
from .allowances import Allowance, with_next, without
from .documents import (
    EMAILS,
    PROFILES,
    RESERVATIONS,
    TRANSACTIONS,
    Profile,
    Reservation,
    Tier,
    Transaction,
    TransactionType,
    entry_id,
    month_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ....storage import Write


class InsufficientTokens(ApiError):
    """402: the balance is below what is asked for; nothing was deducted."""

    status = HTTPStatus.PAYMENT_REQUIRED
    message = "Insufficient tokens"

    def __init__(self, required: int, balance: int) -> None:
        shortfall = required - balance
        super().__init__(
            extra={
                "tokens_required": required,
                "tokens_balance": balance,
                "tokens_shortfall": shortfall,
                "message": f"Need {required:,} tokens, you have {balance:,} tokens, shortfall: {shortfall:,} tokens",
                "required_tokens": required,
                "balance_tokens": balance,
            }
        )


class Account:
    """A profile as it is being changed. ``version``: the one that was read; ``now`` in microseconds since the epoch."""

    def __init__(self, profile: Profile, version: int, now: int) -> None:
        self.profile = profile
        self._version = version
        self._now = now
        self._read = profile
        self._also: list[Write] = []

    @classmethod
    def opened(cls, user_id: str, email: str, tier: Tier, tokens: int, now: int) -> Account:
        """A new profile, with the tokens that its tier begins with."""
        empty = Profile(
            user_id=user_id,
            email=email,
            subscription_tier=tier,
            tokens_balance=0,
            bought=0,
            tokens_used_this_month=0,
            month=month_of(now),
            allowances=[Allowance(1, tokens)],
            entries=0,
            created_at=format_time(now),
        )
        account = cls(empty, ABSENT, now)
        account._enter("monthly_refresh", tokens, f"Starting balance: {tier}")
        account.add([Put(EMAILS, email, {"user_id": user_id}, ABSENT)])
        return account

    @property
    def changed(self) -> bool:
        """Whether anything happened."""
        return self.profile is not self._read

    @property
    def writes(self) -> list[Write]:
        """What makes it so, all in one commit; nothing where nothing happened."""
        if not self.changed:
            return []
        return [Put(PROFILES, self.profile.user_id, self.profile._asdict(), self._version), *self._also]

    def spend(self, tokens: int, description: str, id: str | None = None) -> Transaction:
        """Takes tokens, the tier's first; ``id``: of the transaction. Raises `InsufficientTokens`."""
        profile = self.profile
        if tokens > profile.tokens_balance:
            raise InsufficientTokens(tokens, profile.tokens_balance)
        *earlier, present = profile.allowances
        return self._enter(
            "usage",
            -tokens,
            description,
            id,
            bought=min(profile.bought, profile.tokens_balance - tokens),
            allowances=[*earlier, present._replace(used=present.used + tokens)],
            tokens_used_this_month=profile.tokens_used_this_month + tokens,
        )

    def add(self, writes: Iterable[Write]) -> None:
        """What else goes into the commit, if anything does."""
        self._also += writes

    def reserve(self, id: str, tokens: int, description: str, until: int) -> Reservation:
        """Takes tokens that may be given back; ``id``: the transaction's. Raises `InsufficientTokens`."""
        self.spend(tokens, description, id)
        after = self.profile
        reservation = Reservation(
            transaction_id=id,
            user_id=after.user_id,
            tokens=tokens,
            tokens_balance=after.tokens_balance,
            description=description,
            allowance=after.allowances[-1].number,
            month=after.month,
            until=until,
        )
        self._also.append(Put(RESERVATIONS, id, reservation._asdict()))
        return reservation

    def give_back(self, reservation: Reservation, version: int) -> Transaction:
        """All is as if the tokens had not been reserved: what was spent meanwhile was spent of the tier's tokens, as
        far as they go, and more of the bought ones are left. The tier's come back too, unless they have been replaced,
        by a refresh or with the subscription."""
        profile, tokens = self.profile, reservation.tokens
        allowances = without(profile.allowances, reservation.allowance, tokens)
        beyond = sum([allowance.beyond for allowance in allowances])
        bought = sum([allowance.beyond for allowance in profile.allowances]) - beyond
        used = profile.tokens_used_this_month - (tokens if reservation.month == profile.month else 0)
        self._also.append(Delete(RESERVATIONS, reservation.transaction_id, version))
        return self._enter(
            "refund",
            bought + allowances[-1].left - profile.monthly,
            f"Given back: {reservation.description}",
            bought=profile.bought + bought,
            allowances=allowances,
            tokens_used_this_month=used,
        )

    def buy(self, tokens: int, description: str) -> Transaction:
        """Adds tokens that stay until they are spent."""
        return self._enter("purchase", tokens, description, bought=self.profile.bought + tokens)

    def change_tier(self, tier: Tier, tokens: int, *, anew: bool = False) -> Transaction:
        """The balance becomes the tier's tokens and the bought ones; that counts as the month's refresh.

        What was spent this month with another subscription counts here too, unless this one begins ``anew``: who
        changes it back and forth gets no more than the larger one has.
        """
        anew = self._begin(month_of(self._now)) or anew or not self.profile.renews
        return self._grant(tier, tokens, f"Subscription: {tier}", anew=anew)

    def refresh(self, month: str, tokens: int) -> bool:
        """Begins a month, unless it or a later one has begun; whether it did. ``tokens``: the tier's."""
        begins = self._begin(month)
        if begins and self.profile.renews:
            self._grant(self.profile.subscription_tier, tokens, f"Monthly refresh: {month}", anew=True)
        return begins

    def _begin(self, month: str) -> bool:
        # Not where another month is the present one: a clock that is set back and forth would begin it again.
        begins = month > self.profile.month
        if begins:
            self.profile = self.profile._replace(month=month, tokens_used_this_month=0)
        return begins

    def _grant(self, tier: Tier, tokens: int, description: str, *, anew: bool) -> Transaction:
        """Replaces what is left of the tier's tokens."""
        profile = self.profile
        allowances = with_next(profile.allowances, tokens, anew=anew)
        amount = allowances[-1].left - profile.monthly
        return self._enter("monthly_refresh", amount, description, subscription_tier=tier, allowances=allowances)

    def _enter(
        self, kind: TransactionType, amount: int, description: str, id: str | None = None, **changes: Any
    ) -> Transaction:
        """An entry of the ledger, and what else it changes of the profile."""
        profile = self.profile
        balance, number = profile.tokens_balance + amount, profile.entries + 1
        self.profile = profile._replace(tokens_balance=balance, entries=number, **changes)
        entry = Transaction(id or new_id(), kind, amount, balance, description, format_time(self._now))
        self._also.append(Put(TRANSACTIONS, entry_id(profile.user_id, number), entry._asdict()))
        return entry
