"""Commands, as people run them, and what they say."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from homeport.server.cli import cli
from homeport.storage import Collection, Storage
from homeport.storage.remote.reach import reach_storage

T = TypeVar("T")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="homeport")


def printed(*arguments: str) -> Any:
    """What a command that works prints as JSON."""
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


async def printed_apart(*arguments: str) -> Any:
    """The same of a process of its own, beside the server that a test has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "homeport", *arguments, "--json"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


def finding(subject: str, *arguments: str) -> tuple[int, str, str]:
    """The exit code of `homeport check`, and what it finds of a subject."""
    result = run("check", "--json", *arguments)
    (found,) = [one for one in json.loads(result.stdout)["findings"] if one["subject"] == subject]
    return result.exit_code, found["level"], found["message"]


def on_store(url: str, collections: Iterable[Collection], work: Callable[[Storage], Awaitable[T]]) -> T:
    """Works on a store as commands do, which reach it through the server where there is one."""

    async def reached() -> T:
        async with reach_storage(url, tuple(collections)) as storage:
            return await work(storage)

    return asyncio.run(reached())
