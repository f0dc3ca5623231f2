"""What a commit is made of, and what it did."""

from __future__ import annotations

from typing import Any, NamedTuple

from .documents import InvalidDocument, decode, encode
from .queries import Query
from .records import Collection, check_id


class Put:
    """Write a record, whole. ``document``: a JSON object as bytes, or as a dict such as `documents.decode` makes.

    Bytes are kept as they are, save that line breaks between tokens become blanks. ``if_version``: the version that
    the record must have, or `ABSENT`. Raises `InvalidDocument`.
    """

    __slots__ = ("collection", "document", "id", "if_version", "values")

    def __init__(
        self, collection: Collection, id: str, document: bytes | dict[str, Any], if_version: int | None = None
    ) -> None:
        check_id(id)
        if isinstance(document, bytes):
            value = decode(document)
            if not isinstance(value, dict):
                raise InvalidDocument("must be a JSON object")
            if b"\n" in document or b"\r" in document:
                document = document.translate(_LINE_BREAKS_TO_BLANKS)
        else:
            try:
                value, document = document, encode(document)
            except UnicodeEncodeError as error:
                raise InvalidDocument("holds half of a surrogate pair") from error
        self.collection = collection
        self.id = id
        self.document = document
        self.if_version = if_version
        self.values = collection.values(value)

    def __repr__(self) -> str:
        return f"Put({self.collection.name}/{self.id}, if_version={self.if_version})"


# A raw line break cannot stand inside a JSON string.
_LINE_BREAKS_TO_BLANKS = bytes.maketrans(b"\r\n", b"  ")


class Delete(NamedTuple):
    """Remove a record; one that is not there is no error, unless ``if_version`` asks for it."""

    collection: Collection
    id: str
    if_version: int | None = None


class DeleteWhere(NamedTuple):
    """Remove the records that a query finds before the commit, save those that the same commit names.

    The query has no order, offset or cursor (`InvalidQuery`); its limit takes the first in order of id.
    """

    query: Query


class Check(NamedTuple):
    """A precondition on a record that the commit does not write."""

    collection: Collection
    id: str
    if_version: int


Write = Put | Delete | DeleteWhere | Check


class Commit(NamedTuple):
    """What a commit did: the store's version after it and, for each of its writes, the last version that it took (0
    where it changed nothing) and how many records it changed."""

    version: int
    versions: tuple[int, ...]
    counts: tuple[int, ...]
