"""What a program prints to a terminal, as plain text."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder

MAX_SEQUENCE = 1 << 20
"""Characters of a control string; one that is longer ends there."""

# ECMA-48 5.4 (control sequences) and 5.6 (control strings; as terminals have it, BEL ends them too, and ESC, CAN and
# SUB break them off), ECMA-35 13.2 (other escape sequences); then what breaks off, and characters that no text has.
_STRING = r"\x1b[PX^_\]][^\x07\x18\x1a\x1b]*"
_CONTROL = re.compile(
    r"\x1b\[(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~])"
    rf"|{_STRING}(?:[\x07\x18\x1a]|(?=\x1b))"
    r"|\x1b[ -/]+[0-~]|\x1b[0-OQ-WYZ\\`-~]"
    r"|\x1b(?:\[[0-?]*)?[ -/]*"
    r"|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)
_UNFINISHED = re.compile(rf"(?:\x1b(?:\[[0-?]*)?[ -/]*|{_STRING})\Z")
_SPECIAL = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LINE_END = re.compile(r"\r+\n")

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
        self._in_line = False

    def feed(self, data: bytes) -> str:
        """The text of what came; a sequence that is not complete waits for its rest."""
        text = self._rest + self._decode(data)
        self._rest = ""
        if (last := text.rfind("\x1b")) >= 0 and _UNFINISHED.match(text, last):
            text, self._rest = text[:last], text[last : last + MAX_SEQUENCE]
            if len(self._rest) == MAX_SEQUENCE:
                self._rest = ""
        if _SPECIAL.search(text):
            text = _MOVES.sub(self._line_end, _CONTROL.sub(_meaning, text))
        if "\r" in text:
            kept = text.rstrip("\r")
            if kept != text:  # a line feed may follow
                text, self._rest = kept, "\r" + self._rest
            text = _LINE_END.sub("\n", text)
        if text:
            self._in_line = text[-1] != "\n"
        return text

    def _line_end(self, moves: re.Match[str]) -> str:
        if moves[1] is None:
            return "\n"
        return "\n" if moves.start() == 0 and self._in_line and not moves[1] else moves[1]


def _meaning(control: re.Match[str]) -> str:
    final, parameters = control["final"], control["parameters"]
    if final == "C":
        return " " * (min(int(parameters), _MAX_BLANKS) if re.fullmatch("[0-9]{1,4}", parameters) else 1)
    if final == "G" and parameters in ("", "1"):
        return "\r"
    return _MOVED if final in _TO_ANOTHER_LINE else ""
