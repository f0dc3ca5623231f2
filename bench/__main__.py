"""Benchmarks; what counts is their ratios inside one run.

python -m bench             all of them
python -m bench sync start  some
"""

import sys
from importlib import import_module

NAMES = (
    "sync",
    "core",
    "commits",
    "keys",
    "leaderboard",
    "metering",
    "copy",
    "plugin",
    "live",
    "tickets",
    "sessions",
    "start",
    "hostile",
    "latency",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            raise SystemExit(f"{name} is no benchmark: use {', '.join(NAMES)}")
        print(f"== {name}")
        import_module(f"bench.{name}").main()
