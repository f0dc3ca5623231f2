"""The names that tmux has for keys."""

from __future__ import annotations

import re
from typing import Final

from ....errors import InvalidBody, Problem

MAX_KEYS: Final = 100
"""At a time."""
_NAMED = (
    "Up|Down|Left|Right|Enter|Escape|Tab|BTab|Space|BSpace|Home|End|PageUp|PgUp|PPage|PageDown|PgDn|NPage"
    "|IC|Insert|DC|Delete|F(?:[1-9]|1[0-2])|KP(?:[0-9*+./-]|Enter)"
)
_KEY = re.compile(rf"\^[!-~]|(?:[CMS]-){{0,3}}(?:{_NAMED}|[^\W_]|[!-/:-@\[-`{{-~])")
"""A key as tmux names it (tmux(1), "KEY BINDINGS"); it would type what is no name letter by letter."""


def keys_of(text: str) -> list[str]:
    """The names of keys in a text, with blanks between. Raises `InvalidBody`."""
    keys = text.split()
    wrong = next((key for key in keys if not _KEY.fullmatch(key)), None)
    if wrong is not None or not 1 <= len(keys) <= MAX_KEYS:
        found = f", not {wrong}" if wrong else ""
        message = f"must be 1 to {MAX_KEYS} names of keys, such as C-c, Escape or Down{found}"
        raise InvalidBody(problems=[Problem(("keys",), message)])
    return keys
