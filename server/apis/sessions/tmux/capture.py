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
import time

SEGMENT_BYTES = 4 << 20
WAKE = "wake"
_READ_BYTES = 64 * 1024
_GATHER_SECONDS = 0.01
"""Between two reads: programs that print much are read in larger pieces. Not where there is more than a piece: tmux
keeps all that was not yet read in memory, without a bound."""


def segments(folder: str) -> list[int]:
    """Where the segments begin, in order."""
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def segment_path(folder: str, start: int) -> str:
    return os.path.join(folder, f"{start:020}")


class _Writer:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = -1
        self._wake = -1
        self._size = 0
        starts = segments(folder)
        self._position = 0
        if starts:
            self._position = starts[-1] + os.path.getsize(segment_path(folder, starts[-1]))

    def write(self, data: bytes) -> None:
        """Appends; where the disk takes no more, readers find a gap before the next segment."""
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


def main(folder: str) -> None:
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until the one before has written the rest
    writer = _Writer(folder)
    writer.wake()
    while data := os.read(0, _READ_BYTES):
        writer.write(data)
        writer.wake()
        if len(data) < _READ_BYTES:
            time.sleep(_GATHER_SECONDS)
    writer.wake()


if __name__ == "__main__":
    main(sys.argv[1])
