"""Selling tokens and subscriptions: a page of Stripe's for who wants to pay (contracts/metering.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....storage.documents import encode
from ...request import Answer, ApiRequest
from .access import PER_KEY, licensee
from .answering import once
from .api import api
from .billing import BILLING
from .ledger import LEDGER
from .stripe_api import STRIPE, PaymentsNotConfigured, UnknownCustomer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripe.params.checkout import SessionCreateParams

    from ...config import StripeConfig
    from ...idempotency import Once
    from .access import Licensee


@api.post(
    "/api/stripe/create-checkout",
    body="metering#/$defs/CheckoutRequest",
    reads={"headers": "headers#/$defs/Once"},
    returns={200: "metering#/$defs/CheckoutResponse"},
    errors=(409, 422),
    auth=licensee,
    limits=(PER_KEY,),
)
async def create_checkout(request: ApiRequest) -> Answer:
    """The page where tokens or a subscription are paid for."""
    caller: Licensee = request.caller
    wanted = {name: request.document[name] for name in ("type", "tier") if name in request.document}

    async def act(first: Once) -> Answer:
        answer = Answer({"success": True, "checkout_url": await _page(request, caller.user_id, wanted)})
        await first.keep(answer)
        return answer

    return await once(request, encode(wanted), act)


async def _page(request: ApiRequest, user_id: str, wanted: Mapping[str, str]) -> str:
    stripe = request.app[STRIPE]
    session = _session(request, user_id, wanted)
    key = request.raw.headers.get("Idempotency-Key")
    seed = None if key is None else f"{user_id} {key}"
    customer = await request.app[BILLING].customer(user_id)
    if customer is not None:
        try:
            return await stripe.checkout_page({**session, "customer": customer}, seed)
        except UnknownCustomer:
            pass  # deleted at Stripe: the profile will be another one
    profile = await request.app[LEDGER].profile(user_id)
    session["customer_email"] = profile.email
    if session["mode"] == "payment":  # of a subscription Stripe makes a customer in any case
        session["customer_creation"] = "always"
    return await stripe.checkout_page(session, seed)


def _session(request: ApiRequest, user_id: str, wanted: Mapping[str, str]) -> SessionCreateParams:
    """What is sold to whom."""
    config = request.config.apis.metering.stripe
    kind = wanted["type"]
    metadata = {"type": kind, "user_id": user_id}
    metadata |= {"tier": wanted["tier"]} if kind == "subscription" else {"tokens": str(config.tokens)}
    session: SessionCreateParams = {
        "mode": "subscription" if kind == "subscription" else "payment",
        "line_items": [{"price": _price(config, wanted), "quantity": 1}],
        "client_reference_id": user_id,
        "metadata": metadata,
        "success_url": config.success_url or request.base_url,
        "cancel_url": config.cancel_url or request.base_url,
    }
    if kind == "subscription":
        session["subscription_data"] = {"metadata": metadata}  # the subscription's events have that, not the session's
    return session


def _price(config: StripeConfig, wanted: Mapping[str, str]) -> str:
    prices = {"pro": config.pro_price, "enterprise": config.enterprise_price}
    price = prices[wanted["tier"]] if wanted["type"] == "subscription" else config.token_price
    if price is None:
        raise PaymentsNotConfigured
    return price
