"""`homeport users`, with and without a server on the store."""

import json
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from homeport.server.cli import cli
from homeport.storage.lockfile import StoreLock
from homeport.storage.remote import reach

from ..test_serve import PATIENCE, REPORT, Server

KEY = json.loads(REPORT)["userKey"]


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["users", *arguments], prog_name="homeport", input=stdin)


def users(*arguments: str, stdin: str | None = None) -> Any:
    """What a command prints."""
    result = run(*arguments, "--json", stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


# Without a server


@pytest.mark.usefixtures("url")
def test_users_are_added_listed_and_removed() -> None:
    assert users("list") == []
    user = users("add", KEY)["user"]
    assert users("add", KEY.upper()) == {"user": user, "added": False}
    assert users("list") == [{"user": user, "devices": 0, "registered": True}]
    assert users("remove", KEY.upper()) == {"user": user, "removed": True}
    assert users("list") == []


def test_a_user_whose_key_is_lost_is_removed_by_what_list_prints() -> None:
    user = users("add", KEY)["user"]
    assert users("remove", user) == {"user": user, "removed": True}


def test_a_key_may_come_on_standard_input() -> None:
    user = users("add", "-", stdin=f"{KEY}\n")["user"]
    assert users("add", KEY) == {"user": user, "added": False}
    assert users("remove", "-", stdin=KEY) == {"user": user, "removed": True}


def test_for_people() -> None:
    assert run("list").stdout == "no users\n"
    added = run("add", KEY).stdout
    user = added.partition(" ")[0]
    assert added == f"{user} added\n"
    assert run("add", KEY).stdout == f"{user} was added before\n"
    assert run("list").stdout.splitlines() == [
        "USER                              DEVICES  REGISTERED",
        f"{user}        0  yes",
    ]
    assert run("remove", KEY).stdout == f"{user} removed\n"
    again = run("remove", KEY)
    assert (again.exit_code, again.stderr) == (1, "homeport: no such user was added\n")


NO_KEYS = ["", "ab", "g" * 64, "a" * 65, "٣" * 64, "a/b"]
WANTED = {
    "add": "64 hexadecimal digits, such as `openssl rand -hex 32` prints",
    "remove": "64 hexadecimal digits, or a user as `homeport users list` prints them",
}


@pytest.mark.parametrize("command", ["add", "remove"])
@pytest.mark.parametrize(
    ("key", "stdin"),
    [
        *[pytest.param(key, None, id=ascii(key)) for key in [*NO_KEYS, f"{KEY}\n"]],
        *[pytest.param("-", key, id=f"input {key!a}") for key in [*NO_KEYS, f"\n{KEY}"]],
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(command: str, key: str, stdin: str | None) -> None:
    result = run(command, key, stdin=stdin)
    assert result.exit_code == 2
    assert result.stderr == (
        f"homeport users {command}: Invalid value for 'KEY': it has to be {WANTED[command]}."
        f" See homeport users {command} --help.\n"
    )


def test_no_key_is_kept_or_shown(folder: Path, url: str) -> None:
    result = run("add", KEY.upper())
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert kept
    for text in (KEY, KEY.upper()):
        assert text not in result.output
        assert text.encode() not in kept


def test_a_store_whose_owner_does_not_answer(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "PATIENCE", 0.1)
    lock = StoreLock(folder / "x.db")
    lock.acquire()
    try:
        result = run("list")
    finally:
        lock.release()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"homeport: {folder}/x.db is in use by process {os.getpid()}; no server answers at {folder}/x.db.sock\n"
    )


def test_memory_makes_no_sense() -> None:
    result = run("list", "--storage", "memory:")
    assert (result.exit_code, result.stderr) == (1, "homeport: storage is memory: nothing of it outlives a process\n")


def test_storage_that_does_not_exist() -> None:
    result = run("list", "--storage", "nowhere:x")
    assert result.exit_code == 2
    assert result.stderr.startswith("storage.url: 'nowhere:x' is no storage")


# With a server


Start = Callable[[], Server]


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts servers where registration is closed."""
    monkeypatch.setenv("HOMEPORT_APIS__DEVICE_USAGE__REGISTRATION", "closed")
    servers: list[Server] = []

    def run() -> Server:
        servers.append(Server(folder, "--port", "0", environ=dict(os.environ)))
        assert servers[-1].ready
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


def report(server: Server) -> int:
    """The status of a report with the key."""
    request = urllib.request.Request(f"{server.url}/api/sync", REPORT, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_running_server_knows_at_once(start: Start, folder: Path, url: str) -> None:
    server = start()
    place = folder / "x.db.sock"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert report(server) == 403
    user = users("add", KEY)["user"]
    assert users("add", KEY) == {"user": user, "added": False}
    assert report(server) == 200
    assert users("list") == [{"user": user, "devices": 1, "registered": True}]
    assert users("remove", "-", stdin=KEY) == {"user": user, "removed": True}
    assert report(server) == 403
    assert users("list") == [{"user": user, "devices": 1, "registered": False}]
    assert run("remove", user).exit_code == 1
    assert server.stop() == 0
    assert not place.exists()
    assert KEY not in "\n".join(server.log).lower()


def test_a_server_knows_what_was_said_before_it_started(start: Start, url: str) -> None:
    users("add", KEY)
    server = start()
    assert report(server) == 200
    server.stop()
    users("remove", KEY)
    server = start()
    assert report(server) == 403


def test_after_a_server_was_killed(start: Start, folder: Path, url: str) -> None:
    place = folder / "x.db.sock"
    server = start()
    users("add", KEY)
    server.process.kill()
    server.process.wait()
    assert place.is_socket()
    (user,) = users("list")
    server = start()
    assert users("list") == [user]
    assert report(server) == 200
    assert server.stop() == 0
    assert not place.exists()


def test_check_asks_the_server(start: Start, folder: Path, url: str) -> None:
    server = start()
    result = CliRunner().invoke(cli, ["check", "--json"])
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert result.exit_code == 0
    assert found["storage"]["level"] == "ok"
    assert (
        found["storage"]["message"]
        == f"{folder}/x.db is in use by process {server.process.pid}, a server, which answers"
    )
