"""Servers and other processes that are measured."""

import contextlib
import os
import resource
import socket
import subprocess
import time
from pathlib import Path
from typing import IO, Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    """Returns when a process listens."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    output: IO[str] | None = process.stdout
    assert output is not None
    if not (line := output.readline()):
        raise SystemExit(f"{process.args!r} ended")
    return line


def cpu_microseconds(pid: int) -> float:
    """The processor time, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1_000_000


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
