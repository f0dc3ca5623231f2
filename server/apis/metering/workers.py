"""Processes that decode audio: whatever a file does to a decoder, the server goes on."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Lock
from typing import Any, BinaryIO, Literal

import msgspec

_PROGRAM = Path(__file__).with_name("audio_worker.py")
_MAX_OUTPUT = 4 << 20
_ENVIRONMENT = ("DYLD_", "LANG", "LC_", "LD_", "PATH", "PYTHON")
"""What the names of the variables begin with that a worker is given: no secret is near a hostile file."""


class WorkerDied(Exception):
    """The process of a worker ended before its work did. ``status``: its exit status; of a signal, minus its number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


class Workers:
    """Runs a process a file, at most ``most`` at a time; further files wait."""

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="audio")

    async def run(self, command: Literal["measure", "recognize"], file: BinaryIO, *, seconds: int, cpu: int) -> Any:
        """What a command of `audio_worker` says of a file, within so many seconds and so many of CPU time.

        Raises `TimeoutError` and `WorkerDied`. No process is left behind, also where this is cancelled.
        """
        worker = _Worker()
        arguments = [sys.executable, "-P", str(_PROGRAM), command, str(file.fileno()), str(cpu)]
        running = asyncio.get_running_loop().run_in_executor(self._threads, worker.run, arguments, file.fileno())
        try:
            async with asyncio.timeout(seconds):
                return msgspec.json.decode(await asyncio.shield(running))
        finally:
            worker.kill()
            await asyncio.gather(running, return_exceptions=True)

    def close(self) -> None:
        """Ends the threads; no work may be left."""
        self._threads.shutdown()


class _Worker:
    """One process. It is started on a thread: a loop that forks waits longer than a loop may."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: Popen[bytes] | None = None
        self._killed = False

    def run(self, arguments: list[str], descriptor: int) -> bytes:
        """What it prints. The pipe to its standard input, on which nothing is ever written, ends with this process."""
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        with self._lock:
            if self._killed:
                return b""
            self._process = Popen(arguments, stdin=PIPE, stdout=PIPE, pass_fds=[descriptor], env=environment)  # noqa: S603  # no text of a client's
        with self._process as process:
            assert process.stdout is not None
            output = process.stdout.read(_MAX_OUTPUT)
        if process.returncode:
            raise WorkerDied(process.returncode)
        return output

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()
