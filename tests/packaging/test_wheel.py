"""The wheel holds the package, all of it, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest

import homeport

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {"tests", "bench"}
"""Top-level folders with Python in them that are no part of the package."""
DIST_INFO = f"homeport-{homeport.__version__}.dist-info"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what tools leave in it: a stale build/ would leak into the wheel."""
    copy = tmp_path_factory.mktemp("checkout") / "homeport"
    leftovers = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT, copy, ignore=leftovers)


@pytest.fixture(scope="module")
def package_files(tree: Path) -> set[str]:
    """The files of the checkout that are the package, as paths inside the wheel."""
    folders = [folder for folder in tree.iterdir() if folder.is_dir() and folder.name not in NOT_SHIPPED]
    modules = [*tree.glob("*.py"), *(module for folder in folders for module in folder.rglob("*.py"))]
    data = [tree / "py.typed", tree / "config.example.toml", *tree.glob("schemas/*.json")]
    web = tree.glob("server/web/**/*")
    return {f"homeport/{path.relative_to(tree)}" for path in [*modules, *data, *web] if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tree: Path, package_files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel of the tree, which is listed before the build leaves files of its own in it."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run([*build, "--outdir", str(out), str(tree)], check=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def test_the_wheel_is_the_package(package_files: set[str], wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if not name.startswith(f"{DIST_INFO}/")}
    assert files == package_files
    assert files >= {"homeport/__init__.py", "homeport/py.typed", "homeport/storage/__init__.py"}


def test_it_installs_the_command_and_the_pytest_plugin(wheel: zipfile.ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"homeport": "homeport.server.cli:main"}
    assert dict(entry_points["pytest11"]) == {"homeport": "homeport.server.plugin"}


def test_its_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(wheel.read(f"{DIST_INFO}/METADATA").decode())
    assert metadata["Version"] == homeport.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert wheel.read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
