"""How long answers take at half of the maximum load: every operation of a server with everything on and data in it, on
SQLite, against the contract's line, and `POST /api/sync` against a bare server's.

    python -m bench latency                              all of it, some five minutes
    python -m bench.latency device_usage.sync …          some operations, or all whose names begin so

The server has a core and the load another. An operation's maximum is what 32 callers reach that never rest; half of it
arrives at a constant rate, and latency counts from when a request was due. Where an operation needs others around it (a
ticket is made before it is deleted), the whole visit is what arrives, and a later step counts from when it was sent.
How late the load itself was stands beside it: where that is much, the machine is not quiet, and latencies say little.
The server's processor time, all of a visit, is disturbed less: at half load half the answers take about that long.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from unittest.mock import patch

from bench.arrivals import Steps, Visitors
from bench.load import LOAD_CORE, running
from bench.processes import cpu_microseconds, free_port
from bench.recipes import NOT_MEASURED, RECIPES, Recipe, fill
from bench.site import Site, prepare, settings, stand_in

SYNC = "device_usage.sync"
LINE = (0.050, 0.200, 0.500)
"""Seconds that p50, p95 and p99 have to be under (contracts/README.md, "Latency")."""
MOST_RATIO = 3
"""Of the p99 of a sync to that of the bare server."""
PRESS_SECONDS = 1.0
SECONDS, LONGEST, ENOUGH = 1.5, 6.0, 100
"""That visits arrive for: longer where they are fewer than enough."""
ROUNDS, ROUND_SECONDS = 3, 3.0
"""Of the comparison with the bare server."""


class Figures(NamedTuple):
    """``percentiles``: p50, p95 and p99, in seconds; ``late``: p99 of how late the load itself was.
    ``cpu_microseconds``: the server's processor time, all of a visit."""

    rate: float
    answers: int
    percentiles: tuple[float, float, float]
    late: float
    cpu_microseconds: float

    @property
    def held(self) -> bool:
        return all(took < most for took, most in zip(self.percentiles, LINE, strict=True))

    def __str__(self) -> str:
        p50, p95, p99 = (f"{seconds * 1000:8.1f}" for seconds in self.percentiles)
        return (
            f"{self.rate:9,.1f}/s {self.answers:7,}{p50}{p95}{p99} {self.late * 1000:9.1f}{self.cpu_microseconds:9,.0f}"
        )


_COLUMNS = f"{'answers':>7}{'p50':>8}{'p95':>8}{'p99':>8} {'p99 late':>8}{'us CPU':>9}"
HEADING = f"{'ms':34}{'arrivals':>11} {_COLUMNS}"


@contextmanager
def visited() -> Iterator[Site]:
    """A server with everything on, filled."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, socket.create_server(("127.0.0.1", 0)) as listening:
        stripe = get_context("fork").Process(target=stand_in, args=(listening,), daemon=True)
        stripe.start()
        try:
            with patch.dict(os.environ, settings(Path(folder), listening.getsockname()[1])):
                keys, port = prepare(Path(folder)), free_port()
                with running(["-m", "homeport", "serve", "--port", str(port)], port) as pid:
                    site = Site(Visitors(port, pid), Path(folder), keys)
                    fill(site)
                    yield site
        finally:
            subprocess.run(("tmux", "-S", f"{folder}/tmux", "kill-server"), check=False, timeout=20)
            stripe.kill()


def measure(visitors: Visitors, visits: Iterator[Steps], seconds: float) -> dict[str, Figures]:
    """The operations of visits that arrive half as often as they could."""
    rate = visitors.most(visits, PRESS_SECONDS) / 2
    visitors.took.clear()
    before = cpu_microseconds(visitors.pid)
    late = visitors.at_rate(visits, rate, max(seconds, min(LONGEST, ENOUGH / rate)))
    cpu = (cpu_microseconds(visitors.pid) - before) / len(late)
    figures = {}
    for operation, took in visitors.took.items():
        percentiles = quantiles(took, n=100)
        of_it = percentiles[49], percentiles[94], percentiles[98]
        figures[operation] = Figures(rate, len(took), of_it, quantiles(late, n=100)[98], cpu)
    return figures


def by_recipe(site: Site, names: Sequence[str]) -> dict[Recipe, list[str]]:
    """The operations that a visit measures, of those whose names begin so; every operation needs a recipe."""
    if wrong := site.operations.keys() ^ (RECIPES.keys() | NOT_MEASURED):
        raise SystemExit(f"these have no recipe, or are no operations: {', '.join(sorted(wrong))}")
    found: dict[Recipe, list[str]] = {}
    for operation, recipe in RECIPES.items():
        if operation.startswith(tuple(names)):
            found.setdefault(recipe, []).append(operation)
    return found


def operations(site: Site, names: Sequence[str]) -> None:
    numbers = count(100_000)  # after those that fill
    misses = []
    for recipe, wanted in by_recipe(site, names).items():
        figures = measure(site.visitors, (recipe(site, number) for number in numbers), SECONDS)
        for operation in wanted:
            print(f"{operation:34}{figures[operation]}{'' if figures[operation].held else ' MISSED'}", flush=True)
        misses += [operation for operation in wanted if not figures[operation].held]
    p50, p95, p99 = (f"{seconds * 1000:.0f} ms" for seconds in LINE)
    print(f"p50 under {p50}, p95 under {p95}, p99 under {p99}: missed by {', '.join(misses) or 'none'}")


def against_bare(site: Site) -> None:
    """A sync, and the same request to a server that only reads it, each at half of its own maximum."""
    numbers = count(1_000_000)
    p99: dict[str, list[float]] = {"bare": [], "homeport": []}
    port = free_port()
    with running(["-m", "bench.bare", str(port)], port) as pid:
        visitors = {"bare": Visitors(port, pid), "homeport": site.visitors}
        for _ in range(ROUNDS):
            for name, its in visitors.items():
                figures = measure(its, (RECIPES[SYNC](site, number) for number in numbers), ROUND_SECONDS)[SYNC]
                p99[name].append(figures.percentiles[2])
                print(f"{'POST /api/sync, ' + name:34}{figures}", flush=True)
    ratio = median(p99["homeport"]) / median(p99["bare"])
    print(f"p99 of POST /api/sync: {ratio:.1f} times the bare server's; at most {MOST_RATIO} are wanted")


def main(names: Sequence[str] = ("",)) -> None:
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with visited() as site:
        print(HEADING)
        operations(site, names)
        if SYNC.startswith(tuple(names)):
            against_bare(site)


if __name__ == "__main__":
    main(sys.argv[1:] or ("",))
