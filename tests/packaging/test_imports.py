"""What importing costs, and which part may know which."""

import json
import subprocess
import sys

import pytest

import homeport
from homeport.server.app import create_app
from homeport.server.config import load_config

LIST_MODULES = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(module: str) -> set[str]:
    """The modules that importing `module` into a fresh interpreter loads."""
    script = LIST_MODULES.format(module=module)
    return set(json.loads(subprocess.check_output([sys.executable, "-c", script])))


def packages(modules: set[str]) -> set[str]:
    """The distinct top-level packages that are not the standard library's."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


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
