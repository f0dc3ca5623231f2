"""Commands run in an empty folder, on a store that they and servers find configured."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..test_serve import Server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and no settings, for commands and servers."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name not in ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_START"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The storage that commands and servers find configured."""
    url = f"{request.param}:{folder / 'x.db'}"
    monkeypatch.setenv("HOMEPORT_STORAGE__URL", url)
    return url


@pytest.fixture(params=[False, True], ids=["no server", "a server"])
def maybe_a_server(request: pytest.FixtureRequest, url: str) -> Iterator[None]:
    """With and without a server on the store."""
    if not request.param:
        yield
        return
    server = Server(Path.cwd(), "--port", "0", environ=dict(os.environ))
    yield
    server.kill()
