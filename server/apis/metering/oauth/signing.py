"""The keys that sign access tokens: in the store, replaced by age, shared by whoever serves it.

ES256 (RFC 7518 3.4). The newest key signs. The one before it stays known for a day, longer than any token lives.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .....storage import ABSENT, Put, retry
from .....storage.documents import decode
from .....storage.times import DAY, SECOND, format_time, parse_time
from ....ids import new_id
from ..licenses import SECRETS

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

    from .....storage import Storage
    from ....clock import Clock

ROTATED_AFTER = 90 * DAY
KEPT_FOR = DAY
_ALGORITHM = "ES256"
_TYPE = "at+jwt"  # RFC 9068 2.1
_RECORD = "oauth"


class _Keys(NamedTuple):
    """The store's keys by their ids, the one that signs first; ``version``: of their record."""

    version: int
    by_id: Mapping[str, ECKey]


class SigningKeys:
    """The keys of a store. JOSE's library takes a tenth of a second to import: it is loaded, on a thread, when a key is
    made or a token is seen."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._keys = _Keys(ABSENT, {})

    async def sign(self, claims: dict[str, Any]) -> str:
        """A JWT. Makes the first key where there is none."""
        if not self._keys.by_id:
            await self.rotate()
            await self._read()
        from joserfc import jwt

        id, key = next(iter(self._keys.by_id.items()))
        return jwt.encode(_head(id), claims, key, algorithms=[_ALGORITHM])

    async def verify(self, token: str, issuer: str) -> dict[str, Any] | None:
        """The claims of a JWT that was signed here, by and for an issuer, and has not expired; else None."""
        key = await self._key_of(token)
        if key is None:
            return None
        from joserfc import jwt
        from joserfc.errors import JoseError

        theirs = jwt.JWTClaimsRegistry(
            now=self._clock.now() // SECOND,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": issuer},
            exp={"essential": True},
        )
        try:
            claims = jwt.decode(token, key, algorithms=[_ALGORITHM]).claims
            theirs.validate(claims)
        except (JoseError, ValueError):
            return None
        return claims

    def forget(self) -> None:
        """What was read of a store that has been emptied since."""
        self._keys = _Keys(ABSENT, {})

    async def public(self) -> list[dict[str, Any]]:
        """The public halves, as a JWK Set has them (RFC 7517)."""
        await self._read()
        return [
            {**key.as_dict(private=False), "kid": id, "use": "sig", "alg": _ALGORITHM}
            for id, key in self._keys.by_id.items()
        ]

    async def rotate(self) -> None:
        """Makes a key where there is none or it is old, and drops what no token in use was signed with."""

        async def attempt() -> None:
            record = (await self._storage.get(SECRETS, [_RECORD])).get(_RECORD)
            keys = [] if record is None else record.decode()["keys"]
            kept = self._still_needed(keys)
            if not kept or self._age(kept[0]) >= ROTATED_AFTER:
                kept.insert(0, await asyncio.to_thread(_new_key, format_time(self._clock.now())))
            if kept != keys:
                version = ABSENT if record is None else record.version
                await self._storage.commit([Put(SECRETS, _RECORD, {"keys": kept}, version)])

        await retry(self._storage, [f"{SECRETS.name}/{_RECORD}"], attempt)
        if self._keys.by_id:
            await self._read()

    def _still_needed(self, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without those that have been replaced for long."""
        successors = [None, *keys]
        return [
            key
            for key, successor in zip(keys, successors, strict=False)
            if successor is None or self._age(successor) < KEPT_FOR
        ]

    def _age(self, key: dict[str, Any]) -> int:
        return self._clock.now() - parse_time(key["created_at"])

    async def _key_of(self, token: str) -> ECKey | None:
        """The key that a token says it is signed with."""
        id = _key_id(token)
        if id is None:
            return None
        if id not in self._keys.by_id:
            await self._read()  # another server may have made it
        return self._keys.by_id.get(id)

    async def _read(self) -> None:
        record = (await self._storage.get(SECRETS, [_RECORD])).get(_RECORD)
        if record is None:
            self.forget()
        elif record.version != self._keys.version:
            keys = await asyncio.to_thread(_imported, record.decode()["keys"])
            self._keys = _Keys(record.version, keys)


def _head(id: str) -> dict[str, Any]:
    return {"alg": _ALGORITHM, "typ": _TYPE, "kid": id}


def _key_id(token: str) -> str | None:
    """The key that a token names, if its head is as ours are: of no other algorithm or type, and with nothing else in
    it. What is not never comes to the library."""
    segment = token.partition(".")[0]
    try:
        head = decode(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        return None
    if not isinstance(head, dict) or not isinstance(id := head.get("kid"), str):
        return None
    return id if head == _head(id) else None


def _new_key(created_at: str) -> dict[str, Any]:
    from joserfc.jwk import ECKey

    return {"kid": new_id(), "created_at": created_at, "key": ECKey.generate_key("P-256").as_dict(private=True)}


def _imported(keys: list[dict[str, Any]]) -> dict[str, ECKey]:
    from joserfc import jwt  # noqa: F401  # for what comes next, on the loop
    from joserfc.jwk import ECKey

    return {key["kid"]: ECKey.import_key(key["key"]) for key in keys}
