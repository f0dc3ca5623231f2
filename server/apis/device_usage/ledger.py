"""Device usage as it is kept: reports, devices, and who may report.

A user is known by the SHA-256 of the key, which is nowhere kept. Ids are built to be scanned: a report's is
``user/hostname/instant``, so that a device's history is a range of ids, its newest report the last of them, and no
index is needed. A report of a known device is one write.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ....storage import (
    ABSENT,
    Check,
    Collection,
    Conflict,
    Delete,
    DeleteWhere,
    Filter,
    Operator,
    Put,
    Query,
    Record,
    Storage,
    Write,
    retry,
    starts_with,
    walk,
)
from ....storage.times import format_instant, parse_time
from ...errors import Forbidden

REPORTS = Collection("device_usage_reports")
"""Reports as posted, without the key."""
DEVICES = Collection("device_usage_devices")
"""The ``hostname`` of each device that has reported; every report is written on condition that its device is here."""
USERS = Collection("device_usage_users")
"""``devices``: how many; ``registered``: whether by ``homeport users add``. Written with every device that comes or
goes, so that both always agree."""


def user_id(key: str) -> str:
    """Who a key belongs to: half of the SHA-256 of its 32 bytes, in hex."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()[:32]


class Report(NamedTuple):
    """``instant``: the document's ``timestamp`` in microseconds since the epoch."""

    hostname: str
    instant: int
    document: dict[str, Any]


class Admission(NamedTuple):
    """Who may begin to report. ``max_users`` and ``max_devices`` are counts."""

    closed: bool
    max_users: int
    max_devices: int


class Ledger:
    """What the API knows of users, on a store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def record(self, user: str, reports: Sequence[Report], admission: Admission | None) -> None:
        """Keeps reports of one user, all or none; each replaces one of the same device and instant.

        Raises `Forbidden` where ``admission`` (None: everybody) lets the user or a new device not in.
        """
        devices: dict[str, str] = {}
        writes: dict[str, Put] = {}
        for hostname, instant, document in reports:
            device = _device_id(user, hostname)
            devices[device] = hostname
            id = f"{device}/{format_instant(instant)}"
            writes[id] = Put(REPORTS, id, document)

        async def attempt() -> None:
            known = await self._storage.get(DEVICES, list(devices))
            if len(known) < len(devices):
                await self._admit(user, admission, devices, writes.values())
                return
            if admission is not None and admission.closed:
                await self._check_registered(user)
            present = [Check(DEVICES, id, record.version) for id, record in known.items()]
            await self._storage.commit([*present, *writes.values()])

        try:
            await attempt()  # a known device needs no lock: its report waits for no other
        except Conflict:
            await retry(self._storage, [user], attempt)

    async def _admit(
        self, user: str, admission: Admission | None, devices: Mapping[str, str], writes: Iterable[Write] = ()
    ) -> None:
        """Commits writes, and the devices (hostnames by id) that are new, if the user may have them."""
        # One newcomer at a time, who looks again: two do not both take the last place, nor does one device take two.
        async with self._storage.locks.hold([USERS.name]):
            known = await self._storage.get(DEVICES, list(devices))
            new = [Put(DEVICES, id, {"hostname": name}, ABSENT) for id, name in devices.items() if id not in known]
            record = (await self._storage.get(USERS, [user])).get(user)
            state = record.decode() if record else {"devices": 0, "registered": False}
            state["devices"] += len(new)
            if admission is not None:
                if admission.closed and not state["registered"]:
                    raise Forbidden("This user key is not registered here")
                if new and state["devices"] > admission.max_devices:
                    raise Forbidden(f"This user key has {admission.max_devices} devices, as many as it may have")
                if record is None and await self._storage.count(Query(USERS)) >= admission.max_users:
                    raise Forbidden("This server takes no further users")
            fence = Put(USERS, user, state, record.version if record else ABSENT)
            await self._storage.commit([*writes, *new, fence])

    async def _check_registered(self, user: str) -> None:
        record = (await self._storage.get(USERS, [user])).get(user)
        if record is None or not record.decode()["registered"]:
            raise Forbidden("This user key is not registered here")

    async def knows(self, user: str) -> bool:
        """Whether a user has reported or is registered."""
        return bool(await self._storage.get(USERS, [user]))

    async def newest(self, user: str) -> list[dict[str, Any]]:
        """The newest report of each of the user's devices, by hostname."""
        page = await self._storage.find(Query(DEVICES, starts_with(f"{user}/")))
        newest = [Query(REPORTS, starts_with(f"{device.id}/"), ("-id",), limit=1) for device in page.records]
        # A device that is removed between the two reads has no report.
        return [report.decode() for query in newest for report in (await self._storage.find(query)).records]

    async def remove_device(self, user: str, hostname: str) -> bool:
        """Forgets a device and its reports; False where there is none."""
        id = _device_id(user, hostname)
        return await retry(self._storage, [user], lambda: self._remove(user, id, DeleteWhere(_reports_of(id))))

    async def _remove(self, user: str, id: str, *further: Write) -> bool:
        device = (await self._storage.get(DEVICES, [id])).get(id)
        if device is None:
            return False
        owner = (await self._storage.get(USERS, [user]))[user]
        state = owner.decode()
        state["devices"] -= 1
        gone = not state["devices"] and not state["registered"]
        fence = Delete(USERS, user, owner.version) if gone else Put(USERS, user, state, owner.version)
        await self._storage.commit([*further, Delete(DEVICES, id, device.version), fence])
        return True

    async def history(
        self, user: str, hostname: str | None, begin: int | None, end: int | None, limit: int, cursor: str | None
    ) -> tuple[list[bytes], str | None]:
        """Reports, newest first, and the cursor of those that follow; ``begin`` inclusive, ``end`` exclusive, in
        microseconds since the epoch. Raises ValueError for a cursor that is none."""
        if hostname is None:
            devices = [device.id async for device in walk(self._storage, Query(DEVICES, starts_with(f"{user}/")))]
        else:
            devices = [_device_id(user, hostname)]
        last_instant, last_device = _position(cursor) if cursor else ("", "")
        first = "" if begin is None else format_instant(begin)
        best: list[Record] = []
        for device in devices:
            where = [*_reports_of(device).where, Filter("id", ">=", f"{device}/{first}")]
            if end is not None:
                where.append(Filter("id", "<", f"{device}/{format_instant(end)}"))
            if cursor:  # of one instant, devices come in order of their ids
                after: Operator = "<=" if device > f"{user}/{last_device}" else "<"
                where.append(Filter("id", after, f"{device}/{last_instant}"))
            page = await self._storage.find(Query(REPORTS, tuple(where), ("-id",), limit + 1))
            best = sorted([*best, *page.records], key=_instant_of, reverse=True)[: limit + 1]
            if len(best) > limit:
                first = _instant_of(best[-1])  # what is older cannot be among the newest
        following = None
        if len(best) > limit:
            best.pop()
            device = best[-1].id[: -len(_instant_of(best[-1])) - 1]
            following = _cursor(_instant_of(best[-1]), device.removeprefix(f"{user}/"))
        return [record.document for record in best], following

    async def forget_before(self, cutoff: int) -> int:
        """Removes the reports of before an instant, and devices that have no other; returns how many reports."""
        removed = 0
        async for device in walk(self._storage, Query(DEVICES)):
            old = Filter("id", "<", f"{device.id}/{format_instant(cutoff)}")
            removed += await self._storage.purge(Query(REPORTS, (*_reports_of(device.id).where, old)))
            if not await self._storage.count(_reports_of(device.id)):
                await self._forget_silent(device)
        return removed

    async def _forget_silent(self, device: Record) -> None:
        user, hostname = device.id.split("/", 1)[0], device.decode()["hostname"]

        async def attempt() -> None:
            if await self._remove(user, device.id) and await self._storage.count(_reports_of(device.id)):
                # It was heard just before it was removed. Nothing else brings it back while this attempt has its turn.
                await self._admit(user, None, {device.id: hostname})

        await retry(self._storage, [user], attempt)

    async def users(self) -> list[tuple[str, dict[str, Any]]]:
        """Id and `USERS` document of every user."""
        return [(record.id, record.decode()) async for record in walk(self._storage, Query(USERS))]

    async def register(self, user: str, registered: bool) -> bool:
        """Lets a user report where registration is closed, or no longer; False where that was so already.

        What a user has reported stays until it is old.
        """

        async def attempt() -> bool:
            record = (await self._storage.get(USERS, [user])).get(user)
            state = record.decode() if record else {"devices": 0, "registered": False}
            if state["registered"] == registered:
                return False
            state["registered"] = registered
            version = record.version if record else ABSENT
            gone = not registered and not state["devices"]
            await self._storage.commit([Delete(USERS, user, version) if gone else Put(USERS, user, state, version)])
            return True

        return await retry(self._storage, [user], attempt)


def _device_id(user: str, hostname: str) -> str:
    """Without a slash in the host's part, so that no device's reports lie among another's."""
    return f"{user}/{hostname.replace('%', '%25').replace('/', '%2F')}"


def _reports_of(device: str) -> Query:
    return Query(REPORTS, starts_with(f"{device}/"))


def _instant_of(report: Record) -> str:
    return report.id.rpartition("/")[2]


def _cursor(instant: str, device: str) -> str:
    return base64.urlsafe_b64encode(f"{instant}/{device}".encode()).decode()


def _position(cursor: str) -> tuple[str, str]:
    instant, slash, device = base64.b64decode(cursor, b"-_", validate=True).decode().partition("/")
    if not slash or format_instant(parse_time(instant)) != instant or "\0" in device:
        raise ValueError("no cursor")
    return instant, device
