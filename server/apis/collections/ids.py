"""What a record may be called."""

from __future__ import annotations

import re
from typing import Any

from ....storage.records import is_text
from ...errors import InvalidBody, InvalidParameters, Problem

MAX_ID_BYTES = 255
RESERVED = ("batch", "changes", "sync")
"""What other things below a collection are called."""
_FORBIDDEN = re.compile(r"[/\x00-\x1f\x7f-\x9f]")


def check_id(id: str) -> str:
    """The id, if a record may have it; raises `InvalidParameters`."""
    if not is_text(id) or not 1 <= len(id.encode()) <= MAX_ID_BYTES or _FORBIDDEN.search(id):
        message = f"must be 1 to {MAX_ID_BYTES} bytes of UTF-8 without / and control characters"
    elif id in RESERVED:
        message = f"must not be {', '.join(RESERVED[:-1])} or {RESERVED[-1]}"
    else:
        return id
    raise InvalidParameters(problems=[Problem(("id",), message)])


def id_in(document: Any) -> str | None:
    """The id that a document says it has, if it does; a whole number counts as its digits. Raises `InvalidBody`."""
    id = document.get("id") if isinstance(document, dict) else None
    if id is None or isinstance(id, str):
        return id
    if isinstance(id, int) and not isinstance(id, bool):
        return str(id)
    raise InvalidBody(problems=[Problem(("id",), "must be a string or a whole number")])


def check_id_in(document: Any, id: str) -> None:
    """Raises `InvalidBody` where a document says that it has another id."""
    if (said := id_in(document)) is not None and said != id:
        raise InvalidBody(problems=[Problem(("id",), f"must be {id}, as in the path, or absent")])
