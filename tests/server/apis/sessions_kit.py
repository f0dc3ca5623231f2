"""A desk to work at: a server with sessions, a tmux server of its own, a repository, and a program to run in it."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Answer, Client, Serve, Served

PROGRAM = """
import json, os, signal, sys, termios, time
print(json.dumps(sys.argv[1:]), flush=True)
for line in sys.stdin:
    word, _, rest = line.rstrip("\\n").partition(" ")
    if word == "exit":
        sys.exit(int(rest))
    elif word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    elif word == "count":
        for number in range(int(rest)):
            print("line", number)
    elif word == "quiet":
        mode = termios.tcgetattr(0)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, mode)
    elif word == "sleep":
        time.sleep(float(rest))
    elif word == "raw":
        rest = word
        mode = termios.tcgetattr(0)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(0, termios.TCSANOW, mode)
    elif word == "now":
        rest = time.time()
    elif word == "colours":
        print("\\033]0;title\\007\\033[31mred\\033[0m text")
    elif word == "env":
        rest = os.environ.get(rest, "unset")
    print("got", rest, flush=True)
"""
"""What runs in the place of an agent: tells its arguments as JSON, and answers what is typed."""


@dataclass
class Room:
    """``folder`` holds all of it: ``repo``, ``output``, the ``program`` and the tmux server's ``socket``."""

    folder: Path
    server: "Client"

    @property
    def repo(self) -> Path:
        return self.folder / "repo"

    @property
    def socket(self) -> Path:
        return self.folder / "tmux"

    def tmux(self, *arguments: str) -> str:
        """Asks the tmux server of this desk."""
        command = ("tmux", "-u", "-S", str(self.socket), *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout

    def panes(self) -> list[str]:
        """The ids of all panes; none where no tmux server runs."""
        try:
            return self.tmux("list-panes", "-a", "-F", "#{pane_id}").split()
        except subprocess.CalledProcessError:
            return []

    async def call(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        """The document of an answer, whose status has to be this one."""
        answer: Answer = await self.server(method, f"/api{path}", **request)
        assert answer.status == status, answer.content
        return json.loads(answer.content) if answer.content else None

    async def project(self, **changes: Any) -> dict[str, Any]:
        """Registers a project, of the repository if no other is named."""
        body = {"name": "Homeport", "repoPath": str(self.repo), "tmuxSession": "work"} | changes
        return dict(await self.call("POST", "/projects", 201, json=body))

    async def start(self, prompt: str | None = None, project: dict[str, Any] | None = None) -> dict[str, Any]:
        """Starts a session, in a new project if none is given, and waits until its program runs."""
        project = project or await self.project()
        body = {} if prompt is None else {"initialPrompt": prompt}
        session = await self.call("POST", f"/projects/{project['id']}/sessions", 201, json=body)
        await self.printed(session["id"], "[")
        return dict(session)

    async def type(self, id: str, text: str) -> None:
        assert await self.call("POST", f"/sessions/{id}/input", json={"text": text}) == {"success": True}

    async def session(self, id: str) -> dict[str, Any]:
        return dict(await self.call("GET", f"/sessions/{id}"))

    async def lines(self, id: str, count: int = 10_000) -> list[str]:
        return list((await self.call("GET", f"/sessions/{id}/output?lines={count}"))["lines"])

    async def printed(self, id: str, text: str) -> list[str]:
        """Waits until a line begins with a text; all lines."""
        lines: list[str] = []

        async def there() -> bool:
            lines[:] = await self.lines(id)
            return any(line.startswith(text) for line in lines)

        await until(there)
        return lines

    async def ended(self, id: str) -> dict[str, Any]:
        """Waits until a session has ended."""

        async def there() -> bool:
            return (await self.session(id))["status"] in ("completed", "error")

        await until(there)
        return await self.session(id)


@dataclass
class Desk(Room):
    """With a server in this process."""

    server: "Served"
    serve: "Serve"

    async def restart(self, settings: dict[str, Any] | None = None) -> None:
        """Goes on with another server on the same store, where the first one knows nothing of it."""
        self.server = await self.serve({**settings_of(self.folder), **(settings or {})})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits, at most 30 seconds, for what becomes true without telling anybody."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a server whose sessions live in a folder, see `Desk`."""
    return {
        "apis.sessions.tmux_socket": str(folder / "tmux"),
        "apis.sessions.output_folder": str(folder / "output"),
        "apis.sessions.session_command": f"{sys.executable} -I -S {folder / 'program.py'}",
    }


OpenDesk = Callable[..., Awaitable[Desk]]


@pytest.fixture
def desk_folder() -> Iterator[Path]:
    """What a `Room` has, without a server; its tmux server ends with the test."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    folder = Path(mkdtemp(prefix="desk-"))  # a socket's path is 107 bytes at most, which pytest's folders exceed
    (folder / "repo").mkdir()
    (folder / "program.py").write_text(PROGRAM)
    yield folder
    subprocess.run(("tmux", "-S", str(folder / "tmux"), "kill-server"), check=False, capture_output=True, timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_desk(desk_folder: Path, serve: "Serve") -> OpenDesk:
    """Makes a desk, whose server has settings besides those of `settings_of`."""

    async def open_(settings: dict[str, Any] | None = None) -> Desk:
        return Desk(desk_folder, await serve({**settings_of(desk_folder), **(settings or {})}), serve)

    return open_


@pytest.fixture
async def desk(open_desk: OpenDesk) -> Desk:
    return await open_desk()
