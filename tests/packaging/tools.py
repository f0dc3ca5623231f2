"""Programs that tests of this folder call."""

import os
import shutil
import sys
from pathlib import Path

import pytest

_PLACES = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin")


def tool(name: str) -> str:
    """Where a program is, PyPI's beside this Python; skips the test where there is none."""
    found = shutil.which(name, path=os.pathsep.join(_PLACES))
    if found is None:
        pytest.skip(f"needs {name}")
    return found
