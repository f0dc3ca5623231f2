"""The token endpoint (RFC 6749 4.1.3, 6; RFC 7636 4.5) and the revocation endpoint (RFC 7009)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .....storage.times import SECOND
from ....ratelimit import per_address
from ....request import Answer, ApiRequest
from ..api import api
from .access_tokens import ACCESS_TOKENS, LIFE
from .errors import NO_STORE, InvalidRequest, OAuthError
from .parameters import FORM, MAX_FORM, each_once, find_client, form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ....config import OauthClient


_ERROR = "metering#/$defs/OAuthError"


@api.post(
    "/oauth2/token",
    content_types=FORM,
    max_body=MAX_FORM,
    reads={"body": "metering#/$defs/TokenForm"},
    returns={200: "metering#/$defs/TokenResponse"},
    errors=(401,),
    error=_ERROR,
    limits=(per_address("oauth_token", lambda config: "5/minute"),),
)
async def issue_token(request: ApiRequest) -> Answer:
    """An access token for a code or a refresh token, and the refresh token that comes next."""
    given = each_once(form(request.body))
    grant_type = _required(given, "grant_type")
    client = _client(request, given)
    tokens = request.app[ACCESS_TOKENS]
    match grant_type:
        case "authorization_code":
            code, redirect_uri = _required(given, "code"), _required(given, "redirect_uri")
            grant, refresh = await tokens.grants.redeem(
                code, client.id, redirect_uri, _required(given, "code_verifier")
            )
        case "refresh_token":
            grant, refresh = await tokens.grants.refresh(_required(given, "refresh_token"), client.id)
        case _:
            raise OAuthError("unsupported_grant_type", "grant_type must be authorization_code or refresh_token")
    request.username = grant.user_id
    answer: dict[str, Any] = {
        "access_token": await tokens.issue(grant, request.base_url),
        "token_type": "Bearer",
        "expires_in": LIFE // SECOND,
        "refresh_token": refresh,
    }
    return Answer(answer, headers=NO_STORE)


@api.post(
    "/oauth2/revoke",
    content_types=FORM,
    max_body=MAX_FORM,
    reads={"body": "metering#/$defs/RevokeForm"},
    returns={200: None},
    errors=(401,),
    error=_ERROR,
)
async def revoke_token(request: ApiRequest) -> Answer:
    """Ends the grant of a refresh or access token, and with it all of its tokens. Of none that there is, it says
    nothing."""
    given = each_once(form(request.body))
    token = _required(given, "token")
    client = _client(request, given)
    tokens = request.app[ACCESS_TOKENS]
    # token_type_hint is not needed: they cannot be taken for each other.
    grant = await tokens.grants.find(token) or await tokens.grant(token, request.base_url)
    if grant is not None:
        await tokens.grants.end(grant, client.id)
    return Answer(status=200, headers=NO_STORE)


def _required(given: Mapping[str, str], name: str) -> str:
    if name not in given:
        raise InvalidRequest(f"{name} is missing")
    return given[name]


def _client(request: ApiRequest, given: Mapping[str, str]) -> OauthClient:
    """The client that asks. They are public: they name themselves, and prove nothing."""
    client = find_client(request, _required(given, "client_id"))
    if client is None:
        raise OAuthError("invalid_client", "The client is not registered", status=401, challenge='Basic realm="OAuth"')
    return client
