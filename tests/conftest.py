"""What every test shares: where it writes, on which back ends it runs, how hypothesis searches, and that in CI no test
is skipped for want of a tool."""

import gc
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import settings

_RAM = Path("/dev/shm")
_ENOUGH_RAM = 1 << 30
_BACK_ENDS = {"memory", "file", "sqlite"}

# A loaded machine is no failure: a test that measures time says so itself. Where CI is set, the examples are the same
# each time. `pytest --hypothesis-profile=thorough` tries most.
settings.register_profile("homeport", settings.get_profile("ci" if "CI" in os.environ else "default"), deadline=None)
settings.register_profile("quick", settings.get_profile("homeport"), max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-back-end", action="store_true", help="tests of the server on all back ends, not on one of them each"
    )


def pytest_configure() -> None:
    """What is compiled is kept: tests start hundreds of processes. They write to memory, where there is enough.

    What they find out does not depend on a disk: a kill is no loss of power, and disks that fail are played.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if _RAM.is_dir() and os.access(_RAM, os.W_OK) and shutil.disk_usage(_RAM).free > _ENOUGH_RAM:
        tempfile.tempdir = str(_RAM)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves of each test that would run on several back ends the one whose turn it is.

    That the back ends are alike is what tests/storage shows, on all of them; so are the long runs, on theirs.
    """
    if config.getoption("every_back_end"):
        return
    same = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.get_closest_marker("slow") is None:
            name, _, case = item.nodeid.partition("[")
            for back_end in _BACK_ENDS & {value for value in item.callspec.params.values() if isinstance(value, str)}:
                same[name, re.sub(rf"\b{back_end}\b", "*", case)].append(item)
    left = set()
    for test, group in same.items():
        turn = crc32(" ".join(test).encode()) % len(group)
        left |= {*group} - {group[turn]}
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_collection_finish() -> None:
    """What is there now stays: looking through it for garbage, again and again, takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip whose reason starts with "needs " (a tool, a kernel feature) a failure where CI is set."""
    if "CI" in os.environ and report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith("needs "):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: skipped in CI, where nothing may be missing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_in_ci(report)
    return report
