"""What deploy/ and the files for containers say is what programs make of it, and what the server has settings for."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import click
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from homeport.server.cli import cli
from homeport.server.config import LEGACY_NAMES, Config, load_config
from homeport.server.config.settings import settings

from .dockerfile import instructions
from .tools import tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs/deploy.md").read_text()
DOCKERFILE = dict(instructions((ROOT / "Dockerfile").read_text()))
"""The last of each of its instructions."""
PATIENCE = 30.0
AS_ROOT = {"fchown"} if os.geteuid() == 0 else set()
"""What SQLite calls of the kernel for root alone, whom the service is not run by."""


def assignments(unit: str) -> list[tuple[str, str]]:
    """What a unit file sets, in order."""
    lines = (DEPLOY / unit).read_text().splitlines()
    return [
        (name, value) for name, equals, value in (line.partition("=") for line in lines if line[:1] != "#") if equals
    ]


def environment(unit: str) -> dict[str, str]:
    pairs = (value.partition("=") for name, value in assignments(unit) if name == "Environment")
    return {variable: value for variable, _, value in pairs}


def installed(**environ: str) -> Config:
    """The configuration with homeport.toml where the units and the image have it."""
    named = environ.pop("HOMEPORT_CONFIG")
    assert named == "/etc/homeport/homeport.toml"
    return load_config(DEPLOY / "homeport.toml", environ)


def seconds_to_stop(limit: str) -> float:
    return float(limit.removesuffix("s"))


# Containers


def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run([tool("hadolint"), ROOT / "Dockerfile"], check=True)


def test_compose_lint_has_nothing_to_say() -> None:
    subprocess.run([tool("compose-lint"), "--fail-on", "low", ROOT / "compose.yaml"], check=True)


def test_the_image_serves_all_but_sessions() -> None:
    pairs = (pair.partition("=") for pair in shlex.split(DOCKERFILE["ENV"]) if pair.startswith("HOMEPORT_"))
    config = installed(**{name: value for name, _, value in pairs})
    assert config.exposed
    assert config.apis.enabled == load_config(environ={}).apis.enabled - {"sessions"}
    assert config.storage.url == f"sqlite:{DOCKERFILE['VOLUME']}/homeport.db"
    assert config.server.port == int(DOCKERFILE["EXPOSE"])
    assert json.loads(DOCKERFILE["ENTRYPOINT"]) + json.loads(DOCKERFILE["CMD"]) == ["homeport", "serve"]


def test_compose_runs_that_image() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    (volume,) = service["volumes"]
    assert volume == f"{next(iter(compose['volumes']))}:{DOCKERFILE['VOLUME']}"
    assert set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) <= LEGACY_NAMES.keys()
    assert seconds_to_stop(service["stop_grace_period"]) > load_config(environ={}).server.shutdown_timeout


# docs/deploy.md


def test_the_guide_names_what_there_is() -> None:
    for path in re.findall(r"(?<!/)\b(?:deploy|docs)/[\w.-]*\w", GUIDE):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"(?:bin/homeport|homeport homeport|`homeport) ([a-z-]+)", GUIDE):
        assert command in cli.list_commands(click.Context(cli)), command
    for variable in re.findall(r"\bHOMEPORT_[A-Z_]+__[A-Z_]+", GUIDE):
        assert variable.removeprefix("HOMEPORT_").lower().replace("__", ".") in settings(), variable


@pytest.mark.parametrize("table", re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL))
def test_what_the_guide_sets_are_settings(table: str, tmp_path: Path) -> None:
    file = tmp_path / "homeport.toml"
    file.write_text(table)
    assert load_config(file, {}).exposed


# Processes of the machine


@contextmanager
def serving(command: list[str], folder: Path, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process group of its own, and its URL."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOMEPORT_")} | environ
    with subprocess.Popen([*command, "--ready-file", ready], cwd=ROOT, env=env, start_new_session=True) as server:
        try:
            until(ready.exists)
            yield server, ready.read_text().strip()
        finally:
            with_group(server, signal.SIGKILL)


def with_group(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to a server and all that it has started, as a control group gets it."""
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return
    server.wait(PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def ask(url: str, body: object = None, **headers: str) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, sent, {"Content-Type": "application/json"} | headers), timeout=PATIENCE) as answer:
        return json.load(answer)


HOMEPORT = [sys.executable, "-m", "homeport"]


def test_the_procfile_honours_port(tmp_path: Path) -> None:
    (line,) = (ROOT / "Procfile").read_text().splitlines()
    kind, _, command = line.partition(": ")
    assert kind == "web"
    arguments = shlex.split(command)
    assert arguments.pop(0) == "homeport"
    free = ["--storage", "memory:"]
    with serving([*HOMEPORT, *arguments, *free, "--port", "0"], tmp_path) as (_, url):
        port = url.rpartition(":")[2]
    with serving([*HOMEPORT, *arguments, *free], tmp_path, PORT=port) as (_, url):
        assert url.endswith(f":{port}")
        assert ask(f"{url}/api/health")["status"] == "healthy"


# systemd


@pytest.fixture(params=[[], ["sessions.conf"]], ids=["as it is", "with sessions"])
def units(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the units, of which the service has the drop-in."""
    for unit in DEPLOY.glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/homeport/bin/homeport", sys.executable))
    for name in request.param:
        (tmp_path / "homeport.service.d").mkdir()
        (tmp_path / "homeport.service.d" / name).write_text((DEPLOY / name).read_text())
    return tmp_path


def analyze(*arguments: str | Path, units: Path | None = None) -> str:
    command = [tool("systemd-analyze"), *arguments]
    env = os.environ | ({} if units is None else {"SYSTEMD_UNIT_PATH": f"{units}:"})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_the_units(units: Path) -> None:
    assert analyze("verify", "--man=no", *sorted(units.glob("*.service")), units=units) == ""


def test_the_service_is_exposed_little(units: Path) -> None:
    """At most 2 of 10, which systemd calls OK; a service that says nothing of it has 9.6."""
    analyze("security", "--offline=yes", "--threshold=20", "--no-pager", units / "homeport.service", units=units)


def test_the_service_serves_all_but_sessions() -> None:
    config = installed(**environment("homeport.service"))
    assert not config.exposed
    assert "sessions" not in config.apis.enabled
    given = dict(assignments("homeport.service"))
    assert Path(config.storage.url.removeprefix("sqlite:")).parent == Path("/var/lib", given["StateDirectory"])
    assert Path(config.apis.sessions.output_folder).parent == Path("/var/lib", given["StateDirectory"])
    assert seconds_to_stop(given["TimeoutStopSec"]) > config.server.shutdown_timeout


def test_with_sessions_it_uses_the_tmux_beside_it() -> None:
    config = installed(**environment("homeport.service"), **environment("sessions.conf"))
    tmux = dict(assignments("homeport-tmux.service"))
    assert config.apis.sessions.tmux_socket == tmux["ExecStart"].split()[-1]
    assert Path(config.apis.sessions.tmux_socket).parent == Path("/run", tmux["RuntimeDirectory"])
    assert dict(assignments("sessions.conf"))["User"] == tmux["User"]


def test_sessions_outlive_all_that_the_service_started(tmp_path: Path) -> None:
    command = shlex.split(dict(assignments("homeport-tmux.service"))["ExecStart"])
    command[0], command[-1] = tool("tmux"), str(tmp_path / "tmux")
    settings = {
        "HOMEPORT_STORAGE__URL": f"sqlite:{tmp_path}/homeport.db",
        "HOMEPORT_APIS__SESSIONS__OUTPUT_FOLDER": str(tmp_path / "sessions"),
        "HOMEPORT_APIS__SESSIONS__TMUX_SOCKET": command[-1],
        "HOMEPORT_APIS__SESSIONS__SESSION_COMMAND": "sleep 1000",
    }
    serve = [*HOMEPORT, "serve", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as tmux:
        try:
            until(Path(command[-1]).exists)
            with serving(serve, tmp_path, **settings) as (server, url):
                project = {"name": "Notes", "repoPath": str(tmp_path), "tmuxSession": "notes"}
                id = ask(f"{url}/api/projects", project)["id"]
                started = ask(f"{url}/api/projects/{id}/sessions", {})
                with_group(server, signal.SIGKILL)
            with serving(serve, tmp_path, **settings) as (_, url):
                (found,) = ask(f"{url}/api/sessions?status=running")
                assert found["id"] == started["id"]
        finally:
            client = [command[0], "-S", command[-1]]
            programs = subprocess.check_output([*client, "list-panes", "-a", "-F", "#{pane_pid}"], text=True)
            for group in map(int, programs.split()):  # they need not end with their terminal
                os.killpg(group, signal.SIGKILL)
            subprocess.run([*client, "kill-server"], check=True)
            tmux.wait(PATIENCE)


def test_the_service_may_call_what_the_server_calls(tmp_path: Path) -> None:
    """Of the kernel: `SystemCallFilter`, against what a server was seen to ask for."""
    seen = tmp_path / "calls"
    strace = [tool("strace"), "-f", "-qq", "-c", "-U", "name", "-o", str(seen)]
    store = ["--storage", f"sqlite:{tmp_path}/homeport.db"]
    settings = {"HOMEPORT_APIS__ENABLED": '["leaderboard", "device_usage", "collections", "console_usage", "metering"]'}
    with serving([*strace, *HOMEPORT, "serve", "--port", "0", *store], tmp_path, **settings) as (server, url):
        key = subprocess.check_output([*HOMEPORT, "keys", "create", "alice", *store], text=True).strip()
        assert ask(f"{url}/v1/user/data", Authorization=f"Bearer {key}")
        assert ask(f"{url}/api/health")["status"] == "healthy"
        with_group(server, signal.SIGTERM)
    called = set(re.findall(r"^(\w+)\s*$", seen.read_text(), re.MULTILINE)) - {"syscall", "total"}
    assert called > {"fdatasync", "listen"}
    assert called - AS_ROOT <= _allowed(
        [value for name, value in assignments("homeport.service") if name == "SystemCallFilter"]
    )


def _allowed(filters: list[str]) -> set[str]:
    """The calls that `SystemCallFilter` lines let through; the first one names what is allowed at all."""
    sets: dict[str, set[str]] = {}
    name = ""
    for line in analyze("syscall-filter", "--no-pager").splitlines():
        if line.startswith("@"):
            name = line
            sets[name] = set()
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            sets[name].add(line.strip())

    def calls(name: str) -> set[str]:
        return {call for member in sets[name] for call in (calls(member) if member in sets else {member})}

    first, *others = filters
    allowed = calls(first)
    for other in others:
        assert other.startswith("~")
        allowed -= calls(other[1:])
    return allowed
