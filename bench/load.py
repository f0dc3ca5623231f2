"""Compares servers under the same load, in one run: what counts is the ratio of their requests a second.

Each server runs alone on one core and `wrk` on another; the servers take turns, so that a machine which slows down
slows all of them, and the median of the rounds is taken. Beside it stands the processor time that a request took the
server, which other work on the same cores disturbs less.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.processes import cpu_microseconds, free_port, wait_for

SERVER_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 32

# Each request is of the next of some users, at an instant that it shares with no other of that user.
_LUA = """
local body, first, now = {body}, {first}, os.time() - 60
local headers = {["Content-Type"] = "application/json"}
local authorization = {authorization}
local sent = 0
request = function()
  local number = first + sent
  sent = sent + 1
  local key = string.format("{key}", number % {users} + 1)
  local instant = os.date("!%Y-%m-%dT%H:%M:%SZ", now - math.floor(number / {users}))
  if authorization then headers["Authorization"] = "Bearer " .. key end
  return wrk.format("POST", "{path}", headers, (body:gsub("@KEY@", key):gsub("@INSTANT@", instant)))
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
_numbers = itertools.count(0, 10_000_000)


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[int]:
    """A server on its core, for as long as the context lasts; its process id."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, sys.executable, *command], stdout=output, stderr=output
        )
        try:
            wait_for(port, process)
            yield process.pid
        finally:
            process.terminate()
            process.wait(10)


class Figures(NamedTuple):
    """Of one round. ``cpu_microseconds``: the server's processor time, user and system, a request."""

    requests: int
    requests_per_second: float
    cpu_microseconds: float


@dataclass(frozen=True)
class Users:
    """Whose requests they are. ``key``: of the first, the second and so on, as a format. ``bearers``: whether it comes
    with each request."""

    count: int = 1000
    key: str = "%064x"
    bearers: bool = False


USERS = Users()


def load(port: int, pid: int, path: str, body: object, seconds: int, users: Users) -> Figures:
    """What `wrk` reaches with keep-alive connections; any error ends the run.

    In the body ``@KEY@`` becomes a user's key and ``@INSTANT@`` a time.
    """
    lua = _LUA.replace("{body}", json.dumps(json.dumps(body))).replace("{path}", path)
    lua = lua.replace("{key}", users.key).replace("{users}", str(users.count))
    lua = lua.replace("{authorization}", json.dumps(users.bearers))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(lua.replace("{first}", str(next(_numbers))))
        script.flush()
        url = f"http://127.0.0.1:{port}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, url]
        before = cpu_microseconds(pid)
        output = subprocess.run(
            ["taskset", "-c", LOAD_CORE, *command], check=True, capture_output=True, text=True
        ).stdout
        used = cpu_microseconds(pid) - before
    result = re.search(r"RESULT (\d+) (\d+) (\d+)", output)
    if result is None or int(result[3]):
        raise SystemExit(f"requests failed:\n{output}")
    requests, microseconds = int(result[1]), int(result[2])
    return Figures(requests, requests / microseconds * 1_000_000, used / requests)


def compare(
    servers: Mapping[str, Sequence[str]],
    path: str,
    body: object,
    *,
    rounds: int = 5,
    seconds: int = 4,
    users: Users = USERS,
) -> dict[str, list[Figures]]:
    """The rounds of each server, which is a command to which its port is added; the first one fills caches."""
    measured: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        running_on: dict[str, tuple[int, int]] = {}
        for name, command in servers.items():
            port = free_port()
            running_on[name] = port, stack.enter_context(running([*command, str(port)], port))
            measured[name] = [load(*running_on[name], path, body, 1, users)]
        for _ in range(rounds):
            for name in servers:
                measured[name].append(load(*running_on[name], path, body, seconds, users))
    return measured


def report(measured: Mapping[str, Sequence[Figures]], yardstick: str) -> None:
    """Prints each server's medians against the yardstick's."""
    medians = {
        name: [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
        for name, rounds in measured.items()
    }
    _, unit_rate, unit_cpu = medians[yardstick]
    for name, (_, rate, cpu) in medians.items():
        print(
            f"{name:24} {rate:9,.0f} requests/s ({rate / unit_rate:.2f} of {yardstick})"
            f" {cpu:7.1f} us CPU a request ({unit_cpu / cpu:.2f})"
        )
