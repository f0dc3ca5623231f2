"""What the pytest plugin costs: a run that does not use it, the first server of a run, and each one after it.

python -m bench plugin
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from homeport.server.config import load_config
from homeport.server.testing.running import running

SERVERS = 100
RUNS = 7
SCHEMAS = 10
NOTE = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}, "n": {"type": "integer"}}}
IMPORT = "import time, pytest; t = time.perf_counter(); import homeport.server.plugin; print(time.perf_counter() - t)"


def servers(folder: Path, backend: str) -> list[tuple[float, float]]:
    """Seconds to start and to stop, of servers one after the other with all APIs and ten collections with seeds."""
    times = []
    for number in range(SERVERS):
        url = {"memory": "memory:", "file": f"file:{folder}/f{number}", "sqlite": f"sqlite:{folder}/{number}.db"}
        settings = {"storage.url": url[backend], "log.level": "warning", "apis.collections.schemas": str(folder)}
        begin = time.perf_counter()
        with running(load_config(os.devnull, environ={}, overrides=settings)):
            up = time.perf_counter()
        times.append((up - begin, time.perf_counter() - up))
    return times


def main() -> None:
    imports = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(RUNS)]
    print(f"{statistics.median(imports) * 1000:.1f} ms to import the plugin, in a run that does not use it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(SCHEMAS):
            (folder / f"note{number}.schema.json").write_text(json.dumps(NOTE))
            (folder / f"note{number}.json").write_text(json.dumps([{"title": "Milk", "n": n} for n in range(10)]))
        for backend in ("memory", "file", "sqlite"):
            times = servers(folder, backend)
            first, rest = times[0], [up + down for up, down in times[1:]]
            up, down = (statistics.median(values) * 1000 for values in zip(*times[1:], strict=True))
            print(
                f"{backend}: the first server {sum(first) * 1000:.0f} ms; then {up:.1f} to start and {down:.1f} to stop"
                f" (median), {statistics.quantiles(rest, n=20)[-1] * 1000:.1f} together (95 of 100)"
            )


if __name__ == "__main__":
    main()
