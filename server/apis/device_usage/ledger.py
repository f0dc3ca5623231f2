"""Device usage as it is kept: reports, the newest of each device, and who may report.

A user is known by the SHA-256 of the key, which is nowhere kept. Ids are built to be scanned: a report's is
``user/instant/hostname``, so that a history is a range of ids and needs no index.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ....storage import (
    ABSENT,
    Check,
    Collection,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Page,
    Put,
    Query,
    Record,
    Storage,
    Write,
    retry,
    starts_with,
)
from ....storage.times import format_instant, parse_time
from ...errors import Forbidden

REPORTS = Collection("device_usage_reports", (Field("hostname", "text"),))
"""Reports as posted, without the key."""
DEVICES = Collection("device_usage_devices")
"""``hostname``, ``lastSeen`` (as sent), ``totalTokens`` and ``cost`` of each device's newest report."""
USERS = Collection("device_usage_users")
"""``devices``: how many; ``registered``: whether by ``homeport users add``. Written with every device that comes or
goes, so that both always agree."""

_PAGE = 500


def user_id(key: str) -> str:
    """Who a key belongs to: the SHA-256 of its 32 bytes, in hex."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()


class Report(NamedTuple):
    """``instant``: the document's ``timestamp`` in microseconds since the epoch."""

    hostname: str
    instant: int
    document: dict[str, Any]


def newest_cost(costs: Mapping[str, Any]) -> float:
    """What a report says its usage cost: ``actual`` or, where that is 0 or absent, ``opus``, as clients send them."""
    cost: float = costs.get("actual") or costs["opus"]
    return cost


@dataclass(frozen=True, slots=True)
class Admission:
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

        async def attempt() -> None:
            writes: list[Write] = list({id: Put(REPORTS, id, doc) for id, doc in _by_id(user, reports)}.values())
            newest = {report.hostname: report for report in sorted(reports, key=lambda report: report.instant)}
            known = await self._storage.get(DEVICES, [f"{user}/{hostname}" for hostname in newest])
            for hostname, report in newest.items():
                id = f"{user}/{hostname}"
                present = known.get(id)
                if present is None:
                    writes.append(Put(DEVICES, id, _device(report), ABSENT))
                elif report.instant >= parse_time(present.decode()["lastSeen"]):
                    writes.append(Put(DEVICES, id, _device(report), present.version))
                else:
                    writes.append(Check(DEVICES, id, present.version))
            if len(known) < len(newest):
                await self._admit(user, len(newest) - len(known), admission, writes)
                return
            if admission is not None and admission.closed:
                await self._check_registered(user)
            await self._storage.commit(writes)

        await retry(self._storage, [user], attempt)

    async def _admit(self, user: str, devices: int, admission: Admission | None, writes: list[Write]) -> None:
        """Commits writes that bring new devices, if the user may have them."""
        # Users are counted by one newcomer at a time, so that two do not both take the last place.
        async with self._storage.locks.hold([USERS.name]):
            record = (await self._storage.get(USERS, [user])).get(user)
            state = record.decode() if record else {"devices": 0, "registered": False}
            state["devices"] += devices
            if admission is not None:
                if admission.closed and not state["registered"]:
                    raise Forbidden("This user key is not registered here")
                if state["devices"] > admission.max_devices:
                    raise Forbidden(f"This user key has {admission.max_devices} devices, as many as it may have")
                if record is None and await self._storage.count(Query(USERS)) >= admission.max_users:
                    raise Forbidden("This server takes no further users")
            fence = Put(USERS, user, state, record.version if record else ABSENT)
            await self._storage.commit([*writes, fence])

    async def _check_registered(self, user: str) -> None:
        record = (await self._storage.get(USERS, [user])).get(user)
        if record is None or not record.decode()["registered"]:
            raise Forbidden("This user key is not registered here")

    async def devices(self, user: str) -> list[dict[str, Any]]:
        """The user's devices, as `DEVICES` has them, by hostname."""
        page = await self._storage.find(Query(DEVICES, starts_with(f"{user}/")))
        return [record.decode() for record in page.records]

    async def remove_device(self, user: str, hostname: str, silent_since: int | None = None) -> bool:
        """Forgets a device and its reports; False where there is none, or one that was heard since ``silent_since``."""
        id = f"{user}/{hostname}"

        async def attempt() -> bool:
            device = (await self._storage.get(DEVICES, [id])).get(id)
            if device is None:
                return False
            if silent_since is not None and parse_time(device.decode()["lastSeen"]) >= silent_since:
                return False
            owner = (await self._storage.get(USERS, [user]))[user]
            state = owner.decode()
            state["devices"] -= 1
            gone = not state["devices"] and not state["registered"]
            reports = Query(REPORTS, (*starts_with(f"{user}/"), Filter("hostname", "==", hostname)))
            await self._storage.commit(
                [
                    DeleteWhere(reports),
                    Delete(DEVICES, id, device.version),
                    Delete(USERS, user, owner.version) if gone else Put(USERS, user, state, owner.version),
                ]
            )
            return True

        return await retry(self._storage, [user], attempt)

    async def history(
        self, user: str, hostname: str | None, begin: int | None, end: int | None, limit: int, cursor: str | None
    ) -> Page:
        """Reports, newest first; ``begin`` inclusive, ``end`` exclusive, in microseconds since the epoch."""
        first, last = starts_with(f"{user}/")
        if begin is not None:
            first = Filter("id", ">=", f"{user}/{format_instant(begin)}")
        if end is not None:
            last = Filter("id", "<", f"{user}/{format_instant(end)}")
        where = (first, last) if hostname is None else (first, last, Filter("hostname", "==", hostname))
        return await self._storage.find(Query(REPORTS, where, ("-id",), limit, cursor))

    async def forget_before(self, cutoff: int) -> int:
        """Removes all reports of before an instant, and devices that were not heard since; returns how many reports."""
        removed = 0
        user = ""
        async for device in self._all(Query(DEVICES, limit=_PAGE)):
            owner, hostname = device.id.split("/", 1)
            if owner != user:
                user = owner
                old = Filter("id", ">=", f"{user}/"), Filter("id", "<", f"{user}/{format_instant(cutoff)}")
                removed += await self._storage.purge(Query(REPORTS, old))
            if parse_time(device.decode()["lastSeen"]) < cutoff:
                await self.remove_device(user, hostname, cutoff)
        return removed

    async def users(self) -> list[tuple[str, dict[str, Any]]]:
        """Id and `USERS` document of every user."""
        return [(record.id, record.decode()) async for record in self._all(Query(USERS, limit=_PAGE))]

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

    async def _all(self, query: Query) -> AsyncIterator[Record]:
        """Every record that a query matches, a page at a time."""
        while True:
            page = await self._storage.find(query)
            for record in page.records:
                yield record
            if page.next is None:
                return
            query = Query(query.collection, query.where, query.sort, query.limit, page.next)


def _by_id(user: str, reports: Sequence[Report]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{user}/{format_instant(r.instant)}/{r.hostname}", r.document) for r in reports]


def _device(report: Report) -> dict[str, Any]:
    return {
        "hostname": report.hostname,
        "lastSeen": report.document["timestamp"],
        "totalTokens": int(report.document["usage"]["totalTokens"]),
        "cost": newest_cost(report.document["costs"]),
    }
