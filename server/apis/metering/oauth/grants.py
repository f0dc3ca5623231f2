"""Grants: what somebody let an app do, from the code that it is given to the last refresh token.

A code or refresh token is two secrets. The first is the grant's, the same from the code on, and finds it: the record's
id is its hash. The second changes with every use, and the record has the hash of the one that is good now. So whoever
comes with the first and another second presents what was used before: it has leaked, and the grant ends (RFC 6749
4.1.2, RFC 9700 4.14.2). That takes one record a grant, and none of what was used.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Literal, NamedTuple

from .....storage import ABSENT, Collection, Delete, Field, Filter, Put, Query, retry
from .....storage.times import DAY, SECOND, format_time, parse_time
from .errors import InvalidGrant

if TYPE_CHECKING:
    from collections.abc import Callable

    from .....storage import Storage
    from ....clock import Clock
    from ..licenses import License, Licenses

log = logging.getLogger(__name__)

GRANTS = Collection(
    "metering_oauth_grants", (Field("until", "time", indexed=True), Field("license", "text", indexed=True))
)
"""By a hash of the grant's own secret; `Grant` has the members."""

CODE_LIFE = 60 * SECOND
REFRESH_LIFE = 30 * DAY
"""Since the last use."""
MAX_GRANTS = 32
"""Of a license. Beyond, those end that would expire first: codes that nobody has redeemed, then what was not used for
the longest time."""
_BYTES = 24
_SECRET = 32  # characters that they are in base64url
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")  # RFC 7636 4.1
_GOOD_FOR_NOTHING = "It is unknown, expired or revoked"

Kind = Literal["code", "refresh_token"]


class Grant(NamedTuple):
    """``id``: of the record. ``license``: the id of the license's record. ``kind``: of what is good ``until`` then, and
    whose second secret has the hash ``secret``. ``redirect_uri``, ``code_challenge``: while that is a code."""

    id: str
    version: int
    client_id: str
    license: str
    user_id: str
    kind: Kind
    secret: str
    until: str
    redirect_uri: str | None
    code_challenge: str | None


class Grants:
    """The grants on a store."""

    def __init__(self, storage: Storage, clock: Clock, licenses: Licenses) -> None:
        self._storage = storage
        self._clock = clock
        self._licenses = licenses

    async def begin(self, client_id: str, license_: License, redirect_uri: str, code_challenge: str) -> str:
        """A code for a new grant; the license's oldest may end for it."""
        code = secrets.token_urlsafe(2 * _BYTES)
        grant = Grant(
            id=_hash(code[:_SECRET]),
            version=ABSENT,
            client_id=client_id,
            license=license_.id,
            user_id=license_.user_id,
            kind="code",
            secret=_hash(code[_SECRET:]),
            until=self._after(CODE_LIFE),
            redirect_uri=redirect_uri,
            code_challenge=code_challenge,
        )

        async def attempt() -> None:
            await self._put(grant, *await self._crowded_out(license_))

        await retry(self._storage, [f"{GRANTS.name} of {license_.id}"], attempt)
        return code

    async def redeem(self, code: str, client_id: str, redirect_uri: str, verifier: str) -> tuple[Grant, str]:
        """The grant of a code, and its first refresh token. With a wrong proof the code is used up as well. Raises
        `InvalidGrant`."""

        def fits(grant: Grant) -> bool:
            return grant.redirect_uri == redirect_uri and _proves(verifier, grant.code_challenge or "")

        return await self._use("code", code, client_id, fits)

    async def refresh(self, token: str, client_id: str) -> tuple[Grant, str]:
        """The grant of a refresh token, and the one that replaces that. Raises `InvalidGrant`."""
        return await self._use("refresh_token", token, client_id, lambda grant: True)

    async def _use(self, kind: Kind, text: str, client_id: str, fits: Callable[[Grant], bool]) -> tuple[Grant, str]:
        fresh = secrets.token_urlsafe(_BYTES)

        async def attempt() -> Grant:
            grant = await self.find(text)
            if grant is None:
                raise InvalidGrant(_GOOD_FOR_NOTHING)
            genuine = grant.kind == kind and compare_digest(grant.secret, _hash(text[_SECRET:]))
            if not genuine or grant.client_id != client_id or not fits(grant):
                log.warning("a code or token of the app %s came again, or with a wrong proof: revoked", grant.client_id)
                await self._end(grant)
                raise InvalidGrant("It was used before, or is another's; all that came of it is revoked")
            license_ = await self._licenses.get(grant.license)
            if license_ is None or not license_.is_active:
                raise InvalidGrant("Device not active")
            return await self._put(
                grant._replace(
                    kind="refresh_token",
                    secret=_hash(fresh),
                    until=self._after(REFRESH_LIFE),
                    redirect_uri=None,
                    code_challenge=None,
                )
            )

        return await retry(self._storage, [f"{GRANTS.name}/{_hash(text[:_SECRET])}"], attempt), text[:_SECRET] + fresh

    async def end(self, grant: Grant, client_id: str) -> None:
        """Ends a client's grant. Raises `InvalidGrant` where it is another's."""
        if grant.client_id != client_id:
            raise InvalidGrant("It is another client's")
        await self._end(grant)

    async def get(self, id: str) -> Grant | None:
        """The grant of a record, unless it has expired."""
        record = (await self._storage.get(GRANTS, [id])).get(id)
        if record is None:
            return None
        grant = Grant(id, record.version, **record.decode())
        return grant if parse_time(grant.until) > self._clock.now() else None

    async def forget_expired(self) -> int:
        """Removes the grants that are good for nothing any more; returns how many."""
        return await self._storage.purge(Query(GRANTS, (Filter("until", "<=", self._clock.now()),)))

    async def find(self, text: str) -> Grant | None:
        """The grant of a code or refresh token, be that good, used or not yet."""
        return await self.get(_hash(text[:_SECRET]))

    async def _crowded_out(self, license_: License) -> list[Delete]:
        """What removes the grants of a license that leave no room for another, unless one is used meanwhile."""
        present = Query(GRANTS, (Filter("license", "==", license_.id),), sort=("-until",), offset=MAX_GRANTS - 1)
        return [Delete(GRANTS, record.id, record.version) for record in (await self._storage.find(present)).records]

    async def _put(self, grant: Grant, *also: Delete) -> Grant:
        document = grant._asdict()
        id, version = document.pop("id"), document.pop("version")
        commit = await self._storage.commit([Put(GRANTS, id, document, version), *also])
        return grant._replace(version=commit.versions[0])

    async def _end(self, grant: Grant) -> None:
        await self._storage.commit([Delete(GRANTS, grant.id)])

    def _after(self, time: int) -> str:
        return format_time(self._clock.now() + time)


def _hash(secret: str) -> str:
    """Of what is random enough not to be guessed from its hash."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _proves(verifier: str, challenge: str) -> bool:
    """S256 (RFC 7636 4.6)."""
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=")
    return compare_digest(digest, challenge.encode())
