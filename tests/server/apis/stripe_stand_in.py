"""Stripe, for tests: customers and subscriptions of localstripe, the checkout sessions that it lacks, and webhooks.

Whoever pays is `StandIn.pay`. What Stripe would tell of it are events; tests deliver them, as often and in whatever
order they please, signed as Stripe signs (docs.stripe.com/webhooks#verify-manually).
"""

import asyncio
import hmac
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
import stripe
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from .conftest import Answer, Served

SECRET_KEY = "sk_test_51Homeport"
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PRICES = {"tokens": "price_tokens", "pro": "price_pro", "enterprise": "price_enterprise"}
SALES: dict[str, Any] = {
    "apis.metering.stripe.secret_key": SECRET_KEY,
    "apis.metering.stripe.webhook_secret": WEBHOOK_SECRET,
    "apis.metering.stripe.token_price": PRICES["tokens"],
    "apis.metering.stripe.pro_price": PRICES["pro"],
    "apis.metering.stripe.enterprise_price": PRICES["enterprise"],
}
"""The settings of a server that sells, but for Stripe's address."""
PAGE = "https://checkout.stripe.com/c/pay/"

stripe.enable_telemetry = False

_LOCALSTRIPE = """
import socket
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda store: None  # it would, at one place for all
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None)
"""


@pytest.fixture(scope="session")
def localstripe() -> Iterator[str]:
    """The address of a localstripe that has the plans."""
    command = [sys.executable, "-c", _LOCALSTRIPE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        client = stripe.StripeClient(SECRET_KEY, base_addresses={"api": url}, http_client=stripe.UrllibClient())
        for tier in ("pro", "enterprise"):
            client.v1.plans.create(
                {"id": PRICES[tier], "amount": 0, "currency": "eur", "interval": "month", "product": {"name": tier}}
            )
        yield url
        process.terminate()


def signature(body: bytes, at: int, secret: str = WEBHOOK_SECRET) -> str:
    """The Stripe-Signature of a body; ``at``: seconds since the epoch."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, sha256)
    return f"t={at},v1={mac.hexdigest()}"


async def deliver(server: Served, event: Any, **signed: Any) -> Answer:
    """Posts an event as Stripe does, signed as `signature` says, by default now."""
    body = event if isinstance(event, bytes) else json.dumps(event, indent=2).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": signature(body, **{"at": server.clock.now() // 1_000_000} | signed),
    }
    return await server("POST", "/api/webhooks/stripe", data=body, headers=headers)


class StandIn:
    """Stripe's API. ``url``: its address. ``orders``: the checkout sessions that were asked for, with the headers."""

    def __init__(self, localstripe: stripe.StripeClient) -> None:
        self.url = ""
        self.orders: list[tuple[dict[str, Any], Any]] = []
        self.trouble: list[str] = []
        """What the next requests meet with, one each: a status, stall, cut, half, garbage, or no page."""
        self.stalled = asyncio.Event()
        self._localstripe = localstripe.v1
        self._sessions: dict[str, dict[str, Any]] = {}
        self._by_key: dict[str, tuple[dict[str, Any], str]] = {}
        self._number = 0

    # What servers ask

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/checkout/sessions."""
        assert request.headers["Authorization"] == f"Bearer {SECRET_KEY}"
        order = _unflattened(dict((await request.post()).items()))
        self.orders.append((order, request.headers.copy()))
        if self.trouble:
            return await self._trouble(request, self.trouble.pop(0))
        key = request.headers["Idempotency-Key"]
        known, id = self._by_key.get(key, (order, ""))
        if known != order:
            return _error(400, "idempotency_error", None)
        if not id:
            refusal = await self._refusal(order)
            if refusal is not None:
                return refusal
            id = self._new("cs_test")
            self._sessions[id] = _session(id, order)
            self._by_key[key] = order, id
        return web.json_response(self._sessions[id], headers={"Request-Id": self._new("req")})

    async def _refusal(self, order: dict[str, Any]) -> web.Response | None:
        if order["line_items"][0]["price"] not in PRICES.values():
            return _error(400, "invalid_request_error", "line_items[0][price]", "resource_missing")
        try:
            if "customer" in order:
                await self._localstripe.customers.retrieve_async(order["customer"])
        except stripe.InvalidRequestError:
            return _error(400, "invalid_request_error", "customer", "resource_missing")
        return None

    async def _trouble(self, request: web.Request, kind: str) -> web.StreamResponse:
        if kind == "stall":
            await self.stalled.wait()
        if kind in ("stall", "cut"):
            assert request.transport is not None
            request.transport.abort()
        if kind == "half":
            half = web.StreamResponse(headers={"Content-Length": "1000"})
            await half.prepare(request)
            await half.write(b"{")
            assert request.transport is not None
            request.transport.close()
            return half
        if kind == "no page":
            return web.json_response({"id": "cs_1", "object": "checkout.session", "url": None})
        if kind.isdecimal():
            return _error(int(kind), "api_error", None)
        return web.Response(body=b"<html>")

    # What people do

    async def pay(self, page: str, *, later: bool = False) -> dict[str, Any]:
        """Somebody fills in a page; what Stripe tells then. ``later``: with a means of payment that takes days."""
        session = self._sessions[page.removeprefix(PAGE)]
        customer = session["customer"]
        if customer is None:
            made = await self._localstripe.customers.create_async({"email": session["customer_details"]["email"]})
            customer = made.id
        subscription = None
        if session["mode"] == "subscription":
            ordered = await self._localstripe.subscriptions.create_async(
                {
                    "customer": customer,
                    "items": [{"plan": session["price"]}],
                    "metadata": session["subscription_metadata"],
                }
            )
            subscription = ordered.id
        paid = "unpaid" if later else "paid"
        session |= {"status": "complete", "payment_status": paid, "customer": customer, "subscription": subscription}
        return self.event("checkout.session.completed", session)

    def collected(self, page: str) -> dict[str, Any]:
        """What Stripe tells when a payment that takes days has come in."""
        session = self._sessions[page.removeprefix(PAGE)]
        session["payment_status"] = "paid"
        return self.event("checkout.session.async_payment_succeeded", session)

    async def switch(self, subscription: str, tier: str) -> dict[str, Any]:
        """A subscription gets another price; what Stripe tells then."""
        switched = await self._localstripe.subscriptions.update_async(subscription, {"items": [{"plan": PRICES[tier]}]})
        return self.event("customer.subscription.updated", switched.to_dict())

    async def cancel(self, subscription: str) -> dict[str, Any]:
        """A subscription ends; what Stripe tells then."""
        ended = await self._localstripe.subscriptions.cancel_async(subscription)
        return self.event("customer.subscription.deleted", ended.to_dict())

    async def forget_customer(self, customer: str) -> None:
        await self._localstripe.customers.delete_async(customer)

    def event(self, kind: str, thing: dict[str, Any]) -> dict[str, Any]:
        """Each is a second later than the one before."""
        id = self._new("evt")
        return {
            "id": id,
            "object": "event",
            "api_version": "2026-10-28",
            "created": 1_763_600_000 + self._number,
            "data": {"object": json.loads(json.dumps(thing))},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }

    def _new(self, kind: str) -> str:
        self._number += 1
        return f"{kind}_{self._number:024}"


@asynccontextmanager
async def open_stand_in(localstripe: str) -> AsyncIterator[StandIn]:
    """Stripe, with the customers and subscriptions of a localstripe."""
    async with ClientSession() as session:
        http = stripe.AIOHTTPClient(session=session)
        stand_in = StandIn(stripe.StripeClient(SECRET_KEY, base_addresses={"api": localstripe}, http_client=http))
        application = web.Application()
        application.router.add_post("/v1/checkout/sessions", stand_in.create)
        async with TestServer(application) as listening:
            stand_in.url = str(listening.make_url("/"))
            try:
                yield stand_in
            finally:
                stand_in.stalled.set()


def _session(id: str, order: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": id,
        "object": "checkout.session",
        "mode": order["mode"],
        "status": "open",
        "payment_status": "unpaid",
        "client_reference_id": order["client_reference_id"],
        "customer": order.get("customer"),
        "customer_details": {"email": order.get("customer_email")},
        "metadata": order["metadata"],
        "price": order["line_items"][0]["price"],
        "subscription": None,
        "subscription_metadata": order.get("subscription_data", {}).get("metadata"),
        "url": PAGE + id,
    }


def _error(status: int, kind: str, parameter: str | None, code: str | None = None) -> web.Response:
    error = {"type": kind, "message": f"No such thing: {SECRET_KEY[:7]}***", "param": parameter, "code": code}
    return web.json_response({"error": error}, status=status)


def _unflattened(form: dict[str, Any]) -> dict[str, Any]:
    """``a[b][0]=c`` as Stripe reads it."""
    tree: dict[str, Any] = {}
    for name, value in form.items():
        *outer, last = re.findall(r"[^\[\]]+", name)
        place = tree
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = value
    return {name: _with_lists(value) for name, value in tree.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {name: _with_lists(member) for name, member in value.items()}
    return list(inner.values()) if all(name.isdecimal() for name in inner) else inner
