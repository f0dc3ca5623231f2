"""What every test shares: how hypothesis searches, and that in CI no test is skipped for want of a tool."""

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# A loaded machine is no failure: a test that measures time says so itself. Where CI is set, hypothesis loads
# its own profile, the same examples each time. `pytest -m slow --hypothesis-profile=thorough` tries most.
settings.register_profile("homeport", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
if "CI" not in os.environ:
    settings.load_profile("homeport")


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
