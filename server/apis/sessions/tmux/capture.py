"""Keeps what a pane prints in a file of bounded size; tmux runs this beside the pane (pipe-pane).

It outlives the server, and is a program of its own for that: it starts without site-packages, and imports the standard
library alone. A session's folder holds segments, each named by how many bytes were printed before it, of which the
newest stay, as many as hold `SEGMENT_BYTES` at least; and a pipe, `WAKE`, that tells a server that there is something
to read, and by its end that nothing more will come: that takes no space on a disk, and tells of a program that was
killed, too.
"""

# pathlib takes longer to import than all the rest.
# ruff: noqa: PTH108, PTH118, PTH202, PTH208

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time

SEGMENT_BYTES = 4 << 20
WAKE = "wake"
_READ_BYTES = 64 * 1024
_GATHER_SECONDS = 0.01
"""Between two reads, so that programs which print little at a time are read in larger pieces."""
_MUCH_BYTES = 16 * 1024
"""What tmux writes at a time where it has more, which it keeps in memory, without a bound: that is read at once."""
_MAX_WAITING = 4 << 20
"""Bytes that wait for a disk which does not answer: they would in tmux, without a bound."""


def segments(folder: str) -> list[int]:
    """Where the segments begin, in order."""
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def segment_path(folder: str, start: int) -> str:
    return os.path.join(folder, f"{start:020}")


class _Waiting:
    """What was read and is not written yet. Of more than it holds the end is left out."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0
        self._read = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, data: bytes) -> None:
        """Nothing means the end."""
        with self._changed:
            if not self._data:
                self._start = self._read
            if self._start + len(self._data) == self._read and len(self._data) < _MAX_WAITING:
                self._data += data
            self._read += len(data)
            self._ended = not data
            self._changed.notify()

    def take(self) -> tuple[int, bytes]:
        """A piece, when there is one, and how many bytes were read before it; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._ended)
            start, data = self._start, bytes(self._data[:_READ_BYTES])
            del self._data[:_READ_BYTES]
            self._start += len(data)
            return start, data


class _Writer:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = -1
        self._wake = -1
        self._size = 0
        starts = segments(folder)
        self._begun = 0
        """How many bytes had been printed when this one began."""
        if starts:
            self._begun = starts[-1] + os.path.getsize(segment_path(folder, starts[-1]))
        self._position = self._begun

    def write(self, start: int, data: bytes) -> None:
        """Appends; where the disk takes no more, or something is left out, readers find a gap before the next
        segment."""
        if self._begun + start != self._position:
            self._close()
        self._position = self._begun + start
        end = self._position + len(data)
        try:
            if self._file < 0 or self._size >= SEGMENT_BYTES:
                self._begin()
            while data:
                done = os.write(self._file, data)
                self._size += done
                data = data[done:]
        except OSError:
            self._close()
        self._position = end

    def _begin(self) -> None:
        self._close()
        kept = 0
        for start in reversed(segments(self._folder)):
            path = segment_path(self._folder, start)
            size = os.path.getsize(path)
            if kept >= SEGMENT_BYTES or not size:
                os.unlink(path)
            kept += size
        path = segment_path(self._folder, self._position)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def wake(self) -> None:
        """Tells the server, if there is one; one that has not yet read that it was told needs not be told again."""
        try:
            if self._wake < 0:
                self._wake = os.open(os.path.join(self._folder, WAKE), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self._wake, b".")
        except OSError:
            return


def _read(waiting: _Waiting) -> None:
    try:
        while data := os.read(0, _READ_BYTES):
            waiting.put(data)
            if len(data) < _MUCH_BYTES:
                time.sleep(_GATHER_SECONDS)
    finally:
        waiting.put(b"")


def main(folder: str) -> None:
    waiting = _Waiting()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until the one before has written the rest
    writer = _Writer(folder)
    writer.wake()
    while (piece := waiting.take())[1]:
        writer.write(*piece)
        writer.wake()
    writer.wake()


if __name__ == "__main__":
    main(sys.argv[1])
