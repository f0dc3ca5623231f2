"""What Stripe's events come to: tokens that were bought, and the tier that a profile is subscribed to.

Stripe sends an event more than once, and events in any order. Each is applied once: what remembers it is written in the
commit of its effect. What several come to does not depend on their order (`subscriptions`), and a payment counts once,
whichever event tells of it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientSession, web

from ....storage import ABSENT, Collection, Field, Filter, Put, Query, retry
from ....storage.times import DAY, format_time
from ...errors import NotFound
from ...jobs import Job
from ...keys import CLOCK, CONFIG, STORAGE
from .ledger import LEDGER, AlreadyDone
from .stripe_api import STRIPE, Stripe
from .stripe_events import Purchase
from .subscriptions import Subscriber

if TYPE_CHECKING:
    from ....storage import Storage, Write
    from ...clock import Clock
    from .ledger import Ledger
    from .stripe_events import StripeEvent

log = logging.getLogger(__name__)

EVENTS = Collection("metering_stripe_events", (Field("received_at", "time", indexed=True),))
"""By Stripe's ids, the events that were applied."""
CHECKOUTS = Collection("metering_checkouts")
"""By Stripe's ids of checkout sessions, the purchases that were credited: ``user_id``, ``tokens``. They stay as the
ledger does: none is credited again when its event is forgotten."""
SUBSCRIBERS = Collection(
    "metering_subscribers", (Field("customer", "text", indexed=True), Field("subscription", "text", indexed=True))
)
"""By user id: `Subscriber`. The version is the fence of all that events do to a profile."""

_KEPT_FOR = 90 * DAY
"""Stripe sends an event again for three days of its own accord, and for thirty when asked."""


class Billing:
    """What profiles have paid for, on a store."""

    def __init__(self, storage: Storage, clock: Clock, ledger: Ledger) -> None:
        self._storage = storage
        self._clock = clock
        self._ledger = ledger

    async def customer(self, user_id: str) -> str | None:
        """Stripe's id of a profile, where it is known."""
        _, subscriber = await self._subscriber(user_id)
        return subscriber.customer

    async def _subscriber(self, user_id: str) -> tuple[int, Subscriber]:
        """With the version of its record."""
        record = (await self._storage.get(SUBSCRIBERS, [user_id])).get(user_id)
        return (record.version, Subscriber.of(record.decode())) if record else (ABSENT, Subscriber.of(None))

    async def apply(self, event: StripeEvent) -> None:
        """Does what an event says, unless that is done. One of nobody we know does nothing."""
        user_id = event.user_id or await self._user_of(event)
        if user_id is None:
            log.error("the Stripe event %s is of no profile", event.event_id)
            return

        async def attempt() -> None:
            if await self._storage.get(EVENTS, [event.event_id]):
                return
            try:
                await self._apply(event, user_id)
            except AlreadyDone as done:  # by another server
                raise done.__cause__ or done from None

        try:
            await retry(self._storage, [f"{SUBSCRIBERS.name}/{user_id}"], attempt)
        except NotFound:
            log.error("the Stripe event %s is of a profile that is not there: %.64r", event.event_id, user_id)

    async def _user_of(self, event: StripeEvent) -> str | None:
        """Whose an event is that names nobody."""
        known = {"customer": event.customer}
        if not isinstance(event, Purchase):
            known["subscription"] = event.subscription
        for field, value in known.items():
            if value is not None:
                page = await self._storage.find(Query(SUBSCRIBERS, (Filter(field, "==", value),), limit=1))
                if page.records:
                    return page.records[0].id
        return None

    async def _apply(self, event: StripeEvent, user_id: str) -> None:
        version, subscriber = await self._subscriber(user_id)
        subscriber = subscriber.known_as(event.customer)
        applied = Put(EVENTS, event.event_id, {"received_at": format_time(self._clock.now())}, ABSENT)
        if isinstance(event, Purchase):
            known = Put(SUBSCRIBERS, user_id, subscriber._asdict(), version)
            await self._credit(event, user_id, [applied, known])
            return
        before, after = subscriber.standing(event.subscription), subscriber.after(event)
        standing = after.standing(event.subscription)
        if standing.tier is None and (standing.state == "live" or event.user_id is None):
            # A customer of ours may subscribe to something else.
            log.error("the Stripe event %s is of a subscription to no tier of ours", event.event_id)
            return
        writes = [applied, Put(SUBSCRIBERS, user_id, after._asdict(), version)]
        begins = standing.begun and not before.begun
        if after.tier != "free":
            await self._ledger.subscribe(user_id, after.tier, writes, anew=begins)
        else:
            await self._ledger.unsubscribe(user_id, writes, late=begins)

    async def _credit(self, purchase: Purchase, user_id: str, writes: list[Write]) -> None:
        if await self._storage.get(CHECKOUTS, [purchase.checkout]):
            return
        credited = {"user_id": user_id, "tokens": purchase.tokens}
        writes.append(Put(CHECKOUTS, purchase.checkout, credited, ABSENT))
        await self._ledger.purchase(user_id, purchase.tokens, "Purchase", writes)

    async def forget_old(self) -> int:
        """Removes the events that Stripe no longer sends; returns how many."""
        return await self._storage.purge(Query(EVENTS, (Filter("received_at", "<", self._clock.now() - _KEPT_FOR),)))


BILLING = web.AppKey("metering_billing", Billing)
"""Set when the application starts, as is `STRIPE`."""


@asynccontextmanager
async def selling(app: web.Application) -> AsyncIterator[None]:
    """The application's `BILLING` and `STRIPE`."""
    app[BILLING] = Billing(app[STORAGE], app[CLOCK], app[LEDGER])
    async with ClientSession() as session:
        app[STRIPE] = Stripe(app[CONFIG].apis.metering.stripe, app[CLOCK], session)
        yield


async def _forget_old(app: web.Application) -> None:
    await app[BILLING].forget_old()


FORGET_OLD_EVENTS = Job("Stripe events", "40 3 * * *", _forget_old)
