"""Licenses: each is of a device, which is a profile's (contracts/metering.md, "Who").

A key's text is shown when it is made, and kept nowhere: a license is found by BLAKE2b (RFC 7693) of the text, with a
key of the store's own. So one read tells whose a text is, whatever it looks like; keys that people chose (``--key``)
cannot be tried against a stolen table of hashes without that key; and no time that is measured tells anything of
another's text.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from ....storage import ABSENT, Collection, Conflict, Field, Filter, Put, Query, retry, walk
from ....storage.times import format_time
from ...ids import new_id
from ...keys import CLOCK, STORAGE
from .documents import EMAILS, PROFILES
from .ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....storage import Record, Storage, Write
    from ...clock import Clock
    from .documents import Profile, Tier
    from .ledger import Ledger

LICENSES = Collection(
    "metering_licenses",
    (Field("license_id", "text", unique=True), Field("created_at", "time")),
)
"""By the keyed hash of the key: a license with its device, of which there is one. `License` has the members."""
SECRETS = Collection("metering_secrets")
"""What this store alone knows, by name: ``licenses`` has the ``key`` of the hashes. Copies and backups have it too."""

DEFAULT_DEVICE = "Desktop"
MAX_EMAIL = 254
"""Characters (RFC 5321 4.5.3.1.3)."""
MAX_DEVICE_NAME = 100

_CHARACTERS = string.ascii_uppercase + string.digits
_GROUPS, _GROUP = 4, 4
_KEY = re.compile(r"[A-Z0-9]{4}(-[A-Z0-9]{4}){3}")
_ID = re.compile(r"[0-9a-f-]{36}")
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")  # as HTML's <input type=email>
_DEVICE_NAME = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_DEVICE_NAME}}}")
_HASHES = "licenses"
_HASH_KEY_BYTES = 32
_HASH_BYTES = 20


class License(NamedTuple):
    """A license and its device. ``id``: of the record. ``device_fingerprint``: of the machine that it is bound to."""

    id: str
    version: int
    license_id: str
    device_id: str
    user_id: str
    device_name: str
    is_active: bool
    device_fingerprint: str | None
    created_at: str


class LicenseError(Exception):
    """What was asked for cannot be done; the message says why."""


class Licenses:
    """The licenses on a store."""

    def __init__(self, storage: Storage, clock: Clock, ledger: Ledger) -> None:
        self._storage = storage
        self._clock = clock
        self._ledger = ledger
        self.forget()

    def forget(self) -> None:
        """What was read of a store that has been emptied since."""
        self._hash_key = secrets.token_bytes(_HASH_KEY_BYTES)  # finds nothing, at the same cost
        self._opened = False

    async def open(self) -> None:
        """Reads the key of the hashes; before the first license is made there is none."""
        if not self._opened and (record := (await self._storage.get(SECRETS, [_HASHES])).get(_HASHES)):
            self._hash_key = bytes.fromhex(record.decode()["key"])
            self._opened = True

    async def _begin(self) -> None:
        """Makes the key of the hashes where there is none."""
        await self.open()
        if not self._opened:
            with suppress(Conflict):  # then another server was first
                await self._storage.commit([Put(SECRETS, _HASHES, {"key": self._hash_key.hex()}, ABSENT)])
            await self.open()

    def hash(self, text: str) -> str:
        """The id of the record of a key, if it is one; of any text. 40 hexadecimal digits."""
        # A header that is not UTF-8 comes with half surrogates.
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._hash_key, digest_size=_HASH_BYTES).hexdigest()

    async def find(self, text: str) -> License | None:
        """The license of a key. The same work for each text, whether it could be a key or not."""
        await self.open()
        return await self.get(self.hash(text))

    async def get(self, id: str) -> License | None:
        """The license of a record."""
        record = (await self._storage.get(LICENSES, [id])).get(id)
        return None if record is None else _license(record)

    async def create(
        self, email: str, tier: Tier | None = None, device_name: str = DEFAULT_DEVICE, key: str | None = None
    ) -> tuple[License, str]:
        """A license for a further device of a profile, which is opened where there is none (``tier``: else free).

        Gives its key's text too, which nothing shows again. Raises ValueError for what nobody can have, and
        `LicenseError` where the key is taken or the profile has another tier.
        """
        text = new_key() if key is None else checked_key(key)
        email, device_name = checked_email(email), checked_device_name(device_name)
        await self._begin()
        id = self.hash(text)

        async def attempt() -> License:
            if await self.get(id):
                raise LicenseError("there is a license with this key")
            user_id, writes = await self._profile(email, tier)
            document: dict[str, Any] = {
                "license_id": new_id(),
                "device_id": new_id(),
                "user_id": user_id,
                "device_name": device_name,
                "is_active": True,
                "device_fingerprint": None,
                "created_at": format_time(self._clock.now()),
            }
            commit = await self._storage.commit([*writes, Put(LICENSES, id, document, ABSENT)])
            return License(id, commit.versions[-1], **document)

        return await retry(self._storage, [f"{PROFILES.name}:{email}"], attempt), text

    async def _profile(self, email: str, tier: Tier | None) -> tuple[str, Sequence[Write]]:
        """The user id of an email's profile, and what opens that if it is new."""
        user_id = await self._user_id(email)
        if user_id is None:
            user_id = new_id()
            return user_id, self._ledger.opened(user_id, email, tier or "free")
        has = (await self._ledger.profile(user_id)).subscription_tier
        if tier not in (None, has):
            raise LicenseError(f"{email} has the tier {has}, which a subscription alone changes: leave the tier out")
        return user_id, ()

    async def user_id(self, email: str) -> str:
        """Whose email it is. Raises `LicenseError`."""
        user_id = await self._user_id(email.lower())
        if user_id is None:
            raise LicenseError(f"{email} has no license; see homeport licenses list")
        return user_id

    async def _user_id(self, email: str) -> str | None:
        record = (await self._storage.get(EMAILS, [email])).get(email)
        return None if record is None else str(record.decode()["user_id"])

    async def list(self) -> AsyncIterator[tuple[License, Profile]]:
        """All licenses with their profiles, the oldest first."""
        async for record in walk(self._storage, Query(LICENSES, sort=("created_at",))):
            license_ = _license(record)
            yield license_, await self._ledger.profile(license_.user_id)

    async def activate(self, license_id: str) -> License:
        """Lets a device in again. Raises `LicenseError`."""
        return await self._change(license_id, is_active=True)

    async def deactivate(self, license_id: str) -> License:
        """Keeps a device out from the next request on. Raises `LicenseError`."""
        return await self._change(license_id, is_active=False)

    async def reset(self, license_id: str) -> License:
        """Unbinds a license from its machine; the next that asks is bound. Raises `LicenseError`."""
        return await self._change(license_id, device_fingerprint=None)

    async def bind(self, id: str, fingerprint: str) -> License | None:
        """The license of a record, bound to a machine unless it is inactive or already is to one; None where there is
        none. Of several machines at a time one wins."""

        async def attempt() -> License | None:
            license_ = await self.get(id)
            if license_ is None or not license_.is_active or license_.device_fingerprint is not None:
                return license_
            return await self._put(license_._replace(device_fingerprint=fingerprint))

        return await retry(self._storage, [f"{LICENSES.name}/{id}"], attempt)

    async def _change(self, license_id: str, **members: Any) -> License:
        query = Query(LICENSES, (Filter("license_id", "==", license_id),))

        async def attempt() -> License:
            found = (await self._storage.find(query)).records if _ID.fullmatch(license_id) else ()
            if not found:
                raise LicenseError(f"there is no license {license_id}; see homeport licenses list")
            license_ = _license(found[0])
            changed = license_._replace(**members)
            return license_ if changed == license_ else await self._put(changed)

        return await retry(self._storage, [f"{LICENSES.name}:{license_id}"], attempt)

    async def _put(self, license_: License) -> License:
        document = license_._asdict()
        id, version = document.pop("id"), document.pop("version")
        commit = await self._storage.commit([Put(LICENSES, id, document, version)])
        return license_._replace(version=commit.versions[0])


LICENSING = web.AppKey("metering_licensing", Licenses)
"""Set when the application starts."""


@asynccontextmanager
async def licensing(app: web.Application) -> AsyncIterator[None]:
    """Sets `LICENSING`."""
    app[LICENSING] = Licenses(app[STORAGE], app[CLOCK], app[LEDGER])
    await app[LICENSING].open()
    yield


def _license(record: Record) -> License:
    return License(record.id, record.version, **record.decode())


def new_key() -> str:
    """83 random bits: `XXXX-XXXX-XXXX-XXXX`."""
    groups = ("".join(secrets.choice(_CHARACTERS) for _ in range(_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups)


def checked_key(key: str) -> str:
    """Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError("a license key is XXXX-XXXX-XXXX-XXXX of A-Z and 0-9")
    return key


def checked_email(email: str) -> str:
    """In lower case, as all that are kept: nobody's differ in case alone. Raises ValueError."""
    email = email.lower()
    if len(email) > MAX_EMAIL or not _EMAIL.fullmatch(email):
        raise ValueError("an email is such as a@example.com")
    return email


def checked_device_name(name: str) -> str:
    """Raises ValueError."""
    if not _DEVICE_NAME.fullmatch(name):
        raise ValueError(f"a device name is 1 to {MAX_DEVICE_NAME} characters, none of them a control character")
    return name
