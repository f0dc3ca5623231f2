"""The title of a Markdown text: its first ``# `` heading."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..texts import plain

WINDOW = 64 * 1024
"""Bytes at the beginning of a file among which its heading is looked for."""
MAX_TITLE = 300
"""Characters."""

_BOM = b"\xef\xbb\xbf"
_FRONT_MATTER = re.compile(rb"(?s)(?:\xef\xbb\xbf)?---[ \t]*[\r\n](?:.*?[\r\n])?---[ \t]*(?=[\r\n]|\Z)")
"""YAML between two lines of hyphens, at the beginning."""
_HEADING = re.compile(
    rb"(?s)(?:\A(?:\xef\xbb\xbf)?|[\r\n])"
    rb"(?:# +(?P<title>[^\s][^\r\n]*)"
    # Code between fences (CommonMark 4.5), to the end where there is no second one, has no headings but comments.
    rb"| {0,3}(?:(?P<fence>`{3,})[^`\r\n]*|(?P<tildes>~{3,})[^\r\n]*)(?=[\r\n]|\Z)"
    rb"(?:.*?[\r\n] {0,3}(?(fence)(?P=fence)`*|(?P=tildes)~*)[ \t]*(?=[\r\n]|\Z)|.*))"
)


def title_of(path: str, text: bytes) -> str:
    """What the heading of a file says, as plain text; where there is none, or none in UTF-8, the file's name."""
    heading = _heading(text)
    try:
        found = _titled(heading["title"].decode()) if heading else ""
    except UnicodeDecodeError:
        found = ""
    return found or _titled(PurePosixPath(path).stem)


def with_title(text: bytes, title: str) -> bytes:
    """The text with another heading; with one above all but its front matter, where it has none. Every other byte
    stays."""
    if heading := _heading(text):
        return text[: heading.start("title")] + title.encode() + text[heading.end("title") :]
    if front := _FRONT_MATTER.match(text, 0, WINDOW):
        return text[: front.end()] + f"\n\n# {title}\n".encode() + text[front.end() :]
    at = len(_BOM) if text.startswith(_BOM) else 0
    return text[:at] + f"# {title}\n\n".encode() + text[at:]


def _heading(text: bytes) -> re.Match[bytes] | None:
    front = _FRONT_MATTER.match(text, 0, WINDOW)
    found = _HEADING.finditer(text, front.end() if front else 0, WINDOW)
    return next((match for match in found if match["title"] is not None), None)


def _titled(text: str) -> str:
    return plain(text)[:MAX_TITLE].rstrip()
