"""`homeport licenses`, with and without a server on the store."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import BaseTestServer, TestServer

from homeport.server.app import create_app
from homeport.server.config import load_config

from . import commands

KEY = r"[A-Z0-9]{4}(-[A-Z0-9]{4}){3}"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
NOBODY = "01970e2c-7b1a-7f3e-9d7d-2a41d65f0c11"


run = partial(commands.run, "licenses")
licenses = partial(commands.printed, "licenses")
command = partial(commands.printed_apart, "licenses")


@pytest.mark.usefixtures("url")
def test_licenses_are_created_listed_switched_and_granted_to() -> None:
    assert licenses("list") == []
    made = licenses("create", "--email", "Alice@example.com", "--tier", "pro", "--device-name", "Büro")
    assert re.fullmatch(KEY, made.pop("key"))
    assert all(re.fullmatch(UUID, made[name]) for name in ("license_id", "user_id", "device_id"))
    assert re.fullmatch(TIME, made["created_at"])
    assert made == made | {
        "email": "alice@example.com",
        "tier": "pro",
        "tokens_balance": 1_000_000,
        "device_name": "Büro",
        "is_active": True,
        "is_bound": False,
    }
    assert licenses("list") == [made]
    assert licenses("deactivate", made["license_id"]) == made | {"is_active": False}
    assert licenses("deactivate", made["license_id"]) == made | {"is_active": False}
    assert licenses("activate", made["license_id"]) == made
    assert licenses("reset", made["license_id"]) == made
    granted = licenses("grant", "ALICE@example.com", "500")
    assert re.fullmatch(UUID, granted.pop("transaction_id"))
    assert granted == {"email": "alice@example.com", "tokens_granted": 500, "tokens_balance": 1_000_500}
    assert licenses("list") == [made | {"tokens_balance": 1_000_500}]


def test_a_profile_is_free_and_has_many_devices() -> None:
    first = licenses("create", "--email", "a@example.com")
    second = licenses("create", "--email", "a@example.com", "--key", "ABCD-1234-EFGH-5678")
    assert (first["tier"], first["device_name"], second["key"]) == ("free", "Desktop", "ABCD-1234-EFGH-5678")
    assert first["user_id"] == second["user_id"]
    assert [row["license_id"] for row in licenses("list")] == [first["license_id"], second["license_id"]]


def test_for_people() -> None:
    assert run("list").stdout == "no licenses\n"
    made = run("create", "--email", "a@example.com")
    assert re.fullmatch(f"{KEY}\n", made.stdout)  # alone, so that it can go into a file
    assert re.fullmatch(f"{UUID} of a@example.com, free: keep it, it is not shown again\n", made.stderr)
    id = made.stderr[:36]
    row = f"{id}  a@example.com  free        {{}}  Desktop"
    head = "LICENSE ID                            EMAIL          TIER        STATE     DEVICE"
    assert run("list").stdout.splitlines() == [head, row.format("unbound ")]
    assert run("deactivate", id).stdout == f"{id} is not active\n"
    assert run("list").stdout.splitlines() == [head, row.format("inactive")]
    assert run("activate", id).stdout == f"{id} is active\n"
    assert run("reset", id).stdout == f"{id} is bound to no machine\n"
    assert run("grant", "a@example.com", "1000").stdout == "a@example.com has 251,000 tokens\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["create", "--email", "b@example.com", "--key", "ABCD-1234-EFGH-5678"],
            "there is a license with this key",
            id="the key is taken",
        ),
        pytest.param(
            ["create", "--email", "a@example.com", "--tier", "pro"],
            "a@example.com has the tier free, which a subscription alone changes: leave the tier out",
            id="another tier",
        ),
        pytest.param(
            ["deactivate", NOBODY], f"there is no license {NOBODY}; see homeport licenses list", id="no license"
        ),
        pytest.param(
            ["grant", "b@example.com", "1"], "b@example.com has no license; see homeport licenses list", id="nobody"
        ),
        pytest.param(
            ["list", "--storage", "memory:"], "storage is memory: nothing of it outlives a process", id="memory"
        ),
    ],
)
def test_failures(arguments: list[str], message: str) -> None:
    licenses("create", "--email", "a@example.com", "--key", "ABCD-1234-EFGH-5678")
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"homeport: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "option", "message"),
    [
        pytest.param(["create", "--email", "nobody"], "--email", "an email is such as a@example.com.", id="email"),
        pytest.param(
            ["create", "--email", "a@example.com", "--key", "abcd"],
            "--key",
            "a license key is XXXX-XXXX-XXXX-XXXX of A-Z and 0-9.",
            id="key",
        ),
        pytest.param(
            ["create", "--email", "a@example.com", "--device-name", "a\nb"],
            "--device-name",
            "a device name is 1 to 100 characters, none of them a control character.",
            id="device name",
        ),
        pytest.param(
            ["create", "--email", "a@example.com", "--tier", "gold"],
            "--tier",
            "'gold' is not one of 'free', 'pro', 'enterprise'.",
            id="tier",
        ),
        pytest.param(
            ["grant", "a@example.com", "0"], "TOKENS", "0 is not in the range 1<=x<=1000000000000.", id="tokens"
        ),
    ],
)
def test_what_nobody_can_have(folder: Path, arguments: list[str], option: str, message: str) -> None:
    result = run(*arguments)
    command = f"homeport licenses {arguments[0]}"
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{command}: Invalid value for '{option}': {message} See {command} --help.\n"
    assert not [*folder.iterdir()]


# With a server


@pytest.fixture
async def server(url: str) -> AsyncIterator[BaseTestServer]:
    """A server on the store."""
    config = load_config(environ={}, overrides={"storage.url": url, "log.level": "error"})
    async with TestServer(create_app(config)) as server:
        yield server


async def test_a_running_server_knows_at_once(server: BaseTestServer) -> None:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def balance(key: str) -> tuple[int, int | None]:
            headers = {"Authorization": f"Bearer {key}"}
            async with session.get(server.make_url("/api/tokens/balance"), headers=headers) as answer:
                return answer.status, (await answer.json()).get("tokens_balance")

        made = await command("create", "--email", "a@example.com")
        assert await balance(made["key"]) == (200, 250_000)
        await command("deactivate", made["license_id"])
        assert await balance(made["key"]) == (403, None)
        await command("activate", made["license_id"])
        await command("grant", "a@example.com", "1000")
        assert await balance(made["key"]) == (200, 251_000)
