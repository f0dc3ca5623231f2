"""The pytest plugin (contracts/cli.md, "pytest"): a server for a test, in the same process.

pytest imports this in every run of everybody who has Homeport installed: whatever is heavy is imported by the fixtures.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .testing.running import Homeport

_OPTIONS = ("config", "schemas", "settings", "storage")
_MARK = (
    'homeport(schemas=DIR, storage="memory", settings={}, config=FILE): what the server of the fixture homeport is '
    "like. schemas: the folder whose *.schema.json become collections; storage: memory, file, sqlite, or a URL; "
    'settings: more, by name, such as {"apis.device_usage.rate_limit": "5/hour"}; config: a configuration file. The '
    "same options, for all tests, go into [tool.homeport] of pyproject.toml; paths are relative to its folder."
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARK)


@pytest.fixture
def homeport(request: pytest.FixtureRequest) -> Iterator[Homeport]:
    """A Homeport server of this test alone, with nothing in it but seeds."""
    options = _project_options(request.config)
    for mark in reversed(list(request.node.iter_markers("homeport"))):  # the closest wins
        if mark.args:
            pytest.fail('@pytest.mark.homeport takes options by name, such as storage="file"', pytrace=False)
        options |= _checked(mark.kwargs, "@pytest.mark.homeport")
    with _serving(request.config, options) as server:
        yield server


@pytest.fixture(scope="session")
def homeport_server(request: pytest.FixtureRequest) -> Iterator[Homeport]:
    """One Homeport server for all tests; `reset` brings it back to its beginning."""
    with _serving(request.config, _project_options(request.config)) as server:
        yield server


def _project_options(config: pytest.Config) -> dict[str, Any]:
    import tomllib

    file = config.rootpath / "pyproject.toml"
    if not file.is_file():
        return {}
    try:
        tools = tomllib.loads(file.read_text("utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        pytest.fail(f"{file}: cannot be read: {error}", pytrace=False)
    return _checked(tools.get("homeport", {}), f"{file}: [tool.homeport]")


def _checked(options: dict[str, Any], where: str) -> dict[str, Any]:
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        pytest.fail(f"{where}: no such option: {', '.join(unknown)}; use {', '.join(_OPTIONS)}", pytrace=False)
    return dict(options)


@contextmanager
def _serving(config: pytest.Config, options: dict[str, Any]) -> Iterator[Homeport]:
    from tempfile import TemporaryDirectory

    from ..storage import StorageError
    from .config import ConfigError, load_config
    from .testing.running import running

    with TemporaryDirectory(prefix="homeport-") as folder:
        storage = options.get("storage", "memory")
        place = {"memory": "memory:", "file": f"file:{folder}/files", "sqlite": f"sqlite:{folder}/homeport.db"}
        settings = {
            "log.level": "warning",  # requests are in `Homeport.requests`
            "storage.url": place.get(storage, storage),
            **options.get("settings", {}),
        }
        if "schemas" in options:
            settings["apis.collections.schemas"] = str(config.rootpath / options["schemas"])
        # The one of the working folder is for the server that people run there.
        file = config.rootpath / options["config"] if "config" in options else os.devnull
        try:
            with running(load_config(file, environ={}, overrides=settings)) as server:
                yield server
        except (ConfigError, StorageError) as error:
            pytest.fail(f"homeport cannot start: {error}", pytrace=False)
