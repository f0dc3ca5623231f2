"""What a client notices of 500 connections that mean harm: slow heads, slow bodies, overlapping ranges, slow readers.

python -m bench hostile

Needs Debian's slowhttptest. A client that asks every few milliseconds has to get 99 of 100 answers within 100 ms, and
all of them, under each kind.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from bench.processes import free_port

ATTACKERS = 500
SECONDS = 20
PAUSE = 0.005
"""Seconds between two requests of the client."""
BOUND = 0.1
"""Seconds within which it has to have 99 of 100 answers."""
KINDS = {
    "slow heads": ["-H", "-i", "1"],
    "slow bodies": ["-B", "-i", "1", "-s", "100000", "-f", "application/json"],
    "ranges": ["-R", "-a", "1", "-b", "1000"],
    "slow readers": ["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "5", "-k", "10"],
}
"""With the options of slowhttptest."""
PATHS = {"slow bodies": "/api/sync", "slow readers": "/openapi.json"}


class Figures(NamedTuple):
    """What the client noticed, in seconds; ``open``: the most connections that there were beside it."""

    requests: int
    p50: float
    p99: float
    longest: float
    open: int


@contextmanager
def serving(folder: str) -> Iterator[int]:
    """A server with its defaults; the port of it."""
    port = free_port()
    command = [sys.executable, "-m", "homeport", "serve", "--port", str(port), "--storage", f"sqlite:{folder}/store.db"]
    with (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        if " ready on " not in process.stdout.readline():
            raise SystemExit((Path(folder) / "log").read_text())
        yield port
    finally:
        process.terminate()
        process.wait(20)


def under(kind: str, port: int, seconds: int = SECONDS) -> Figures:
    """What a client notices while others do their worst."""
    options = ["-c", str(ATTACKERS), "-r", str(ATTACKERS), "-l", str(seconds), "-p", "5", *KINDS[kind]]
    command = shlex.join(["slowhttptest", *options, "-u", f"http://127.0.0.1:{port}{PATHS.get(kind, '/')}"])
    again_and_again = ["timeout", str(seconds), "sh", "-c", f"while :; do {command}; done"]
    attack = subprocess.Popen(again_and_again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    opened = [0]
    watch = threading.Thread(target=_watch, args=(port, attack, opened))
    watch.start()
    try:
        time.sleep(1)  # until they are there
        took = _ask(port, attack)
    finally:
        attack.terminate()
        attack.wait()
        watch.join()
    percentiles = quantiles(took, n=100)
    return Figures(len(took), percentiles[49], percentiles[98], max(took), opened[0] - 1)


def _ask(port: int, attack: subprocess.Popen[bytes]) -> list[float]:
    took = []
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    while attack.poll() is None:
        begin = time.perf_counter()
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - begin)
        if answer.status != 200:
            raise SystemExit(f"the client was answered {answer.status}")
        time.sleep(PAUSE)
    connection.close()
    return took


def _watch(port: int, attack: subprocess.Popen[bytes], opened: list[int]) -> None:
    while attack.poll() is None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        now = next(float(line.split()[1]) for line in lines if line.startswith("homeport_connections "))
        opened[0] = max(opened[0], int(now) - 1)
        time.sleep(0.5)


def main() -> None:
    if shutil.which("slowhttptest") is None:
        print("not measured: slowhttptest is not there (apt-get install slowhttptest)")
        return
    os.environ["HOMEPORT_LOG__LEVEL"] = "warning"
    late = []
    with tempfile.TemporaryDirectory() as folder, serving(folder) as port:
        for kind in KINDS:
            figures = under(kind, port)
            p50, p99, longest = (f"{seconds * 1000:.1f} ms" for seconds in figures[1:4])
            print(
                f"{kind:13} {figures.open:4} connections; {figures.requests:6,} requests of the client: "
                f"p50 {p50}, p99 {p99}, longest {longest}"
            )
            if figures.p99 > BOUND:
                late.append(kind)
    if late:
        raise SystemExit(f"too late under {', '.join(late)}")


if __name__ == "__main__":
    main()
