"""What Stripe's events say of a profile's subscriptions, gathered: the same in whatever order they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .stripe_events import Start

if TYPE_CHECKING:
    from .documents import Tier
    from .stripe_events import State, Update

MAX_ENDED = 32
"""How many subscriptions of a profile that have ended are remembered."""

_RANKS: tuple[Tier, ...] = ("free", "pro", "enterprise")


class Standing(NamedTuple):
    """How a subscription stands. ``tier``, ``state``: None where no event has told. ``at``: since when, in seconds
    since the epoch. ``begun``: whether it was ever paid for."""

    tier: Tier | None = None
    state: State | None = None
    at: int = 0
    begun: bool = False

    def after(self, event: Start | Update) -> Standing:
        """With what an event tells: a start is older than every update, an end the last that happens, and of the
        other updates the latest counts."""
        if isinstance(event, Start):
            return self._replace(tier=self.tier or event.tier, state=self.state or "live", begun=True)
        begun = self.begun or event.state == "live"
        if self.state == "ended" or (event.state != "ended" and event.at < self.at):
            return self._replace(tier=self.tier or event.tier, begun=begun)
        return Standing(event.tier or self.tier, event.state, event.at, begun)


class Subscriber(NamedTuple):
    """Who a profile is to Stripe. ``customer``: the id that was told last. ``subscription``: the id of the one that was
    told last to be paid for. ``subscriptions``: by their ids."""

    customer: str | None
    subscription: str | None
    subscriptions: dict[str, Standing]

    @classmethod
    def of(cls, document: dict[str, Any] | None) -> Subscriber:
        """From what is kept of it, if anything is."""
        if document is None:
            return cls(None, None, {})
        standings = {id: Standing(*kept) for id, kept in document["subscriptions"].items()}
        return cls(document["customer"], document["subscription"], standings)

    def known_as(self, customer: str | None) -> Subscriber:
        return self._replace(customer=customer) if customer else self

    def standing(self, subscription: str) -> Standing:
        return self.subscriptions.get(subscription, Standing())

    def after(self, event: Start | Update) -> Subscriber:
        """With what an event tells."""
        id = event.subscription
        standing = self.standing(id).after(event)
        subscriptions = self.subscriptions | {id: standing}
        ended = [other for other, its in subscriptions.items() if its.state == "ended"]
        for oldest in ended[:-MAX_ENDED]:
            del subscriptions[oldest]
        return self._replace(
            subscription=id if standing.state == "live" else self.subscription, subscriptions=subscriptions
        )

    @property
    def tier(self) -> Tier:
        """The highest that is paid for."""
        paid = [its.tier for its in self.subscriptions.values() if its.state == "live" and its.tier]
        return max(paid, key=_RANKS.index, default="free")
