"""Bodies that differ from the contracts' in what a test says."""

from copy import deepcopy
from typing import Any


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other members: those of ``changes``, or, as ``usage__totalTokens``, theirs. With ``...`` a member is
    left out."""
    body = deepcopy(body)
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = body
        for step in outer:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return body
