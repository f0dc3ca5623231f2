"""What Stripe tells (contracts/metering.md, "POST /api/webhooks/stripe")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....storage.documents import decode
from .api import api
from .billing import BILLING
from .stripe_api import STRIPE
from .stripe_events import read_event

if TYPE_CHECKING:
    from ...request import ApiRequest


@api.post(
    "/api/webhooks/stripe",
    content_types=("application/json",),
    reads={"headers": "headers#/$defs/StripeSigned", "body": "metering#/$defs/StripeEvent"},
    returns={200: "metering#/$defs/Received"},
)
async def stripe_webhook(request: ApiRequest) -> dict[str, Any]:
    """Takes an event that Stripe signed. What it does is durable before the answer; until there is one, Stripe sends
    it again."""
    await request.app[STRIPE].verify(request.body, request.raw.headers.get("Stripe-Signature"))
    event = read_event(decode(request.body), request.config.apis.metering.stripe)
    if event is not None:
        await request.app[BILLING].apply(event)
    return {"received": True}
