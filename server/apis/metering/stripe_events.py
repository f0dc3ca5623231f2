"""Stripe's events: what those that concern us say (docs.stripe.com/api/events). Whatever else they hold is dropped."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import msgspec

from ...errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...config import StripeConfig
    from .documents import Tier

log = logging.getLogger(__name__)

MAX_TOKENS = 10**12
"""Of one purchase."""
_TOKENS = re.compile(r"[1-9][0-9]{0,12}")


State = Literal["live", "suspended", "ended"]
"""Of a subscription: whether its tier is paid for. What has ended stays so."""

_STATES: dict[str, State] = {
    "active": "live",
    "trialing": "live",
    "past_due": "live",  # Stripe tries to collect the payment; what comes of that is another event
    "unpaid": "suspended",
    "paused": "suspended",
    "canceled": "ended",
    "incomplete_expired": "ended",
}
"""By Stripe's status. There is none of what has not begun (``incomplete``)."""


class Purchase(NamedTuple):
    """Tokens are paid for. ``checkout``: the session's id; two events may tell of one payment."""

    event_id: str
    user_id: str | None
    customer: str | None
    checkout: str
    tokens: int


class Start(NamedTuple):
    """A subscription is paid for, for the first time."""

    event_id: str
    user_id: str | None
    customer: str | None
    subscription: str
    tier: Tier


class Update(NamedTuple):
    """How a subscription stands. ``tier``: None where no price of ours is in it. ``at``: since when, in seconds since
    the epoch."""

    event_id: str
    user_id: str | None
    customer: str | None
    subscription: str
    tier: Tier | None
    state: State
    at: int


StripeEvent = Purchase | Start | Update


def read_event(document: Any, config: StripeConfig) -> StripeEvent | None:
    """What an event says; None where that is nothing to us.

    Raises `BadRequest` where it is not as Stripe's are: Stripe sends it again, and tells whose account it is.
    """
    kind = document.get("type") if isinstance(document, dict) else None
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        return None
    try:
        return read(msgspec.convert(document, _Event), config)
    except msgspec.ValidationError as error:
        log.error("an event is not as Stripe's are: %s", error)
        raise BadRequest("The event is not as Stripe's are") from error


class _Data(msgspec.Struct):
    object: dict[str, Any]


class _Event(msgspec.Struct):
    id: str
    type: str
    data: _Data
    created: int = 0


class _Session(msgspec.Struct):
    """Of a checkout."""

    id: str | None = None
    client_reference_id: str | None = None
    customer: str | None = None
    subscription: str | None = None
    payment_status: str | None = None
    metadata: dict[str, str] | None = None


class _Price(msgspec.Struct):
    id: str


class _Item(msgspec.Struct):
    price: _Price | None = None
    plan: _Price | None = None
    """As prices were called before 2020; a webhook speaks the version that the account is at."""


class _Items(msgspec.Struct):
    data: list[_Item] = []


class _Subscription(msgspec.Struct):
    id: str
    status: str = "active"
    customer: str | None = None
    metadata: dict[str, str] | None = None
    items: _Items | None = None


def _completed(event: _Event, config: StripeConfig) -> Purchase | Start | None:
    session = msgspec.convert(event.data.object, _Session)
    metadata = session.metadata or {}
    of = (event.id, metadata.get("user_id") or session.client_reference_id, session.customer)
    paid_later = event.type == "checkout.session.async_payment_succeeded"
    match metadata.get("type"):
        case "token_purchase" if paid_later or session.payment_status == "paid":
            tokens = metadata.get("tokens", "")
            if _TOKENS.fullmatch(tokens) and int(tokens) <= MAX_TOKENS:
                return Purchase(*of, session.id or event.id, int(tokens))
            log.error("the event %s is of a purchase of no number of tokens", event.id)
        case "subscription" if paid_later or session.payment_status != "unpaid":
            tier = _tier(metadata)
            if tier is not None:
                return Start(*of, session.subscription or session.id or event.id, tier)
            log.error("the event %s is of a subscription to no tier of ours", event.id)
    return None


def _updated(event: _Event, config: StripeConfig) -> Update | None:
    subscription = msgspec.convert(event.data.object, _Subscription)
    deleted = event.type == "customer.subscription.deleted"
    state = "ended" if deleted else _STATES.get(subscription.status)
    if state is None:
        return None
    metadata = subscription.metadata or {}
    prices = {config.pro_price: "pro", config.enterprise_price: "enterprise"}
    priced = [price.id for item in (subscription.items or _Items()).data for price in (item.price, item.plan) if price]
    tier = next((prices[id] for id in priced if id in prices), None)
    return Update(
        event_id=event.id,
        user_id=metadata.get("user_id"),
        customer=subscription.customer,
        subscription=subscription.id,
        tier=cast("Tier | None", tier) or _tier(metadata),
        state=state,
        at=event.created,
    )


def _tier(metadata: Mapping[str, str]) -> Tier | None:
    tier = metadata.get("tier")
    return cast("Tier", tier) if tier in ("pro", "enterprise") else None


_READERS: dict[str, Callable[[_Event, StripeConfig], StripeEvent | None]] = {
    "checkout.session.completed": _completed,
    "checkout.session.async_payment_succeeded": _completed,
    "customer.subscription.updated": _updated,
    "customer.subscription.deleted": _updated,
}
