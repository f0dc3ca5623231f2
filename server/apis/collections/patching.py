"""JSON Merge Patch (RFC 7396) on bytes: what a patch does not name stays as it came."""

from __future__ import annotations

from .records import joined, members


def merged(target: bytes, patch: bytes) -> bytes:
    """A JSON object with another applied to it, both known to be objects."""
    found = members(target)
    for name, value in members(patch).items():
        if value == b"null":
            found.pop(name, None)
        elif value.startswith(b"{"):
            inner = found.get(name, b"{}")
            found[name] = merged(inner if inner.startswith(b"{") else b"{}", value)
        else:
            found[name] = value
    return joined(found)
