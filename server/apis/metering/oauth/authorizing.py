"""The authorization endpoint: a page that asks for a license key, and sends its reader back with a code (RFC 6749 4.1,
7636, 9207).

What is wrong with a request is told on a page, and nobody is sent anywhere, until its client and redirect URI are known
to be registered; from then on it is told to the client.

Nothing is done for who opens the page or has others open it: there are no cookies, and the authority is the license key
that is typed in. A page elsewhere that posts the form with a key of its own is refused for its Origin.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode, urlsplit

from ....pages import page
from ....ratelimit import DEFAULT_LIMIT, per_document
from ....request import Answer, ApiRequest
from ..access import LIMIT, guesser
from ..api import api
from ..licenses import LICENSING
from .access_tokens import ACCESS_TOKENS
from .errors import NO_STORE, InvalidRequest, OAuthError
from .parameters import FORM, MAX_FORM, each_once, find_client, form, may_redirect

if TYPE_CHECKING:
    from ....config import OauthClient

_STATE = re.compile(r"[\x20-\x7e]+")  # RFC 6749 A.5
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7636 4.2, of SHA-256
_NAMEABLE = re.compile(r"http://[A-Za-z0-9.-]+(:[0-9]+)?")


class _Asked(NamedTuple):
    """A request that is in order. ``given``: its parameters."""

    client: OauthClient
    redirect_uri: str
    state: str | None
    code_challenge: str
    given: Mapping[str, str]


class _Untrusted(Exception):
    """A request that must not be redirected; the message is for people."""


class _Refused(Exception):
    """What the client is told, at its redirect URI."""

    def __init__(self, redirect_uri: str, state: str | None, error: OAuthError) -> None:
        self.redirect_uri = redirect_uri
        self.state = state
        self.error = error


@api.get(
    "/oauth2/authorize",
    query="metering#/$defs/AuthorizeQuery",
    returns={200: None, 303: None, 400: None},
    gives={303: "headers#/$defs/Located"},
    produces=("text/html",),
)
async def authorize(request: ApiRequest) -> Answer:
    """A page that asks for the license key, for an app that wants to spend the tokens of its profile."""
    return await _answer(request, request.raw.query.items(), _show)


@api.post(
    "/oauth2/authorize",
    content_types=FORM,
    max_body=MAX_FORM,
    reads={"body": "metering#/$defs/AuthorizeForm"},
    returns={303: None, 400: None, 422: None},
    gives={303: "headers#/$defs/Located"},
    produces=("text/html",),
    auth=guesser,
    limits=(
        DEFAULT_LIMIT,
        per_document(
            LIMIT,
            lambda config: config.apis.metering.rate_limit,
            lambda request: request.app[LICENSING].hash(_typed_key(request) or request.client.network),
        ),
    ),
)
async def grant_access(request: ApiRequest) -> Answer:
    """Sends who gave the key of an active license back to the app, with a code."""
    return await _answer(request, _fields(request), _decide)


async def _answer(
    request: ApiRequest, pairs: Iterable[tuple[str, str]], act: Callable[[ApiRequest, _Asked], Awaitable[Answer]]
) -> Answer:
    """What ``act`` answers to a request that is in order; to another, what is wrong."""
    try:
        return await act(request, _asked(request, pairs))
    except _Untrusted as error:
        return _kept_private(await page("authorize.html", 400, client=None, wrong=str(error)))
    except _Refused as refusal:
        told = {"error": str(refusal.error.code), "error_description": refusal.error.message}
        return _redirect(request, refusal.redirect_uri, refusal.state, **told)


async def _decide(request: ApiRequest, asked: _Asked) -> Answer:
    """For the form: a code, or the page again."""
    if "cancel" in asked.given:
        raise _Refused(asked.redirect_uri, asked.state, OAuthError("access_denied", "It was not allowed"))
    license_ = await request.app[LICENSING].find(_typed_key(request))
    if license_ is None:
        request.guess = True
        return await _show(request, asked, "This license key is not known.")
    request.username = license_.user_id
    if not license_.is_active:
        return await _show(request, asked, "This license is not active.")
    grants = request.app[ACCESS_TOKENS].grants
    code = await grants.begin(asked.client.id, license_, asked.redirect_uri, asked.code_challenge)
    return _redirect(request, asked.redirect_uri, asked.state, code=code)


def _asked(request: ApiRequest, pairs: Iterable[tuple[str, str]]) -> _Asked:
    """Raises `_Untrusted` or `_Refused`."""
    pairs = list(pairs)
    client = find_client(request, _single(pairs, "client_id"))
    if client is None:
        raise _Untrusted("The app is not registered with this server.")
    redirect_uri = _single(pairs, "redirect_uri") or ""
    if not may_redirect(client, redirect_uri):
        raise _Untrusted(f"{client.name} asked to be answered at an address that is not registered for it.")
    state = _single(pairs, "state")
    try:
        given = each_once(pairs)
        return _Asked(client, redirect_uri, state, _challenge(given), given)
    except OAuthError as error:
        raise _Refused(redirect_uri, state, error) from None


def _single(pairs: list[tuple[str, str]], name: str) -> str | None:
    """A parameter, if it stands there once."""
    values = [value for key, value in pairs if key == name and value]
    return values[0] if len(values) == 1 else None


def _challenge(given: Mapping[str, str]) -> str:
    """The code challenge of a request. Raises `OAuthError`."""
    if not _STATE.fullmatch(given.get("state", " ")):
        raise InvalidRequest("state has characters that it must not have")
    if "response_type" not in given:
        raise InvalidRequest("response_type is missing")
    if given["response_type"] != "code":
        raise OAuthError("unsupported_response_type", "response_type must be code")
    if given.get("code_challenge_method") != "S256":
        raise InvalidRequest("code_challenge_method must be S256")
    challenge = given.get("code_challenge", "")
    if not _CHALLENGE.fullmatch(challenge):
        raise InvalidRequest("code_challenge must be 43 characters of base64url")
    return challenge


async def _show(request: ApiRequest, asked: _Asked, wrong: str | None = None) -> Answer:
    """The page, with what is wrong with the key that was given."""
    fields = ("response_type", "client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method")
    answer = await page(
        "authorize.html",
        422 if wrong else 200,
        form_action=_form_action(asked.redirect_uri),
        client=asked.client.name,
        place=urlsplit(asked.redirect_uri).netloc,
        hidden={name: asked.given[name] for name in fields if name in asked.given},
        wrong=wrong,
    )
    return _kept_private(answer)


def _kept_private(answer: Answer) -> Answer:
    # A form is posted from a page with "no-referrer" with the Origin null (Fetch 3.2), which is refused; this one keeps
    # the page's address, which has the state, from everybody else as well.
    return answer._replace(headers={**(answer.headers or {}), **NO_STORE, "Referrer-Policy": "same-origin"})


def _redirect(request: ApiRequest, redirect_uri: str, state: str | None, **told: str) -> Answer:
    """303, never 307, which would post the key on (RFC 9700 4.12)."""
    if state is not None and _STATE.fullmatch(state):
        told["state"] = state
    query = urlencode({**told, "iss": request.base_url})
    location = f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{query}"
    return Answer(None, 303, {**NO_STORE, "Location": location, "Referrer-Policy": "no-referrer"})


def _form_action(redirect_uri: str) -> str:
    """Where the form may lead, as a policy (CSP 3 6.4.1): browsers also ask it where the answer redirects to, and where
    that redirects on to, as many an app does. What a policy cannot name, an IPv6 address or an app, is named by its
    scheme."""
    scheme = redirect_uri.partition(":")[0]
    if scheme == "https":
        return "'self' https:"
    origin = _NAMEABLE.match(redirect_uri)
    return f"'self' https: {origin[0] if origin else f'{scheme}:'}"


def _fields(request: ApiRequest) -> list[tuple[str, str]]:
    """The fields of the form; of a malformed one none, and so nobody's."""
    try:
        return form(request.body)
    except InvalidRequest:
        return []


def _typed_key(request: ApiRequest) -> str:
    """The license key of the form, if there is one, as people type it."""
    return dict(_fields(request)).get("license_key", "").strip().upper()
