"""What a program prints to a terminal, as plain text."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder

MAX_STRING = 1 << 20
"""Characters of a control string; one that is longer ends there."""

# ECMA-48 5.4 (control sequences) and 5.6 (control strings; as terminals have it, BEL ends them too, and ESC, CAN and
# SUB break them off), ECMA-35 13.2 (other escape sequences); then what breaks off, and characters that no text has.
_BEGUN = r"\x1b(?:\[[0-?]{0,255})?[ -/]{0,15}"
_STRING = r"\x1b[PX^_\]][^\x07\x18\x1a\x1b]*"
_CONTROL = re.compile(
    rf"(?P<rest>(?:{_BEGUN}|{_STRING})\Z)"
    r"|\x1b\[(?P<parameters>[0-?]{0,255})[ -/]{0,15}(?P<final>[@-~])"
    rf"|{_STRING}(?:[\x07\x18\x1a]|(?=\x1b))"
    r"|\x1b[ -/]{1,15}[0-~]|\x1b[0-OQ-WYZ\\`-~]"
    rf"|{_BEGUN}"
    r"|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)
_OPENS_STRING = ("\x1bP", "\x1bX", "\x1b^", "\x1b_", "\x1b]")
_SPECIAL = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_RETURNS = re.compile(r"\r+(\n?)")

_MOVED = "\v"
"""Stands for where the cursor went to another line, until it is known whether a line has begun there."""
_TO_ANOTHER_LINE = frozenset("ABEFHdf")
_MOVES = re.compile(rf"(^|\n)?{_MOVED}+")
_MAX_BLANKS = 500


class PlainText:
    """Turns the bytes of a terminal into text. Line feeds, tabs, carriage returns within a line, backspaces and what
    is printable stay; there are blanks where a program skips columns, and a line ends where it goes to another.
    """

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        self._skipped = 0
        """So many characters have come of a control string that has no end yet."""
        self._in_line = False

    def feed(self, data: bytes) -> str:
        """The text of what came, whatever the pieces are that it comes in; a sequence that is not complete waits for
        its rest."""
        text = self._rest + self._decode(data)
        self._rest = ""
        if _SPECIAL.search(text):
            text = _MOVES.sub(self._line_end, _CONTROL.sub(self._meaning, text))
        if "\r" in text:
            if text[-1] == "\r":  # a line feed may follow
                text, self._rest = text.rstrip("\r"), "\r" + self._rest
            text = _RETURNS.sub(lambda returns: returns[1] or "\r", text)
        if text:
            self._in_line = text[-1] != "\n"
        return text

    def _meaning(self, control: re.Match[str]) -> str:
        if (rest := control["rest"]) is not None:
            self._wait(rest)
            return ""
        self._skipped = 0
        final, parameters = control["final"], control["parameters"]
        if final == "C":
            return " " * (min(int(parameters), _MAX_BLANKS) if re.fullmatch("[0-9]{1,4}", parameters) else 1)
        if final == "G" and parameters in ("", "1"):
            return "\r"
        return _MOVED if final in _TO_ANOTHER_LINE else ""

    def _wait(self, rest: str) -> None:
        """Keeps a sequence that has no end yet; of a control string no more than that it is one."""
        self._rest = rest[:2] if rest.startswith(_OPENS_STRING) else rest
        self._skipped += len(rest) - len(self._rest)
        if self._skipped > MAX_STRING:
            self._rest, self._skipped = "", 0

    def _line_end(self, moves: re.Match[str]) -> str:
        if moves[1] is None:
            return "\n"
        return "\n" if moves.start() == 0 and self._in_line and not moves[1] else str(moves[1])
