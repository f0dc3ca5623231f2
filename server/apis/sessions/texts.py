"""Texts of others, made fit to be shown in a line."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def plain(text: str) -> str:
    """A text of one line, without control characters."""
    return _CONTROL.sub(" ", text).strip()


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; what is cut ends with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
