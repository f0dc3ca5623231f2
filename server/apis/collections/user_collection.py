"""A collection that a user has asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InvalidBody

if TYPE_CHECKING:
    from pathlib import Path

    from ....storage import Collection
    from .schemas import CompiledSchema

PREFIX = "collections_"
"""Of the names that collections have in the store."""
_ON_LOOP = 32 * 1024
"""Bytes of a document that is checked at once; a larger one, on a thread."""

Access = Literal["public", "key"]


@dataclass(kw_only=True, eq=False)
class UserCollection:
    """A collection of documents that fit a schema. ``storage`` and ``schema`` become others when that is edited."""

    name: str
    storage: Collection
    schema: CompiledSchema
    file: Path
    """The schema's."""
    read: Access
    write: Access
    seed: Path | None
    keep_deleted_days: int

    def check(self, document: Any) -> None:
        """Raises `InvalidBody` with every problem of a document, at most a hundred. May take a while: `verify`."""
        if not self.schema.accepts(document):
            raise InvalidBody(f"The record does not fit {self.name}", self.schema.problems(document))

    async def verify(self, document: Any, size: int) -> None:
        """`check` without making the loop wait; ``size``: bytes that the document came in."""
        if size > _ON_LOOP or not self.schema.accepts(document):
            await asyncio.to_thread(self.check, document)
