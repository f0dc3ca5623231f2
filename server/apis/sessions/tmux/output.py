"""What a session has printed: its last lines, and whoever wants to know what comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from .plain_text import PlainText

MAX_LINES = 10_000
MAX_CHARACTERS = 4 << 20
"""Of all lines together; beyond that fewer are kept."""
MAX_LINE = 1 << 16
"""Characters; a longer line is kept as several."""

Listener = Callable[[str], None]


class Output:
    """The last lines of a session, as plain text."""

    def __init__(self) -> None:
        self.complete = False
        """Whether nothing comes any more."""
        self._text = PlainText()
        self._lines: deque[str] = deque()
        self._characters = 0
        self._last = ""
        """The line that has no end yet."""
        self._listeners: list[Listener] = []

    def lines(self, count: int = MAX_LINES) -> list[str]:
        """The last lines, the first of them first; of what a program printed over in a line only what is seen."""
        last = [_seen(self._last)] if self._last else []
        earlier = list(islice(reversed(self._lines), max(0, count - len(last))))
        return [*reversed(earlier), *last][-count:] if count else []

    def attach(self, listener: Listener) -> str:
        """The kept text; from then on the listener is called with what comes, piece by piece: nothing is lost or told
        twice. There may be carriage returns and backspaces within the last line."""
        self._listeners.append(listener)
        return "\n".join([*self._lines, self._last])

    def detach(self, listener: Listener) -> None:
        """Calls a listener no more; one that is not attached is no error."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def feed(self, data: bytes) -> None:
        """Takes in what the session printed, in pieces of any size."""
        text = self._text.feed(data)
        if not text:
            return
        *ended, self._last = (self._last + text).split("\n")
        self._keep(ended)
        self._last = _after_return(self._last)
        if len(self._last) > MAX_LINE:
            *pieces, self._last = _cut(self._last)
            self._keep(pieces)
        for listener in tuple(self._listeners):
            listener(text)

    def _keep(self, ended: Iterable[str]) -> None:
        lines = self._lines
        for line in ended:
            for piece in _cut(_seen(line)):
                lines.append(piece)
                self._characters += len(piece)
        while len(lines) > MAX_LINES or self._characters > MAX_CHARACTERS:
            self._characters -= len(lines.popleft())


def _seen(line: str) -> str:
    """A line without what was printed over: after a carriage return programs write all of it again."""
    line = _after_return(line)
    if "\b" not in line:
        return line
    seen: list[str] = []
    for character in line:
        if character != "\b":
            seen.append(character)
        elif seen:
            seen.pop()
    return "".join(seen)


def _after_return(line: str) -> str:
    return line[line.rfind("\r") + 1 :] if "\r" in line else line


def _cut(line: str) -> list[str]:
    return [line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE)] or [""]
