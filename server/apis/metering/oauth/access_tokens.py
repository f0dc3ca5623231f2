"""Access tokens: JWTs of an hour (RFC 9068), taken wherever a license key is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from .....storage.times import HOUR, SECOND
from ....ids import new_id
from .grants import Grants
from .signing import SigningKeys

if TYPE_CHECKING:
    from ....clock import Clock
    from ..licenses import License, Licenses
    from .grants import Grant

LIFE = HOUR


class AccessTokens:
    """The access tokens of a store, with the keys that sign them and the grants that they are of."""

    def __init__(self, keys: SigningKeys, grants: Grants, licenses: Licenses, clock: Clock) -> None:
        self.keys = keys
        self.grants = grants
        self._licenses = licenses
        self._clock = clock

    async def issue(self, grant: Grant, issuer: str) -> str:
        """A new one."""
        now = self._clock.now() // SECOND
        return await self.keys.sign(
            {
                "iss": issuer,
                "sub": grant.user_id,
                "aud": issuer,  # who issues them is who takes them
                "exp": now + LIFE // SECOND,
                "iat": now,
                "jti": new_id(),
                "client_id": grant.client_id,
                "grant": grant.id,
            }
        )

    async def grant(self, token: str, issuer: str) -> Grant | None:
        """What a token is good for; None where it is no token, has expired or is revoked."""
        claims = await self.keys.verify(token, issuer)
        return None if claims is None else await self.grants.get(claims["grant"])

    async def license(self, token: str, issuer: str) -> License | None:
        """The license that a token stands for, as it is now."""
        grant = await self.grant(token, issuer)
        return None if grant is None else await self._licenses.get(grant.license)


ACCESS_TOKENS = web.AppKey("metering_access_tokens", AccessTokens)
"""Set when the application starts."""
