"""From process start to the first 200, memory at rest, and which imports cost what.

python -m bench start
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROUNDS = 7
IMPORTS = 15


@contextmanager
def server(folder: Path, storage: str, *options: str) -> Iterator[tuple[int, str]]:
    """The process and URL of a server that is ready. ``options``: of Python. What it says on standard error is in
    ``errors``, in the folder. Its modules are compiled once, as pip does when it installs them."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    command = ["-m", "homeport", "serve", "--port", "0", "--storage", storage, "--ready-file", str(ready)]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *options, *command],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit((folder / "errors").read_text())
            time.sleep(0.002)
        yield process.pid, ready.read_text().strip()
    finally:
        process.terminate()
        status = process.wait()
    if status:
        raise SystemExit(f"the server ended with {status}")


def start(folder: Path) -> tuple[float, float, float]:
    """Seconds until the first 200; after a second at rest, the largest resident set in MB, and how much of the present
    one is no file's."""
    begin = time.perf_counter()
    with server(folder, f"sqlite:{folder}/store.db") as (process, url):
        with urllib.request.urlopen(url) as answer:
            json.load(answer)
        took = time.perf_counter() - begin
        time.sleep(1)
        status = Path(f"/proc/{process}/status").read_text()
    largest, own = (int(re.findall(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[0]) for name in ("VmHWM", "RssAnon"))
    return took, largest / 1024, own / 1024


def imports(folder: Path) -> list[tuple[int, str]]:
    """What `homeport serve` imports: microseconds of each module, with what it imports itself, the dearest first."""
    with server(folder, "memory:", "-X", "importtime"):
        pass
    errors = (folder / "errors").read_text()
    found = re.findall(r"import time: +\d+ \| +(\d+) \| +(\S+)$", errors, re.MULTILINE)
    return sorted(((int(cumulative), name) for cumulative, name in found), reverse=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(folder)  # compiles
        runs = [start(folder) for _ in range(ROUNDS)]
        dearest = imports(folder)[:IMPORTS]
    seconds, largest, own = (statistics.median(values) for values in zip(*runs, strict=True))
    print(f"{seconds:.2f} s from process start to the first 200")
    print(f"{largest:.0f} MB resident, {own:.0f} of them no file's")
    print("imports at the top, with what they import:")
    for microseconds, module in dearest:
        print(f"{microseconds / 1000:8.1f} ms  {module}")


if __name__ == "__main__":
    main()
