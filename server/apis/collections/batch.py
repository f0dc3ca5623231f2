"""Many writes to a collection, all or nothing (contracts/collections.md, "batch")."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ....storage import ABSENT, Check, Conflict, Delete, InvalidDocument, Put, retry
from ....storage.documents import decode, encode
from ...errors import MAX_PROBLEMS, BadRequest, InvalidBody, Problem
from ...idempotency import Draft
from ...turns import Turns
from .ids import check_id, check_id_in
from .records import META, kept, members, without_meta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....storage import Storage, Write
    from ...idempotency import Once
    from ...request import Answer
    from .user_collection import UserCollection

MAX_OPERATIONS = 1000
_BREATH = 64 * 1024
"""Bytes that are read before others have their turn."""

_envelope = msgspec.json.Decoder(dict[str, msgspec.Raw])
_operations = msgspec.json.Decoder(list[msgspec.Raw])


class Failed(BadRequest):
    """409 or 412: an operation cannot be done, so none was. ``version``: what the record is at, for 412."""

    def __init__(self, status: int, place: int, message: str, version: int | None = None) -> None:
        problem = Problem(("operations", place), message)
        extra = {"operation": place} | ({} if version is None else {"version": version})
        super().__init__(f"Operation {place}: {message}", [problem], extra=extra)
        self.status = HTTPStatus(status)


class Operation(NamedTuple):
    """``put``: what writes the record; None: it goes."""

    id: str
    put: Put | None
    if_version: int | None


async def read_operations(collection: UserCollection, body: bytes, now: int) -> list[Operation]:
    """The operations of a batch, in order, each record checked. Raises `InvalidBody` with everything that is wrong."""
    found: list[Operation] = []
    problems: list[Problem] = []
    places: dict[str, int] = {}
    turns = Turns(_BREATH)
    for place, raw in enumerate(_split(body)):
        await turns.took(len(raw))
        try:
            operation = await _read(collection, raw, now)
            if (first := places.setdefault(operation.id, place)) != place:
                raise InvalidBody(problems=[Problem(("id",), f"is that of operation {first}")])
            found.append(operation)
        except InvalidDocument as error:
            problems.append(Problem(("operations", place), error.message))
        except BadRequest as error:
            problems += [problem._replace(path=("operations", place, *problem.path)) for problem in error.problems]
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InvalidBody(problems=problems)
    return found


def _split(body: bytes) -> list[bytes]:
    """Each operation as it came."""
    try:
        operations = _operations.decode(_envelope.decode(body)["operations"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        raise InvalidBody(problems=[_why_not(body)]) from None
    if len(operations) > MAX_OPERATIONS:
        raise InvalidBody(problems=[Problem(("operations",), f"must be a list of at most {MAX_OPERATIONS} items")])
    return [bytes(operation) for operation in operations]


def _why_not(body: bytes) -> Problem:
    if not body:
        return Problem((), "is required")
    try:
        value = decode(body)
    except InvalidDocument as error:
        return Problem((), error.message)
    if not isinstance(value, dict):
        return Problem((), "must be an object")
    return Problem(("operations",), "must be a list" if "operations" in value else "is required")


async def _read(collection: UserCollection, raw: bytes, now: int) -> Operation:
    value: Any = decode(raw)
    if not isinstance(value, dict):
        raise InvalidBody(problems=[Problem((), "must be an object")])
    op, id, if_version = value.get("op"), value.get("id"), None
    wrong = []
    if op not in ("put", "delete"):
        wrong.append(Problem(("op",), "must be put or delete"))
    if not isinstance(id, str):
        wrong.append(Problem(("id",), "must be a string"))
        id = ""
    if "if_version" in value and (if_version := _version(value["if_version"])) is None:
        wrong.append(Problem(("if_version",), "must be a version, or 0: it must not exist"))
    if op == "put" and not isinstance(value.get("record"), dict):
        wrong.append(Problem(("record",), "must be an object"))
    if wrong:
        raise InvalidBody(problems=wrong)
    check_id(id)
    if op == "delete":
        return Operation(id, None, if_version)
    document = value["record"]
    document.pop(META, None)
    body = without_meta(members(raw)["record"])
    try:
        check_id_in(document, id)
        await collection.verify(document, len(body))
        put = Put(collection.storage, id, kept(body, now), if_version)
    except InvalidDocument as error:  # a value that cannot be indexed
        raise InvalidBody(problems=[Problem(("record", error.field or ""), error.message)]) from error
    except BadRequest as error:
        inside = [problem._replace(path=("record", *problem.path)) for problem in error.problems]
        raise InvalidBody(problems=inside) from error
    return Operation(id, put, if_version)


def _version(value: Any) -> int | None:
    """A version, which is any whole number for JSON Schema, ``5.0`` too; None for what is none."""
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and 0 <= value < 2**53 else None


async def apply(storage: Storage, collection: UserCollection, operations: Sequence[Operation], once: Once) -> Answer:
    """Does the operations in one commit. Raises `Failed`, and then did none."""
    # Whether a deletion takes a version shows only in the commit: those that are unconditional are made conditional.
    loose = [operation.id for operation in operations if operation.put is None and operation.if_version is None]

    async def attempt() -> Answer:
        present = await storage.get(collection.storage, loose) if loose else {}
        writes: list[Write] = []
        for id, put, if_version in operations:
            if put is not None:
                writes.append(put)
            elif if_version == ABSENT or (if_version is None and id not in present):
                writes.append(Check(collection.storage, id, ABSENT))
            else:
                writes.append(Delete(collection.storage, id, present[id].version if if_version is None else if_version))
        try:
            return await once.commit(_draft(operations, writes), writes)
        except Conflict as conflict:
            if conflict.reason == "unique":
                raise Failed(409, conflict.index, f"{conflict.field} is taken") from conflict
            if operations[conflict.index].if_version is None:
                raise
            state = f"is at version {conflict.version}" if conflict.version else "does not exist"
            raise Failed(412, conflict.index, f"the record {state}", conflict.version) from conflict

    return await retry(storage, [f"{collection.storage.name}/{id}" for id in loose], attempt)


def _draft(operations: Sequence[Operation], writes: Sequence[Write]) -> Draft:
    """The answer, with a version for each write that takes one, and 0 for the deletion of what is not there."""
    body: list[str | int] = ['{"results":[']
    taken = 0
    for place, (operation, write) in enumerate(zip(operations, writes, strict=True)):
        body.append(f'{"," if place else ""}{{"id":{encode(operation.id).decode()},"version":')
        if isinstance(write, Check):
            body.append("0")
        else:
            taken += 1
            body.append(taken)
        body.append("}")
    return Draft(200, {}, [*body, '],"version":', taken, "}"])
