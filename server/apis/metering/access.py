"""Who may call: whoever presents a license key, or an access token in its place (contracts/metering.md, "Who")."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...auth import bearer_token, guard
from ...errors import Forbidden, Unauthorized
from ...ratelimit import per_caller
from .licenses import LICENSING
from .oauth.access_tokens import ACCESS_TOKENS

if TYPE_CHECKING:
    from ...request import ApiRequest
    from .licenses import License

LIMIT = "metering"
"""The windows of a license's requests, by the id of its record, however it is presented."""
PER_KEY = per_caller(LIMIT, lambda config: config.apis.metering.rate_limit)


class Licensee(NamedTuple):
    """Who calls."""

    user_id: str
    device_id: str
    license_id: str


@guard("bearer")
async def licensee(request: ApiRequest) -> Licensee:
    """Whoever presents the key of an active license, or an access token; ``request.caller`` is the `Licensee`."""
    presented = bearer_token(request)
    license_ = None if presented is None else await _license_of(request, presented)
    if license_ is None:
        # RFC 6750 3: who presents nothing is told nothing but the scheme.
        challenge = "Bearer" if presented is None else 'Bearer error="invalid_token"'
        raise Unauthorized("Invalid or missing license key", headers={"WWW-Authenticate": challenge})
    request.caller_id, request.username = license_.id, license_.user_id
    if not license_.is_active:
        raise Forbidden("Device not active")
    return Licensee(license_.user_id, license_.device_id, license_.license_id)


async def _license_of(request: ApiRequest, presented: str) -> License | None:
    """Whatever it looks like, it is looked up as a key first: what is no token costs the same."""
    license_ = await request.app[LICENSING].find(presented)
    return license_ or await request.app[ACCESS_TOKENS].license(presented, request.base_url)


@guard()
async def guesser(request: ApiRequest) -> None:
    """Anybody, unless their address guesses at keys: for operations that take a key in the body."""
    await request.app[LICENSING].open()  # the key's limit needs its hash
