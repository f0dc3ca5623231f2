"""What the Dockerfile makes, followed without a container engine (`dockerfile`): takes long, and CI asks for it."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from .dockerfile import Builder, Stage, builder

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for file systems of its own"),
]
IMPORTED = "import homeport.server.app, homeport.server.cli.serve, homeport.storage.sqlite, uvloop, http.client"
"""What a start and a health check import."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builder, Stage]]:
    with builder(tmp_path_factory.mktemp("image")) as build:
        stage = build.build(ROOT)
        build.seal(stage)
        yield build, stage


@pytest.fixture
def image(built: tuple[Builder, Stage]) -> Stage:
    return built[1]


@pytest.fixture
def env(image: Stage) -> dict[str, str]:
    """The environment of a container that is given a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return image.env | {"HOME": "/", "PORT": str(probe.getsockname()[1])}


@contextmanager
def started(image: Stage, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A container, once its server is ready."""
    command = image.inside(*image.entrypoint, *image.command, env=env)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert " ready on " in process.stdout.readline()
            yield process
        finally:
            process.kill()


def run(image: Stage, env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """What `docker exec` does."""
    return subprocess.run(image.inside(*command, env=env), capture_output=True, text=True, check=False)


def ask(env: dict[str, str], method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", int(env["PORT"]), timeout=30)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_it_is_healthy_while_it_serves(image: Stage, env: dict[str, str]) -> None:
    with started(image, env):
        assert run(image, env, *image.health).returncode == 0
        assert ask(env, "GET", "/api/projects")[0] == 404  # sessions
    assert run(image, env, *image.health).returncode == 1


def test_it_has_no_rights(image: Stage, env: dict[str, str]) -> None:
    with started(image, env) as process:
        status = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == {"10001"}
    assert set(status["Gid"].split()) == {"10001"}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


@pytest.mark.parametrize(
    ("place", "written"),
    [
        pytest.param("/", False, id="the root"),
        pytest.param("/opt/homeport/bin", False, id="the program"),
        pytest.param("/etc/homeport", False, id="the configuration"),
        pytest.param("/tmp", True, id="for a while"),
        pytest.param("/var/lib/homeport", True, id="the volume"),
    ],
)
def test_it_writes_nowhere_but_in_its_volume(image: Stage, env: dict[str, str], place: str, written: bool) -> None:
    assert (run(image, env, "touch", f"{place}/mark").returncode == 0) is written


def test_what_it_was_told_outlives_it(image: Stage, env: dict[str, str]) -> None:
    with started(image, env) as process:
        key = run(image, env, "homeport", "keys", "create", "alice").stdout.strip()
        entry = {"username": "alice", "date": "2025-12-21", "totalTokens": 7, "totalCost": 1, "modelsUsed": []}
        entries = [{**entry, "timestamp": "2025-12-21T10:30:00.000Z"}]
        body = {"entries": entries, "source": "ccusage", "version": "1.0.0"}
        assert ask(env, "POST", "/v1/sync", body, Authorization=f"Bearer {key}")[0] == 200
        process.send_signal(signal.Signals[image.stop_signal])
        assert process.wait(30) == 0
    with started(image, env):
        status, answer = ask(env, "GET", "/v1/user/data", Authorization=f"Bearer {key}")
        assert (status, [entry["totalTokens"] for entry in answer["entries"]]) == (200, [7])


def test_nothing_is_left_to_compile(image: Stage, env: dict[str, str]) -> None:
    """What is compiled at a start can be kept nowhere, and is compiled again at the next."""

    def compiled(program: str) -> list[str]:
        told = run(image, env, "python", "-v", "-c", program).stderr.splitlines()
        return [line for line in told if line.startswith("# code object from ") and line.endswith(".py")]

    assert compiled("import this")
    assert compiled(IMPORTED) == []


def test_it_is_small(built: tuple[Builder, Stage]) -> None:
    """MB beside the base image; half of it are the libraries of Stripe, TLS and JSON Schema."""
    assert 50 < built[0].added("final") / 1e6 < 140
