"""The documents of metering's ledger: profiles, what happened to their tokens, and reservations.

Ids are built to be scanned: the entries of a profile are ``<user_id>/0000000001`` and on, in the order in which they
were committed, whatever the clock did.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ....storage import Collection, Query, starts_with
from ....storage.times import format_time
from .allowances import Allowance

Tier = Literal["free", "pro", "enterprise"]
TransactionType = Literal["usage", "purchase", "refund", "monthly_refresh"]

PROFILES = Collection("metering_profiles")
"""By user id. The version is the fence of all that happens to a profile's tokens."""
EMAILS = Collection("metering_emails")
"""By email, of which a profile has one: the ``user_id``. An index of profiles would be written with every spending."""
TRANSACTIONS = Collection("metering_transactions")
"""The ledger. Entries are never changed, and stay as long as their profile: their sum is its balance."""
RESERVATIONS = Collection("metering_reservations")
"""By the id of the transaction that took the tokens; gone once settled or given back."""

_DIGITS = 10


class Profile(NamedTuple):
    """Who has tokens. ``tokens_balance`` is what a tier gave, unspent, and ``bought``, unspent; the former goes first.

    ``month``: of the last refresh, as YYYY-MM; the profile's creation and the start of a subscription are one.
    ``allowances``: what its tiers gave, the present one last. ``entries``: how many there are in the ledger.
    """

    user_id: str
    email: str
    subscription_tier: Tier
    tokens_balance: int
    bought: int
    tokens_used_this_month: int
    month: str
    allowances: list[Allowance]
    entries: int
    created_at: str

    @classmethod
    def of(cls, document: dict[str, Any]) -> Profile:
        """From what is kept of it."""
        return cls(**document | {"allowances": [Allowance(*kept) for kept in document["allowances"]]})

    @property
    def monthly(self) -> int:
        """Whether or not they come each month: the tier's tokens that are left."""
        return self.tokens_balance - self.bought

    @property
    def renews(self) -> bool:
        """Whether the tier's tokens come each month."""
        return self.subscription_tier != "free"

    @property
    def token_refresh_date(self) -> str | None:
        """When they come next, in whole seconds."""
        return f"{next_month(self.month)}-01T00:00:00Z" if self.renews else None


class Transaction(NamedTuple):
    """An entry of the ledger; ``tokens_amount`` is what the balance grew by."""

    transaction_id: str
    transaction_type: TransactionType
    tokens_amount: int
    tokens_balance_after: int
    description: str
    created_at: str


class Reservation(NamedTuple):
    """Tokens that were taken before it is known whether they are spent.

    ``transaction_id``: the ledger's entry, and the id. ``tokens_balance``: after it. ``allowance``: the number of the
    profile's, and ``month``: its own, at the time. ``until``: when nobody works on it any more; microseconds since the
    epoch.
    """

    transaction_id: str
    user_id: str
    tokens: int
    tokens_balance: int
    description: str
    allowance: int
    month: str
    until: int


def entry_id(user_id: str, number: int) -> str:
    """The id of a profile's ``number``-th entry, from 1 on."""
    return f"{user_id}/{number:0{_DIGITS}}"


def entries_of(user_id: str, **paging: Any) -> Query:
    """The entries of a profile; ``paging`` and ``sort`` as of a `Query`."""
    return Query(TRANSACTIONS, starts_with(f"{user_id}/"), **paging)


def month_of(now: int) -> str:
    """The calendar month in UTC, as YYYY-MM."""
    return format_time(now)[:7]


def next_month(month: str) -> str:
    """The month after one."""
    year, number = map(int, month.split("-"))
    return f"{year + number // 12:04}-{number % 12 + 1:02}"
