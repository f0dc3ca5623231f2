"""From process start to the first 200, memory at rest, and which imports cost what.

python -m bench start
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROUNDS = 7
IMPORTS = 15


def start(folder: Path, number: int) -> tuple[float, float]:
    """Seconds until the first 200, and the largest resident set in MB, after a second at rest."""
    ready = folder / f"ready-{number}"
    command = ["-m", "homeport", "serve", "--port", "0", "--storage", f"sqlite:{folder}/store.db"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command, "--ready-file", str(ready)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not ready.exists():
        time.sleep(0.002)
    with urllib.request.urlopen(ready.read_text().strip()) as answer:
        json.load(answer)
    took = time.perf_counter() - begin
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the server ended with {status}")
    return took, usage.ru_maxrss / 1024


def imports() -> list[tuple[int, str]]:
    """What `homeport serve` imports: microseconds of each module, with what it imports itself, the dearest first."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = ["serve", "--port", "0", "--storage", "memory:", "--ready-file", str(ready)]
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "homeport", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not ready.exists():
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate()
    found = re.findall(r"import time: +\d+ \| +(\d+) \| +(\S+)$", errors, re.MULTILINE)
    return sorted(((int(cumulative), name) for cumulative, name in found), reverse=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [start(Path(folder), number) for number in range(ROUNDS)]
    seconds, megabytes = (statistics.median(values) for values in zip(*runs, strict=True))
    print(f"{seconds:.2f} s from process start to the first 200; {megabytes:.0f} MB resident")
    print("imports at the top, with what they import:")
    for microseconds, name in imports()[:IMPORTS]:
        print(f"{microseconds / 1000:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
