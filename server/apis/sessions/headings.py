"""The title of a Markdown text: its first ``# `` heading."""

from __future__ import annotations

import re

WINDOW = 64 * 1024
"""Bytes at the beginning of a file among which its heading is looked for."""
MAX_TITLE = 300
"""Characters."""

_BOM = b"\xef\xbb\xbf"
_HEADING = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])# +([^\s][^\r\n]*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def title_in(text: bytes) -> str | None:
    """What the heading says, as plain text; None where there is none, or none in UTF-8."""
    heading = _HEADING.search(text, 0, WINDOW)
    try:
        return plain(heading[1].decode()) or None if heading else None
    except UnicodeDecodeError:
        return None


def with_title(text: bytes, title: str) -> bytes:
    """The text with another heading; with one above all else, where it has none. Every other byte stays."""
    heading = _HEADING.search(text, 0, WINDOW)
    if heading is not None:
        return text[: heading.start(1)] + title.encode() + text[heading.end(1) :]
    at = len(_BOM) if text.startswith(_BOM) else 0
    return text[:at] + f"# {title}\n\n".encode() + text[at:]


def plain(text: str) -> str:
    """A text of one line without control characters, not overlong."""
    return _CONTROL.sub(" ", text).strip()[:MAX_TITLE].rstrip()
