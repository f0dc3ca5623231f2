"""Compares servers under the same load, in one run: what counts is the ratio of their requests a second.

Each server runs alone on one core and `wrk` on another; the servers take turns, so that a machine which slows down
slows all of them, and the median of the rounds is taken. Beside it stands the processor time that a request took the
server, which other work on the same cores disturbs less.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SERVER_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 32

_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = {body}
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[int]:
    """A server on its core, for as long as the context lasts; its process id."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, sys.executable, *command], stdout=output, stderr=output
        )
        try:
            _wait_for(port, process)
            yield process.pid
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


class Figures(NamedTuple):
    """Of one round, or the medians of several."""

    requests_per_second: float
    cpu_microseconds: float
    """The server's processor time, user and system, a request."""


def load(port: int, pid: int, path: str, body: object, seconds: int) -> Figures:
    """What `wrk` reaches with keep-alive connections; any error ends the run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA.replace("{body}", json.dumps(json.dumps(body))))
        script.flush()
        url = f"http://127.0.0.1:{port}{path}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, url]
        before = _cpu_microseconds(pid)
        output = subprocess.run(
            ["taskset", "-c", LOAD_CORE, *command], check=True, capture_output=True, text=True
        ).stdout
        used = _cpu_microseconds(pid) - before
    result = re.search(r"RESULT (\d+) (\d+) (\d+)", output)
    if result is None or int(result[3]):
        raise SystemExit(f"requests failed:\n{output}")
    requests, microseconds = int(result[1]), int(result[2])
    return Figures(requests / microseconds * 1_000_000, used / requests)


def _cpu_microseconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1_000_000


def compare(
    servers: Mapping[str, Sequence[str]], path: str, body: object, *, rounds: int = 5, seconds: int = 4
) -> dict[str, Figures]:
    """The medians of each server, which is a command to which its port is added."""
    measured: dict[str, list[Figures]] = {name: [] for name in servers}
    with contextlib.ExitStack() as stack:
        running_on: dict[str, tuple[int, int]] = {}
        for name, command in servers.items():
            port = _free_port()
            running_on[name] = port, stack.enter_context(running([*command, str(port)], port))
            load(*running_on[name], path, body, 1)  # caches fill
        for _ in range(rounds):
            for name in servers:
                measured[name].append(load(*running_on[name], path, body, seconds))
    return {
        name: Figures(*map(statistics.median, zip(*figures, strict=True))) for name, figures in measured.items()
    }


def report(medians: Mapping[str, Figures], yardstick: str) -> None:
    """Prints each server's figures against the yardstick's."""
    unit = medians[yardstick]
    for name, (rate, cpu) in medians.items():
        print(
            f"{name:24} {rate:9,.0f} requests/s ({rate / unit.requests_per_second:.2f} of {yardstick})"
            f" {cpu:7.1f} us CPU a request ({unit.cpu_microseconds / cpu:.2f})"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
