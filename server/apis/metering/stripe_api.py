"""Stripe: the pages where tokens and subscriptions are paid for, and the signatures of its webhooks.

Its library is loaded on first use, on a thread: that takes a fifth of a second, some of its names a little more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from ....storage.documents import encode
from ....storage.times import SECOND
from ...errors import ApiError, BadRequest

if TYPE_CHECKING:
    from stripe import StripeClient, StripeError
    from stripe.params.checkout import SessionCreateParams

    from ...clock import Clock
    from ...config import StripeConfig

log = logging.getLogger(__name__)
logging.getLogger("stripe").setLevel(logging.WARNING)  # below, it quotes what is posted and what Stripe answers

_TIMEOUT = 10
"""Seconds of one attempt."""
_RETRIES = 2
_TOLERANCE = 300
"""Seconds since Stripe signed a webhook."""


class PaymentsNotConfigured(ApiError):
    """503: there is no secret key, or no price of what is asked for."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    message = "Payments are not configured"


class InvalidSignature(BadRequest):
    """400: Stripe did not send this, or not just now.

    It is no failed authentication that counts: nobody is to get Stripe's addresses locked out.
    """

    message = "Invalid signature"


class UnknownCustomer(Exception):
    """Stripe has no such customer, or no longer."""


class Stripe:
    """An account at Stripe. ``session``: who opened it closes it."""

    def __init__(self, config: StripeConfig, clock: Clock, session: ClientSession) -> None:
        self._config = config
        self._clock = clock
        self._session = session
        self._client: StripeClient | None = None

    async def checkout_page(self, params: SessionCreateParams, once: str | None) -> str:
        """The address of a new checkout session's page; where ``once`` is not None, of the session that was made for
        the same ``once`` and ``params`` in the last 24 hours, if there is one.

        Raises `PaymentsNotConfigured`, `UnknownCustomer`, and `ApiError` where Stripe is away or refuses.
        """
        if self._client is None:
            self._client = await asyncio.to_thread(self._connect)
        from stripe import StripeError

        key = None if once is None else sha256(encode([once, params])).hexdigest()
        try:
            session = await self._client.v1.checkout.sessions.create_async(params, {"idempotency_key": key})
        except StripeError as error:
            if error.code == "resource_missing" and _parameter(error) == "customer":
                raise UnknownCustomer from error
            raise _failed(error) from error
        except (ClientError, TimeoutError) as error:  # of an answer that breaks off, which the library leaves to us
            log.error("no checkout session: Stripe broke off: %r", error)
            raise ApiError from error
        if session.url is None:
            log.error("Stripe made the checkout session %s without a page", session.id)
            raise ApiError
        return session.url

    def _connect(self) -> StripeClient:
        if self._config.secret_key is None:
            raise PaymentsNotConfigured
        import stripe

        # It would write a file of its own, and tell Stripe of this machine.
        stripe.enable_telemetry = False
        client = stripe.StripeClient(
            self._config.secret_key.reveal(),
            base_addresses={"api": self._config.api_base.rstrip("/")},
            max_network_retries=_RETRIES,
            http_client=stripe.AIOHTTPClient(timeout=ClientTimeout(_TIMEOUT), session=self._session),
        )
        client.v1.checkout.sessions  # noqa: B018  # it loads that part of the library
        return client

    async def verify(self, body: bytes, signature: str | None) -> None:
        """Raises `InvalidSignature` unless a body was signed with the webhook secret, and that not long ago."""
        if self._config.webhook_secret is None:
            raise InvalidSignature
        await asyncio.to_thread(self._verify, body, signature, self._config.webhook_secret.reveal())

    def _verify(self, body: bytes, signature: str | None, secret: str) -> None:
        from stripe import SignatureVerificationError, WebhookSignature

        ahead = time.time() - self._clock.now() / SECOND  # the library asks the system's clock
        try:
            WebhookSignature.verify_header(body, signature, secret, _TOLERANCE + ahead)
        except (SignatureVerificationError, UnicodeDecodeError, TypeError) as error:
            # The library raises TypeError for a signature that is not ASCII.
            raise InvalidSignature from error


STRIPE = web.AppKey("metering_stripe", Stripe)
"""Set when the application starts."""


def _parameter(error: StripeError) -> str | None:
    """What Stripe finds fault with."""
    return getattr(error, "param", None)


def _failed(error: StripeError) -> ApiError:
    """The answer, which tells nothing of it. Nor does the log quote Stripe, who quotes parts of keys."""
    log.error(
        "no checkout session: Stripe's %s, status %s, code %s, parameter %s, request %s",
        type(error).__name__,
        error.http_status,
        error.code,
        _parameter(error),
        error.request_id,
    )
    return ApiError()
