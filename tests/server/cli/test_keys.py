"""`homeport keys`, with and without a server on the store."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import BaseTestServer, TestServer

from homeport.server import bcrypt_pool
from homeport.server.api_keys import SCOPES, bearer
from homeport.server.app import assemble
from homeport.server.config import load_config
from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.server.validation import Schemas

from . import commands

TEXT = r"ccusage_live_[A-Za-z0-9_-]{60}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
ID = r"[0-9a-f]{16}"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the least cost that bcrypt knows."""
    monkeypatch.setattr(bcrypt_pool, "COST", 4)


run = partial(commands.run, "keys")
keys = partial(commands.printed, "keys")
command = partial(commands.printed_apart, "keys")


@pytest.mark.usefixtures("url")
def test_keys_are_created_listed_rotated_and_revoked() -> None:
    assert keys("list") == []
    made = keys("create", "alice")
    assert re.fullmatch(TEXT, text := made.pop("key"))
    assert re.fullmatch(TIME, made["created_at"])
    assert made == made | {"username": "alice", "scopes": ["sync", "read"]}
    assert keys("list") == [made]
    rotated = keys("rotate", "alice")
    assert re.fullmatch(TEXT, new := rotated.pop("key"))
    assert new != text
    assert rotated == made | {"created_at": rotated["created_at"]}
    assert keys("list") == [rotated]
    assert keys("revoke", made["id"]) == {"id": made["id"], "revoked": True}
    assert keys("list") == []


def test_scopes() -> None:
    assert keys("create", "alice", "--scope", "read")["scopes"] == ["read"]
    several = keys("create", "alice", *(f"--scope={scope}" for scope in reversed(SCOPES)))
    assert several["scopes"] == list(SCOPES)
    assert all(scope in run("create", "--help").stdout for scope in SCOPES)


def test_a_users_keys_become_one() -> None:
    first = keys("create", "alice", "--scope", "read")
    keys("create", "alice", "--scope", "sync")
    rotated = keys("rotate", "alice")
    assert (rotated["id"], rotated["scopes"]) == (first["id"], ["sync", "read"])
    assert [key["id"] for key in keys("list")] == [first["id"]]


def test_for_people() -> None:
    assert run("list").stdout == "no keys\n"
    made = run("create", "alice-in-wonderland")
    assert re.fullmatch(f"{TEXT}\n", made.stdout)  # alone, so that it can go into a file
    assert re.fullmatch(f"{ID} of alice-in-wonderland: keep it, it is not shown again\n", made.stderr)
    id = made.stderr[:16]
    head, row = run("list").stdout.splitlines()
    assert head == "KEY ID            USERNAME             CREATED                   SCOPES"
    assert re.fullmatch(f"{id}  alice-in-wonderland  {TIME}  sync, read", row)
    rotated = run("rotate", "alice-in-wonderland")
    assert re.fullmatch(f"{TEXT}\n", rotated.stdout)
    assert rotated.stderr == (
        f"{id} of alice-in-wonderland, whose old keys are refused from now on: it is not shown again\n"
    )
    assert run("revoke", id).stdout == f"{id} revoked\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["rotate", "alice"], "alice has no key; see homeport keys list", id="rotate nobody's"),
        pytest.param(["revoke", "0123456789abcdef"], "no such key; see homeport keys list", id="revoke none"),
        pytest.param(["revoke", "ccusage_live_x"], "no such key; see homeport keys list", id="revoke by the key"),
        pytest.param(["create", "BOB"], "BOB differs from the user bob only in case", id="another case"),
        pytest.param(
            ["list", "--storage", "memory:"], "storage is memory: nothing of it outlives a process", id="memory"
        ),
    ],
)
def test_failures(arguments: list[str], message: str) -> None:
    keys("create", "bob")
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"homeport: {message}\n")


@pytest.mark.parametrize("command", ["create", "rotate"])
@pytest.mark.parametrize("username", ["", "al", "a" * 51, "al ice", "álice", "alice\n"], ids=ascii)
def test_no_usernames(folder: Path, command: str, username: str) -> None:
    result = run(command, username)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"homeport keys {command}: Invalid value for 'USERNAME': it has to be 3 to 50 of A-Z, a-z, 0-9, _ and -."
        f" See homeport keys {command} --help.\n"
    )
    assert not [*folder.iterdir()]


def test_no_scope() -> None:
    result = run("create", "alice", "--scope", "synk")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "homeport keys create: Invalid value for '--scope': 'synk' is not one of 'sync', 'read', 'collections:read',"
        " 'collections:write'. See homeport keys create --help.\n"
    )


# With a server


@pytest.fixture
async def server(url: str) -> AsyncIterator[BaseTestServer]:
    """A server on the store, with an operation that takes keys."""
    api = Api("keyed")

    @api.get("/keyed", auth=bearer("read"))
    async def keyed(request: ApiRequest) -> object:
        return {"username": request.username}

    config = load_config(environ={}, overrides={"storage.url": url, "log.level": "error"})
    async with TestServer(assemble(config, [api], Schemas())) as server:
        yield server


async def test_a_running_server_knows_at_once(server: BaseTestServer) -> None:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with session.get(server.make_url("/keyed"), headers=headers) as answer:
                return answer.status

        made = await command("create", "alice")
        assert [await status(made["key"]) for _ in range(3)] == [200] * 3
        rotated = await command("rotate", "alice")
        assert [await status(made["key"]), await status(rotated["key"])] == [401, 200]
        assert [key["id"] for key in await command("list")] == [made["id"]]
        await command("revoke", made["id"])
        assert await status(rotated["key"]) == 401
