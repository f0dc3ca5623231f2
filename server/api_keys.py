"""API keys: who has one, and who presents one (contracts/leaderboard.md, "Keys").

A key is ``ccusage_live_`` and 60 characters, the base64url of 45 random bytes. The first 16 characters find the key's
record, whose id is a hash of them; of the other 44 (264 bits) only a bcrypt hash is kept. So a request costs one read
and at most one bcrypt check, and a key that nobody has costs no bcrypt. That this takes less time than a wrong secret
tells nothing: the 16 characters are as random as the rest (96 bits), belong to one key and never to a username, and
change with every rotation. Nobody can aim them at a user, or at a key that was not once held.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, cast

from aiohttp import web

from ..storage import ABSENT, Collection, Delete, DeleteWhere, Field, Filter, Put, Query, Record, Write, retry, walk
from ..storage.times import format_time, parse_time
from .auth import bearer_token, guard
from .bcrypt_pool import BcryptPool
from .errors import ApiError, BadRequest, Forbidden, NotFound, Unauthorized
from .remembered import Remembered

if TYPE_CHECKING:
    from ..storage import Storage
    from .auth import Guard
    from .clock import Clock
    from .request import ApiRequest

KEYS = Collection(
    "api_keys",
    (Field("key", "text", unique=True), Field("username", "text", indexed=True), Field("created_at", "time")),
)
"""By a hash of the key's lookup part: ``key`` (the public id, kept over rotations), ``username``, ``scopes``, ``hash``
(bcrypt, of the secret part), ``created_at``, and ``identity`` where somebody was `ApiKeys.issue`d it. Written once: a
rotation puts another record in its place."""
USERS = Collection("api_key_users", (Field("identity", "text", unique=True),))
"""By the username in lower case: ``username``, and ``identity``, who it is bound to elsewhere, or null. Written once,
with the user's first key; it outlives the keys, so that nobody else is given the name."""

SCOPES = ("sync", "read", "collections:read", "collections:write")
DEFAULT_SCOPES = ("sync", "read")
USERNAME = re.compile(r"[A-Za-z0-9_-]{3,50}")

_PREFIX = "ccusage_live_"
_BYTES, _LOOKUP, _SECRET = 45, 16, 44  # bytes in all, and the characters of their parts
_LENGTH = len(_PREFIX) + _LOOKUP + _SECRET
_FORM = re.compile(f"{_PREFIX}([A-Za-z0-9_-]{{{_LOOKUP}}})([A-Za-z0-9_-]{{{_SECRET}}})")
_ID = re.compile(r"[0-9a-f]{16}")


class Key(NamedTuple):
    """What may be known of a key. ``created_at``: when it was made or last rotated, microseconds since the epoch."""

    id: str
    username: str
    scopes: frozenset[str]
    created_at: int


class InvalidUsername(BadRequest):
    """400: no username that anybody may have."""

    message = "A username is 3 to 50 of A-Z, a-z, 0-9, _ and -"


class InvalidScopes(BadRequest):
    """400: scopes that there are not, or none."""

    message = f"Scopes are one or more of {', '.join(SCOPES)}"


class UsernameTaken(ApiError):
    """409: somebody else has the name."""

    status = HTTPStatus.CONFLICT


class NoSuchKey(NotFound):
    """404."""

    message = "No such key"


class ApiKeys:
    """The keys on a store. Of a key's text nothing is remembered but, for a while, a keyed digest.

    ``bcrypt_cost``: of new keys, where it is not to be `bcrypt_pool.COST`.
    """

    def __init__(self, storage: Storage, clock: Clock, bcrypt_cost: int | None = None) -> None:
        self._storage = storage
        self._clock = clock
        self._bcrypt = BcryptPool(bcrypt_cost)
        self._verified: Remembered[tuple[int, Key]] = Remembered(clock)  # with the version of its record

    def close(self) -> None:
        """Ends its threads."""
        self._bcrypt.close()

    async def create(self, username: str, scopes: Iterable[str] = DEFAULT_SCOPES) -> tuple[Key, str]:
        """A further key of a user, who may be new, and its text, which nothing shows again.

        Raises `InvalidUsername`, `InvalidScopes`, and `UsernameTaken` where the name differs from another only in case.
        """
        _check_username(username)
        granted = _checked_scopes(scopes)
        text = await self._new_text()
        user = username.lower()

        async def attempt() -> Key:
            record = (await self._storage.get(USERS, [user])).get(user)
            if record and (known := record.decode()["username"]) != username:
                raise UsernameTaken(f"{username} differs from the user {known} only in case")
            return await self._keep(text, username, granted, also=[] if record else [_user(username)])

        return await retry(self._storage, [f"{USERS.name}/{user}"], attempt), text.whole

    async def issue(self, username: str, identity: str) -> tuple[Key, str, bool]:
        """The key of somebody who is known elsewhere, as ``identity``; its text; and whether it replaces another.

        The first time, a new user is bound to the identity, who keeps the name whatever is asked for later. Keys of
        the user that were made otherwise stay. Raises `InvalidUsername`, and `UsernameTaken` where anybody else has
        the name, in any case.
        """
        text = await self._new_text()

        async def attempt() -> tuple[Key, bool]:
            bound = (await self._storage.find(Query(USERS, (Filter("identity", "==", identity),)))).records
            if bound:
                name = bound[0].decode()["username"]
                old = [record for record in await self._of(name) if record.decode()["identity"] == identity]
                return await self._keep(text, name, DEFAULT_SCOPES, identity, old), bool(old)
            _check_username(username)
            if await self._storage.get(USERS, [username.lower()]):
                raise UsernameTaken(f"The username {username} is taken")
            user = _user(username, identity)
            return await self._keep(text, username, DEFAULT_SCOPES, identity, also=[user]), False

        key, rotated = await retry(self._storage, [f"{USERS.name}:{identity}"], attempt)
        return key, text.whole, rotated

    async def list(self, username: str | None = None) -> list[Key]:
        """A user's keys, or all of them, by username, then the oldest first."""
        where = () if username is None else (Filter("username", "==", username),)
        query = Query(KEYS, where, ("username", "created_at"))
        return [_key(record) async for record in walk(self._storage, query)]

    async def rotate(self, key_id: str) -> tuple[Key, str]:
        """Gives a key a new text; from the same commit on the old one is refused. Raises `NoSuchKey`."""
        if not _ID.fullmatch(key_id):
            raise NoSuchKey
        return await self._rotate(Filter("key", "==", key_id))

    async def rotate_user(self, username: str) -> tuple[Key, str]:
        """Puts one key in the place of all that a user has, with their scopes together and the oldest's id.

        From the same commit on the old ones are refused. Raises `NoSuchKey` where the user has none.
        """
        if not USERNAME.fullmatch(username):
            raise NoSuchKey
        return await self._rotate(Filter("username", "==", username))

    async def revoke(self, key_id: str) -> bool:
        """Removes a key, which is refused from then on; False where there is none."""
        if not _ID.fullmatch(key_id):
            return False
        query = Query(KEYS, (Filter("key", "==", key_id),))
        return bool((await self._storage.commit([DeleteWhere(query)])).counts[0])

    async def verify(self, presented: str | None) -> Key | None:
        """The key of a text, if it is one. Raises `ServiceUnavailable` where too many others are being checked."""
        if presented is None or (parts := _parts(presented)) is None:
            return None
        id, secret = parts
        record = await self._record(id)
        if record is None:
            return None
        version, key = self._verified.get(presented) or (ABSENT, None)
        if version == record.version:
            return key
        if not await self._bcrypt.check(secret, record.decode()["hash"]):
            return None
        if await self._record(id) != record:  # revoked meanwhile
            return None
        key = _key(record)
        self._verified.put(presented, (record.version, key))
        return key

    async def _record(self, id: str) -> Record | None:
        return (await self._storage.get(KEYS, [id])).get(id)

    async def _of(self, username: str) -> tuple[Record, ...]:
        return (await self._storage.find(Query(KEYS, (Filter("username", "==", username),), ("created_at",)))).records

    async def _new_text(self) -> _Text:
        whole = _PREFIX + secrets.token_urlsafe(_BYTES)
        id, secret = cast("tuple[str, str]", _parts(whole))
        return _Text(whole, id, await self._bcrypt.hash(secret))

    async def _rotate(self, which: Filter) -> tuple[Key, str]:
        text = await self._new_text()

        async def attempt() -> Key:
            old = (await self._storage.find(Query(KEYS, (which,), ("created_at",)))).records
            if not old:
                raise NoSuchKey
            documents = [record.decode() for record in old]
            granted = [scope for scope in SCOPES if any(scope in document["scopes"] for document in documents)]
            identity = next((document["identity"] for document in documents if document["identity"]), None)
            return await self._keep(text, documents[0]["username"], granted, identity, old)

        return await retry(self._storage, [f"{KEYS.name}/{which.value}"], attempt), text.whole

    async def _keep(
        self,
        text: _Text,
        username: str,
        scopes: Sequence[str],
        identity: str | None = None,
        old: Sequence[Record] = (),
        also: Sequence[Write] = (),
    ) -> Key:
        """Commits a key in the place of ``old`` ones, whose first gives it its id; with other writes."""
        document = {
            "key": old[0].decode()["key"] if old else secrets.token_hex(8),
            "username": username,
            "scopes": scopes,
            "hash": text.hash,
            "created_at": format_time(self._clock.now()),
            "identity": identity,
        }
        gone = [Delete(KEYS, record.id, record.version) for record in old]
        put = Put(KEYS, text.id, document, ABSENT)
        commit = await self._storage.commit([*also, *gone, put])
        return _key(Record(text.id, commit.versions[-1], put.document))


class _Text(NamedTuple):
    """A new key: the text, the id of its record, and what is kept of its secret part."""

    whole: str
    id: str
    hash: str


API_KEYS = web.AppKey("api_keys", ApiKeys)
"""Set when the application starts."""


def bearer(*scopes: str, refusal: str = "API key does not have permission for this") -> Guard:
    """Who presents an API key, as ``Authorization: Bearer``, that has these scopes; ``request.caller`` is the `Key`.

    ``refusal``: what a key that lacks one is told (403).
    """
    _checked_scopes(scopes or SCOPES)

    @guard("bearer")
    async def authenticate(request: ApiRequest) -> Key:
        key = await request.app[API_KEYS].verify(bearer_token(request))
        if key is None:
            raise Unauthorized("Invalid or missing API key", headers={"WWW-Authenticate": "Bearer"})
        request.username, request.caller_id, request.caller = key.username, key.id, key
        if not key.scopes.issuperset(scopes):
            raise Forbidden(refusal)
        return key

    return authenticate


def _parts(text: str) -> tuple[str, str] | None:
    """The id of the record of a key, and its secret part; None for what is no key."""
    if len(text) != _LENGTH or (match := _FORM.fullmatch(text)) is None:
        return None
    return sha256(match[1].encode()).hexdigest()[:32], match[2]


def _key(record: Record) -> Key:
    document = record.decode()
    scopes, created_at = frozenset(document["scopes"]), parse_time(document["created_at"])
    return Key(document["key"], document["username"], scopes, created_at)


def _user(username: str, identity: str | None = None) -> Put:
    return Put(USERS, username.lower(), {"username": username, "identity": identity}, ABSENT)


def _check_username(username: str) -> None:
    if not USERNAME.fullmatch(username):
        raise InvalidUsername


def _checked_scopes(scopes: Iterable[str]) -> list[str]:
    """In the order of `SCOPES`, each once."""
    given = set(scopes)
    if not given or not given.issubset(SCOPES):
        raise InvalidScopes
    return [scope for scope in SCOPES if scope in given]
