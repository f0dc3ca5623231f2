"""The commands that do not serve."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import time_machine
from click.testing import CliRunner, Result

import homeport
from homeport.server.cli import cli
from homeport.storage.lockfile import StoreLock

KEY = "AB" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, a home in it, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [*os.environ]:
        if name.startswith("HOMEPORT_") or name in ("PORT", "DATABASE_PATH", "ADMIN_KEY", "XDG_DATA_HOME"):
            monkeypatch.delenv(name)
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="homeport", env=environ)


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


EVERY_COMMAND = [pytest.param(path, command, id=" ".join(path) or "homeport") for path, command in commands()]


# Help and version


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_every_command_has_help_and_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = run(*path, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert command.help
    assert len(command.help.splitlines()) == 1
    assert command.epilog
    assert "Example" in command.epilog
    assert command.help in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert [line for line in result.stdout.splitlines()[1:] if line.endswith("...")] == []  # cut short


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_every_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    context = click.Context(command)
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    assert options
    assert [option.name for option in options if not (option.help and len(option.help.splitlines()) == 1)] == []


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ((), {"--version", "--help"}),
        (
            ("serve",),
            {"--config", "--host", "--port", "--storage", "--schemas", "--watch", "--test"}
            | {"--ready-file", "--log-format", "--help"},
        ),
        (("check",), {"--config", "--storage", "--json", "--repair-totals", "--help"}),
        (("example-config",), {"--help"}),
        (("copy",), {"--from", "--to", "--dry-run", "--json", "--help"}),
        *[((name,), {"--config", "--storage", "--json", "--help"}) for name in ("backup", "restore")],
        (("keys", "create"), {"--config", "--storage", "--json", "--scope", "--help"}),
        *[(("keys", name), {"--config", "--storage", "--json", "--help"}) for name in ("list", "rotate", "revoke")],
        *[(("users", name), {"--config", "--storage", "--json", "--help"}) for name in ("add", "list", "remove")],
    ],
)
def test_the_options_are_the_contracts(path: tuple[str, ...], options: set[str]) -> None:
    command = dict(commands())[path]
    found = [option for parameter in command.get_params(click.Context(command)) for option in parameter.opts]
    assert {option for option in found if option.startswith("-")} == options


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"homeport {homeport.__version__}\n")


def test_example_config() -> None:
    result = run("example-config")
    assert result.exit_code == 0
    assert result.stdout == (Path(homeport.__file__).parent / "config.example.toml").read_text()


def test_no_command_gives_help() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: homeport [OPTIONS] COMMAND")


# Bad arguments and configuration


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("zzz",), "homeport: No such command 'zzz'. See homeport --help."),
        (("serve", "--zzz"), "homeport serve: No such option '--zzz'. See homeport serve --help."),
        (("serve", "x"), "homeport serve: Got unexpected extra argument (x) See homeport serve --help."),
        (("serve", "--port", "80a"), 'argument server.port: "80a" is not a whole number from 0 to 65535'),
        (("serve", "--log-format", "xml"), 'argument log.format: "xml" is not one of auto, console, json'),
        (("serve", "--config", "none.toml"), "none.toml: cannot be read: No such file or directory"),
        (
            ("serve", "--storage", "nowhere:x"),
            "storage.url: 'nowhere:x' is no storage: use memory:, file:PATH, sqlite:PATH or module:factory",
        ),
        (("users", "add"), "homeport users add: Missing argument 'KEY'. See homeport users add --help."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments_are_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{line}\n")


def test_bad_configuration_is_one_line_a_problem(folder: Path) -> None:
    (folder / "homeport.toml").write_text("server.prot = 1\nlog.level = 'loud'")
    result = run("serve", "--port", "-1", REDIS_URL="redis://x")
    assert result.exit_code == 2
    assert sorted(result.stderr.splitlines()) == [
        "REDIS_URL: Redis is not available in this version; unset it",
        "argument server.port: -1 is not a whole number from 0 to 65535",
        'homeport.toml: log.level: "loud" is not one of debug, info, warning, error',
        "homeport.toml: server.prot: unknown key; did you mean server.port?",
    ]


# check


def check(*arguments: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the last finding on each subject."""
    result = run("check", "--json", *arguments, **environ)
    answer = json.loads(result.stdout)
    assert (
        answer["fatal"] == ("fatal" in [finding["level"] for finding in answer["findings"]]) == (result.exit_code == 1)
    )
    return result.exit_code, {finding.pop("subject"): finding for finding in answer["findings"]}


def finding(level: str, message: str, cure: str = "") -> dict[str, str]:
    return {"level": level, "message": message, "cure": cure}


def test_check_of_a_plain_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    code, found = check(CLAUDE_SYNC_API_KEY="hunter3")
    assert code == 0
    assert {finding["level"] for finding in found.values()} == {"ok"}
    assert list(found) == [
        "configuration",
        "storage",
        "network",
        "ADMIN_KEY",
        "console_usage",
        "device_usage",
        "leaderboard",
        "sessions",
        "metering",
        "collections",
        "python",
        "sqlite",
        "clock",
    ]
    assert found["configuration"]["message"] == "defaults, environment and arguments"
    assert "homeport.db, made at the first start" in found["storage"]["message"]
    assert list(folder.iterdir()) == []


def test_check_for_people() -> None:
    result = run("check", PORT="0", ADMIN_KEY="short")
    lines = result.stdout.splitlines()
    assert "ok       network        for this machine alone" in lines
    place = lines.index("warning  ADMIN_KEY      shorter than 16 characters: it could be guessed")
    assert lines[place + 1] == f"{'':23} -> set it to a long random text (openssl rand -hex 32)"


def test_check_of_a_bad_configuration(folder: Path) -> None:
    (folder / "homeport.toml").write_text("server.prot = 1")
    code, found = check()
    assert code == 1
    assert found["configuration"] == finding(
        "fatal", "homeport.toml: server.prot: unknown key; did you mean server.port?"
    )
    assert "storage" not in found
    assert "sqlite" in found


def make_store(path: Path) -> None:
    assert run("users", "list", "--storage", f"sqlite:{path}").exit_code == 0


def test_check_of_a_store(folder: Path) -> None:
    make_store(folder / "x.db")
    assert check("--storage", "sqlite:x.db")[1]["storage"] == finding("ok", f"sqlite:{folder}/x.db")


def test_check_of_a_store_in_use(folder: Path) -> None:
    make_store(folder / "x.db")
    lock = StoreLock(folder / "x.db")
    lock.acquire()
    try:
        code, found = check("--storage", "sqlite:x.db")
    finally:
        lock.release()
    assert code == 0
    assert found["storage"]["level"] == "note"
    assert found["storage"]["message"] == f"{folder}/x.db is in use by process {os.getpid()}, so it was not looked into"


def damage(path: Path) -> None:
    """A page in the middle is no longer one."""
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 3] = bytes(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a page", "the whole file"])
def test_check_of_a_damaged_store(folder: Path, how: str) -> None:
    make_store(folder / "x.db")
    if how == "a page":
        damage(folder / "x.db")
    else:
        (folder / "x.db").write_text("no database at all" * 1000)
    code, found = check("--storage", "sqlite:x.db")
    assert code == 1
    assert found["storage"]["level"] == "fatal"
    assert found["storage"]["message"].startswith(f"{folder}/x.db")
    assert found["storage"]["cure"] == "keep a copy of it as it is, and put a backup in its place"


def test_check_leaves_a_database_of_another_version_as_it_is(folder: Path) -> None:
    with sqlite3.connect("old.db") as db:
        db.execute("CREATE TABLE users (user_key TEXT)")
    db.close()
    before = (folder / "old.db").read_bytes()
    found = check(DATABASE_PATH="old.db")[1]
    assert found["storage"] == finding(
        "note", f"{folder}/old.db is of an earlier version; a start backs it up and brings it up to date"
    )
    assert (folder / "old.db").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"old.db", "old.db.lock"}


@pytest.mark.parametrize(
    ("storage", "level", "message"),
    [
        ("memory:", "note", "memory: the data is gone when the server stops"),
        ("sqlite:taken/x.db", "fatal", "{folder}/taken/x.db cannot be made: {folder}/taken is not a folder"),
        ("nowhere:x", "fatal", "'nowhere:x' is no storage: use memory:, file:PATH, sqlite:PATH or module:factory"),
    ],
)
def test_check_of_other_storage(folder: Path, storage: str, level: str, message: str) -> None:
    (folder / "taken").write_text("a file")
    found = check("--storage", storage)[1]["storage"]
    assert (found["level"], found["message"]) == (level, message.format(folder=folder))


def test_check_where_nothing_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root, who runs tests in a container, may write anywhere
    code, found = check("--storage", "sqlite:d/x.db")
    assert code == 1
    assert found["storage"] == finding(
        "fatal",
        f"{folder}/d/x.db cannot be made: {folder} is not writable",
        "let this user write there, on a local disk that has room",
    )


@pytest.mark.parametrize(
    ("version", "level"), [((3, 40, 1), "note"), ((3, 51, 2), "note"), ((3, 51, 3), "ok"), ((3, 52, 0), "ok")]
)
def test_check_of_sqlites_version(version: tuple[int, ...], level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))
    code, found = check()
    assert (code, found["sqlite"]["level"]) == (0, level)
    assert found["sqlite"]["message"].startswith(".".join(map(str, version)))


def test_check_of_a_clock_that_was_never_set() -> None:
    with time_machine.travel(0):
        code, found = check()
    assert code == 1
    message = "it is 1970-01-01 00:00 UTC, says the clock"
    assert found["clock"] == finding("fatal", message, "set the clock, best by NTP")


EXPOSED = {"HOMEPORT_SERVER__HOST": "0.0.0.0", "API_KEY": "hunter4 hunter4 hunter4"}
NAMED = {"HOMEPORT_SERVER__PUBLIC_URL": "https://sync.example.com"}


@pytest.mark.parametrize(
    ("environ", "subject", "level", "message"),
    [
        ({}, "ADMIN_KEY", "ok", "not set"),
        ({"ADMIN_KEY": "x" * 16}, "ADMIN_KEY", "ok", "set"),
        ({"ADMIN_KEY": "x" * 15}, "ADMIN_KEY", "warning", "shorter than 16 characters: it could be guessed"),
        (
            EXPOSED,
            "ADMIN_KEY",
            "warning",
            "not set on an exposed server: /metrics answers this machine alone, /admin/keys nobody",
        ),
        (EXPOSED, "network", "warning", "clients that call the server by a host name are refused (421)"),
        (EXPOSED | NAMED, "network", "note", "exposed: it listens on 0.0.0.0:8000; server.public_url is {public}"),
        ({}, "console_usage", "warning", "on; CLAUDE_SYNC_API_KEY is not set: only this machine may post"),
        (EXPOSED, "console_usage", "warning", "on; CLAUDE_SYNC_API_KEY is not set: nobody may post"),
        ({"CLAUDE_SYNC_API_KEY": "hunter3"}, "console_usage", "ok", "on; CLAUDE_SYNC_API_KEY: set"),
        ({}, "device_usage", "ok", "on; any user key may begin"),
        ({"HOMEPORT_APIS__ENABLED": "[]"}, "device_usage", "ok", "off"),
        (
            {"HOMEPORT_APIS__DEVICE_USAGE__REGISTRATION": "closed"},
            "device_usage",
            "ok",
            "on; for the user keys that were added",
        ),
        (
            EXPOSED,
            "device_usage",
            "note",
            "on; any user key may begin, up to 10000 of them, from anywhere",
        ),
        (
            EXPOSED | {"HOMEPORT_APIS__DEVICE_USAGE__ALLOW_NETWORKS": '["10.0.0.0/8"]'},
            "device_usage",
            "ok",
            "on; any user key may begin",
        ),
    ],
)
def test_check_of_credentials(environ: dict[str, str], subject: str, level: str, message: str) -> None:
    code, found = check(**environ)
    assert code == 0
    expected = message.format(public=NAMED["HOMEPORT_SERVER__PUBLIC_URL"])
    assert (found[subject]["level"], found[subject]["message"]) == (level, expected)
    assert found[subject]["cure"] or level in ("ok", "note")


def test_check_shows_no_secret() -> None:
    assert "hunter2" not in run("check", ADMIN_KEY="hunter2").output
