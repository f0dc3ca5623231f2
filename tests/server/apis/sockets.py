"""What the tests of the sessions' WebSocket share: clients that speak either dialect, and a program to talk to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from .conftest import Client, Served
from .sessions_kit import Desk, OpenDesk

ECHO = """\
printf 'ready\\n'
while read -r line; do
    case $line in
        fail) exit 3 ;;
        bye) exit 0 ;;
        lines*) seq 1 "${line#lines }" ;;
        run*) ${line#run } ;;
        *) printf 'got %s\\n' "$line" ;;
    esac
done
"""
"""A program that answers each line, and prints, runs or ends on request."""
SESSION_ID = "01a20184-e37c-7524-827d-a9213b79ad5f"


class Closed(Exception):
    """The server has closed; ``args``: the code."""


@dataclass
class Socket:
    """A client."""

    client: aiohttp.ClientWebSocketResponse

    async def flat(self, kind: str, **fields: Any) -> None:
        await self.client.send_str(json.dumps({"type": kind, **fields}))

    async def envelope(self, kind: str, **payload: Any) -> None:
        await self.client.send_str(json.dumps({"type": kind, "payload": payload}))

    async def next(self) -> Any:
        """The next message."""
        async with asyncio.timeout(30):
            message = await self.client.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Closed(self.client.close_code)
        return json.loads(message.data)

    async def until(self, kind: str) -> Any:
        """The next message of a type; those before it are dropped."""
        while (message := await self.next())["type"] != kind:
            pass
        return message

    async def printed(self, ending: str) -> str:
        """What a session prints, in either dialect, until it has printed this."""
        text = ""
        while ending not in text:
            message = await self.next()
            assert message["type"] in ("session:output", "subscribed"), message
            text += text_of(message)
        return text

    async def shown(self, ending: str) -> str:
        """What a terminal shows until it shows this."""
        text = ""
        while ending not in text:
            message = await self.next()
            assert message["type"] == "pty:output", message
            text += message["payload"]["data"]
        return text

    async def insist(self, id: str, data: str, ending: str) -> None:
        """Types into a terminal, again and again, until it shows this."""
        for _ in range(60):
            await self.envelope("pty:data", sessionId=id, data=data)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self.shown(ending)
                    return
        raise TimeoutError

    async def measured(self, id: str, *, rows: int, columns: int) -> None:
        """Waits until `ECHO`, in a terminal, finds it of a size; tmux may take a moment to tell it."""
        await self.insist(id, "run stty size\r", f"{rows} {columns}")


def text_of(message: Any) -> str:
    """What a session printed, as a message has it."""
    if "payload" not in message:
        return str(message["output"])
    payload = message["payload"]
    return "\n".join(payload["bufferLines"] if "bufferLines" in payload else payload["lines"])


@asynccontextmanager
async def connect(server: Client, path: str = "/ws", **options: Any) -> AsyncIterator[Socket]:
    async with server.session.ws_connect(server.url + path, max_msg_size=0, **options) as client:
        yield Socket(client)


@dataclass
class Steered:
    """A desk whose sessions run a program of the test's."""

    desk: Desk
    project: dict[str, Any]

    @property
    def server(self) -> Served:
        return self.desk.server

    async def start(self) -> str:
        """Starts a session; its id."""
        session = await self.desk.call("POST", f"/projects/{self.project['id']}/sessions", 201, json={})
        return str(session["id"])


async def steered(open_desk: OpenDesk, folder: Path, script: str = ECHO, **settings: Any) -> Steered:
    """Such a desk; the program is a shell's script."""
    program = folder / "program.sh"
    program.write_text(script)
    desk = await open_desk({"apis.enabled": ["sessions"], "apis.sessions.session_command": f"sh {program}", **settings})
    return Steered(desk, await desk.project())
