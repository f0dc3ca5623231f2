"""A server to visit: all of it on, limits lifted, and data in it; what is asked of it is made from its own document."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from bench.arrivals import Answer, Ask, Steps, Visitors
from bench.leaderboard import make_keys
from homeport.server.apis.metering import api as metering
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import open_storage

LICENSE, LICENSES = "0000-0000-0000-%04d", 300
USERS = 300
"""Of the leaderboard."""
TICKETS, FOLDERS = 1_000, 500
"""Files in the repository, and repositories for projects that come and go."""
ADMIN, CRON, SLACK, STRIPE = "the administrator's key", "the scheduler's key", "the bot's secret", "whsec_bench"
REDIRECT = "http://127.0.0.1/callback"

_ENDLESS = "1000000000/minute"
_SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "count": {"type": "integer"}, "text": {"type": "string"}},
}


def settings(folder: Path, stripe: int) -> dict[str, str]:
    """The environment of a server that keeps everything in a folder. ``stripe``: the port of a `stand_in`."""
    metering, sessions = "HOMEPORT_APIS__METERING__", "HOMEPORT_APIS__SESSIONS__"
    return {
        "ADMIN_KEY": ADMIN,
        "CRON_SECRET": CRON,
        "SLACK_SIGNING_SECRET": SLACK,
        "STRIPE_SECRET_KEY": "sk_test_bench",
        "STRIPE_WEBHOOK_SECRET": STRIPE,
        "HOMEPORT_STORAGE__URL": f"sqlite:{folder}/store.db",
        "HOMEPORT_APIS__DEVICE_USAGE__RATE_LIMIT": _ENDLESS,
        "HOMEPORT_APIS__LEADERBOARD__RATE_LIMIT": _ENDLESS,
        "HOMEPORT_APIS__COLLECTIONS__SCHEMAS": f"{folder}/schemas",
        f"{metering}RATE_LIMIT": _ENDLESS,
        f"{metering}TIERS__FREE": "1000000000",
        f"{metering}OAUTH__CLIENTS": json.dumps([{"id": "desktop", "name": "Desktop", "redirect_uris": [REDIRECT]}]),
        f"{metering}STRIPE__API_BASE": f"http://127.0.0.1:{stripe}",
        f"{metering}STRIPE__TOKEN_PRICE": "price_tokens",
        f"{metering}STRIPE__SUCCESS_URL": "https://app.example.com/paid",
        f"{metering}STRIPE__CANCEL_URL": "https://app.example.com/not-paid",
        f"{sessions}TMUX_SOCKET": f"{folder}/tmux",
        f"{sessions}OUTPUT_FOLDER": f"{folder}/output",
        f"{sessions}SESSION_COMMAND": "cat",
    }


async def _sell(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response({"id": "cs_1", "object": "checkout.session", "url": "https://checkout.stripe.com/c/pay/1"})


def stand_in(listening: socket.socket) -> None:
    """Stripe, which makes a page for whatever is to be sold; it serves until it is killed."""
    application = web.Application()
    application.router.add_post("/v1/checkout/sessions", _sell)
    web.run_app(application, sock=listening, print=None)


def prepare(folder: Path) -> list[str]:
    """Makes what is there before the server starts: a schema, repositories, one of them with tickets, licenses, and
    users of the leaderboard, whose keys are returned."""
    (folder / "schemas").mkdir()
    (folder / "schemas/notes.schema.json").write_text(json.dumps(_SCHEMA))
    tickets = folder / "repository/docs/jira-tickets"
    tickets.mkdir(parents=True)
    for number in range(TICKETS):
        (tickets / f"CSM-{number:04}.md").write_text(f"# Ticket {number}\n\n" + "What is to be done.\n" * 50)
    for number in range(FOLDERS):
        (folder / f"repositories/{number}").mkdir(parents=True)
    url = f"sqlite:{folder}/store.db"
    asyncio.run(_make_licenses(url))
    return asyncio.run(make_keys(url, USERS))


async def _make_licenses(url: str) -> None:
    clock = Clock()
    async with open_storage(url, metering.collections) as storage:
        licenses = Licenses(storage, clock, Ledger(storage, clock, load_config().apis.metering))
        for number in range(LICENSES):
            await licenses.create(f"{number}@example.com", key=LICENSE % number)


class Site:
    """A server that is visited. ``operations``: method and path, by name. What is there: ``keys`` of the leaderboard's
    users; a ``project``, its ``tickets`` and ``sessions`` that run; notifications that are ``taken`` by somebody."""

    def __init__(self, visitors: Visitors, folder: Path, keys: list[str]) -> None:
        self.visitors, self.folder, self.keys = visitors, folder, keys
        self.operations = {"system.description": ("GET", "/openapi.json")}
        for path, item in json.loads(self.answer("system.description").body)["paths"].items():
            for method, operation in item.items():
                if "operationId" in operation:
                    self.operations[operation["operationId"]] = method.upper(), path
        self.project = ""
        self.tickets: list[str] = []
        self.sessions: list[str] = []
        self.taken: set[str] = set()

    def ask(
        self,
        operation: str,
        document: Any = None,
        *,
        query: str = "",
        form: dict[str, str] | None = None,
        bearer: str | None = None,
        headers: dict[str, str] | None = None,
        first: bytes | None = None,
        **path: Any,
    ) -> Ask:
        """A request of an operation; the rest are parameters of its path."""
        method, template = self.operations[operation]
        head, content = {"Host": "127.0.0.1", "Content-Type": "application/json"}, b""
        if form is not None:
            head["Content-Type"], content = "application/x-www-form-urlencoded", urlencode(form).encode()
        elif document is not None:
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
        if bearer is not None:
            head["Authorization"] = f"Bearer {bearer}"
        head |= {"Content-Length": str(len(content))} | (headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        target = template.format(**path) + (query and f"?{query}")
        return Ask(operation, f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + content, first)

    def answer(self, operation: str, document: Any = None, **request: Any) -> Answer:
        """To one request, now."""
        answers = []

        def steps() -> Steps:
            answers.append((yield self.ask(operation, document, **request)))

        self.send([steps()])
        return answers[0]

    def send(self, visits: Iterable[Steps]) -> None:
        """Until all have been."""
        for _ in self.visitors.send(visits):
            pass
