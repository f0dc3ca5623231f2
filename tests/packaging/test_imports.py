"""What importing costs, and which part may know which."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import click
import pytest

import homeport
from homeport.server.app import create_app
from homeport.server.cli import cli
from homeport.server.config import load_config

LIST_MODULES = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


SERVE = """
import atexit, json, sys
from pathlib import Path
before = set(sys.modules)
atexit.register(lambda: Path("modules").write_text(json.dumps(sorted(set(sys.modules) - before))))
from homeport.server.cli import main
main()
"""
AT_REST: dict[str, set[str]] = {
    "aiohttp": {"aiohappyeyeballs", "aiosignal", "attr", "frozenlist", "idna", "multidict", "propcache", "yarl"},
    "aiosqlite": set(),
    "click": set(),
    "cronsim": set(),
    "homeport": set(),
    "jsonschema_rs": set(),
    "limits": {"deprecated", "packaging", "wrapt"},
    "msgspec": {"typing_extensions"},
    "multipart": set(),
    "uvloop": {"cython_runtime"},
}
"""What a server with all APIs holds before anybody asked for anything, and what that needs in turn."""


def loaded_by(module: str) -> set[str]:
    """The modules that importing `module` into a fresh interpreter loads."""
    script = LIST_MODULES.format(module=module)
    return set(json.loads(subprocess.check_output([sys.executable, "-c", script])))


def packages(modules: set[str]) -> set[str]:
    """The distinct top-level packages that are not the standard library's."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


def test_a_command_loads_no_other(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SERVE, "example-config"], cwd=tmp_path, check=True, capture_output=True)
    loaded = json.loads((tmp_path / "modules").read_text())
    assert "homeport.server.cli" in loaded
    assert not {f"homeport.server.cli.{name}" for name in ("backup", "check", "serve", "users")} & set(loaded)


def test_the_package_itself_loads_nothing() -> None:
    modules = loaded_by("homeport")
    assert packages(modules) == {"homeport"}
    assert {module for module in modules if module.startswith("homeport.")} == set()


def test_storage_knows_nothing_of_the_server() -> None:
    modules = loaded_by("homeport.storage")
    assert not {module for module in modules if module.startswith("homeport.server")}
    assert packages(modules).isdisjoint({"aiohttp", "uvloop", "click", "jsonschema", "jsonschema_rs"})


def test_public_names() -> None:
    assert homeport.create_app is create_app
    assert homeport.load_config is load_config
    assert {"create_app", "load_config", "__version__"} <= set(dir(homeport))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'homeport' has no attribute 'creat_app'"):
        homeport.creat_app  # noqa: B018 - looking it up is the test


def loaded_by_a_server(folder: Path) -> set[str]:
    """The modules that `homeport serve` with its defaults loads until it has given its first answer and stopped."""
    ready = folder / "ready"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--port", "0", "--ready-file", str(ready)],
        env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        cwd=folder,
    )
    try:
        while not ready.exists():
            assert server.poll() is None
            time.sleep(0.02)
        with urllib.request.urlopen(ready.read_text().strip()) as answer:
            assert answer.status == 200
    finally:
        server.terminate()
        assert server.wait(60) == 0
    return set(json.loads((folder / "modules").read_text()))


def test_a_server_at_rest_holds_what_every_server_needs(tmp_path: Path) -> None:
    modules = loaded_by_a_server(tmp_path)
    libraries = {name for name in packages(modules) if not name.startswith("_")}
    assert libraries <= AT_REST.keys() | set().union(*AT_REST.values())
    commands = {f"homeport.server.cli.{name}" for name in cli.list_commands(click.Context(cli))}
    assert commands & modules == {"homeport.server.cli.serve"}
    assert {name for name in modules if re.fullmatch(r"homeport\.storage\.(file|memory|sqlite|testing)", name)} == {
        "homeport.storage.sqlite"
    }
    assert modules.isdisjoint({"difflib", "tomllib", "homeport.server.docs", "homeport.server.openapi"})
