"""Reading what `capture` keeps, as it comes."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from .capture import WAKE, segment_path, segments
from .output import MAX_LINES, Output

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_GATHER_SECONDS = 0.02
"""Between two reads of one session: where much comes it is read in larger pieces."""
_TURN_SECONDS = 0.002
"""How long output is read before others have their turn on the loop; and how long that is."""


class Tail:
    """Reads the segments of a folder, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._file = -1
        self._start = -1
        self._position = -1

    def read(self) -> bytes:
        """What comes next, at most 64 KiB; empty where there is nothing yet."""
        while not (data := self._here()):
            later = [start for start in segments(self._folder) if start > self._start]
            if not later:
                return b""
            if data := self._here():  # it was written before the next segment was begun
                return data
            self.close()
            self._start = later[0]
            try:
                self._file = os.open(segment_path(self._folder, self._start), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # two more were begun meanwhile
            missed = self._start - self._position if self._position >= 0 else 0
            self._position = self._start
            if missed:
                return b"\r\n[%d bytes of output were not kept]\r\n" % missed
        return data

    def _here(self) -> bytes:
        if self._file < 0:
            return b""
        data = os.read(self._file, _READ_BYTES)
        self._position += len(data)
        return data

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def load(folder: Path) -> tuple[Output, Tail]:
    """What is kept of a session's output, and where it goes on. Raises OSError."""
    tail = Tail(folder)
    try:
        data = b"".join(iter(tail.read, b""))
    except BaseException:
        tail.close()
        raise
    begin = len(data)
    for _ in range(MAX_LINES + 1):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            break
    output = Output()
    output.feed(data[begin + 1 :])
    return output, tail


class Readers:
    """Reads the output of many sessions in turn, so that the loop has time for others, however much they print."""

    def __init__(self) -> None:
        self._waiting: deque[Follower] = deque()
        self._next: asyncio.Handle | None = None

    def add(self, follower: Follower) -> None:
        self._waiting.append(follower)
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        until = perf_counter() + _TURN_SECONDS
        self._next = None
        try:
            while self._waiting and perf_counter() < until:
                self._waiting.popleft().read()
        finally:
            if self._waiting:
                self._next = asyncio.get_running_loop().call_later(_TURN_SECONDS, self._turn)


class Follower:
    """One session's output, as it is printed. ``ended`` is called when nobody keeps it any more and all of it is read;
    it may go on after that."""

    def __init__(self, folder: Path, readers: Readers, ended: Callable[[], None]) -> None:
        self.output = Output()
        self._folder = folder
        self._ended = ended
        self._readers = readers
        self._tail = Tail(folder)
        self._pipe = -1
        self._busy = False
        self._at_end = False
        self._closed = False
        self._loaded = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Reads what there is, and then what comes. Raises OSError."""
        self._busy = True
        try:
            await asyncio.to_thread(make_folder, self._folder)
            self._listen()
            self.output, self._tail = await asyncio.to_thread(load, self._folder)
        finally:
            self._loaded.set()
            if self._closed:
                self._unlisten()
        if self._closed:
            self._tail.close()
            return
        self._due()

    async def loaded(self) -> Output:
        """`output`, once `open` has read what there is: until then it is another."""
        await self._loaded.wait()
        return self.output

    def _listen(self) -> None:
        """Waits to be woken. The pipe, opened anew, is not at its end any more."""
        pipe = os.open(self._folder / WAKE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._unlisten()
        self._pipe = pipe
        asyncio.get_running_loop().add_reader(pipe, self._woken)

    def _unlisten(self) -> None:
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def close(self) -> None:
        """Reads no more."""
        self._closed = True
        self._loaded.set()
        self._unlisten()
        if self._timer is not None:
            self._timer.cancel()
        self._tail.close()

    def _woken(self) -> None:
        try:
            if not os.read(self._pipe, _READ_BYTES):
                self._at_end = True
                self._listen()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("nobody tells any more when a session prints: %s", error)
            self._unlisten()
        if not self._busy:
            self._due()
        elif self._at_end and self._timer is not None:  # there is nothing more to gather
            self._timer.cancel()
            self._due()

    def _due(self) -> None:
        self._busy = True
        self._timer = None
        self._readers.add(self)

    def read(self) -> None:
        """Takes in the next piece, if there is one."""
        if self._closed:
            return
        at_end = self._at_end
        try:
            data = self._tail.read()
        except OSError as error:
            log.warning("output of a session cannot be read, and is tried again when there is more: %s", error)
            data = b""
        if data:
            self.output.feed(data)
            self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._due)
            return
        self._busy = False
        if at_end:
            self._at_end = False
            self._ended()


def make_folder(folder: Path) -> None:
    """A session's folder, for its owner alone, with the pipe that `capture` tells us by."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        os.mkfifo(folder / WAKE, 0o600)


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
