"""A process in a pseudo-terminal (pty(7))."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import termios
import threading
import tty
from codecs import getincrementaldecoder
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from ..tmux.client import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_BYTES = 64 * 1024
_TAKES_NOTHING_SECONDS = 10.0
"""How long input may wait for tmux to read it."""
_EXIT_SECONDS = 2.0
"""How long a process may take to end once it is told to."""


class Terminal:
    """A process in a pseudo-terminal. Text goes in and comes out as it is, escape sequences and all."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self._master = master
        self._process = process
        self._exit: asyncio.Future[int] = loop.create_future()
        self._decode = getincrementaldecoder("utf-8")(errors="replace").decode
        self._closed = False
        threading.Thread(target=self._wait, args=(loop,), name="terminal", daemon=True).start()

    @classmethod
    async def open(cls, command: Sequence[str], columns: int, rows: int) -> Terminal:
        """Starts a command. Raises OSError."""
        spawning = asyncio.create_task(asyncio.to_thread(_spawn, command, columns, rows), name="terminal's process")
        try:
            return cls(*await asyncio.shield(spawning))
        except asyncio.CancelledError:
            spawning.add_done_callback(cls._abandon)  # a thread goes on
            raise

    @classmethod
    def _abandon(cls, spawning: asyncio.Task[tuple[int, subprocess.Popen[bytes]]]) -> None:
        if not spawning.cancelled() and spawning.exception() is None:
            cls(*spawning.result()).close()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with suppress(RuntimeError):  # the loop is no more
            loop.call_soon_threadsafe(self._exit.set_result, code)

    async def read(self) -> str:
        """What comes next; empty at the end."""
        while True:
            ended = self._exit.done()
            try:
                data = os.read(self._master, _READ_BYTES)
            except BlockingIOError:
                if not ended:
                    await self._ready("reader")
                    continue
                data = b""
            except OSError:  # EIO: nobody has the other end open any more
                data = b""
            text = self._decode(data, final=not data)
            if text or not data:
                return text

    async def write(self, text: str) -> None:
        """Types; returns when all of it is taken. Raises OSError where the program has ended, and `TimeoutError` where
        it reads nothing."""
        data = memoryview(text.encode())
        async with asyncio.timeout(_TAKES_NOTHING_SECONDS):
            while data and not self._closed:
                try:
                    data = data[os.write(self._master, data) :]
                except BlockingIOError:
                    await self._ready("writer")

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self._master, (rows, columns))
        self._signal(signal.SIGWINCH)  # the terminal is not its controlling one

    async def exit_code(self) -> int:
        """Waits for the end; after a signal it is negative."""
        return await asyncio.shield(self._exit)

    def close(self) -> None:
        """Ends the process, if it has not ended, and lets the terminal go; closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._master)
        loop.remove_writer(self._master)
        os.close(self._master)
        self._signal(signal.SIGTERM)
        kill = loop.call_later(_EXIT_SECONDS, self._signal, signal.SIGKILL)
        self._exit.add_done_callback(lambda _: kill.cancel())

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _ready(self, side: Literal["reader", "writer"]) -> None:
        """Waits until the terminal can be read or written, or the process has ended."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake(*_: object) -> None:
            if not ready.done():
                ready.set_result(None)

        reads = side == "reader"
        (loop.add_reader if reads else loop.add_writer)(self._master, wake)
        self._exit.add_done_callback(wake)
        try:
            await ready
        finally:
            self._exit.remove_done_callback(wake)
            if not self._closed:  # else the descriptor may be another's
                (loop.remove_reader if reads else loop.remove_writer)(self._master)


def _spawn(command: Sequence[str], columns: int, rows: int) -> tuple[int, subprocess.Popen[bytes]]:
    """A terminal's master, and the process in it. Takes a while, of uvloop's own subprocesses for the loop: it copies
    the page tables of this process. Raises OSError."""
    master, slave = os.openpty()
    try:
        os.set_blocking(master, False)
        tty.setcbreak(slave)  # what is typed before the program has set its own modes is not echoed
        termios.tcsetwinsize(slave, (rows, columns))
        return master, subprocess.Popen(  # noqa: S603  # no shell parses it
            command, stdin=slave, stdout=slave, stderr=slave, env=_environment(), start_new_session=True
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)


def _environment() -> dict[str, str]:
    """That of a terminal as xterm.js and its like are."""
    return {**environment(os.environ), "TERM": "xterm-256color"}
