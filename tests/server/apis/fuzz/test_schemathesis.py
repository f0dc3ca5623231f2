"""Schemathesis against the live server: every operation of the OpenAPI document, all checks on, on every back end.

Quick, there are a few examples and what follows from them; `pytest -m slow` runs every phase on each back end. The seed
is always the same. What a schema cannot say is in hooks.py, which answers are fine where in schemathesis.toml.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from aiohttp import web

from homeport.server.api_keys import API_KEYS, SCOPES
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.app import create_app
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.server.keys import STORAGE
from homeport.server.runner import Runner

from ..authorized import CLIENTS, REDIRECT, REQUEST, VERIFIER
from ..collected import ANYTHING
from ..conftest import BACK_ENDS, Log
from ..sessions_kit import PROGRAM, settings_of
from ..spoken import Service, tone
from ..stripe_stand_in import SALES, WEBHOOK_SECRET, localstripe, open_stand_in

__all__ = ["localstripe"]

HERE = Path(__file__).parent
NOTE = {"type": "object", "properties": {"title": {"type": "string"}, "count": {"type": "integer"}}}
ENDLESS = "1000000000/minute"
PATIENCE = 1800
"""Seconds."""
KEYS = {
    "server.admin_key": "the key of who administers it",
    "apis.console_usage.api_key": "the key of the scraper",
    "apis.leaderboard.slack_signing_secret": "the secret of the bot",
    "apis.metering.cron_secret": "the secret of the scheduler",
    "apis.sessions.api_key": "the key of the app",
}
LIFTED: dict[str, Any] = {
    "apis.device_usage.rate_limit": ENDLESS,
    "apis.device_usage.max_users": 1_000_000_000,
    "apis.leaderboard.rate_limit": ENDLESS,
    "apis.metering.rate_limit": ENDLESS,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """For schemas, repositories, what sessions print, and the socket of a tmux server that ends with the test."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    folder = Path(mkdtemp(prefix="fuzz-"))  # a socket's path is 107 bytes at most, which pytest's folders exceed
    (folder / "program.py").write_text(PROGRAM)
    for name, schema in (("note", NOTE), ("thing", ANYTHING)):
        (folder / f"{name}.schema.json").write_text(json.dumps(schema))
    yield folder
    subprocess.run(("tmux", "-S", str(folder / "tmux"), "kill-server"), check=False, capture_output=True, timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def given(folder: Path, storage_url: str, localstripe: str, log: Log) -> AsyncIterator[dict[str, Any]]:
    """Serves everything, as `homeport serve` does; what hooks.py has to know of it."""
    async with AsyncExitStack() as stack:
        stripe = await stack.enter_async_context(open_stand_in(localstripe))
        service = await stack.enter_async_context(Service())
        settings = {
            "storage.url": storage_url,
            "log.level": "warning",
            "apis.collections.schemas": str(folder),
            "apis.metering.stripe.api_base": stripe.url,
            "apis.metering.stripe.success_url": "https://app.example.com/paid",
            "apis.metering.stripe.cancel_url": "https://app.example.com/not-paid",
        }
        overrides = {**KEYS, **LIFTED, **CLIENTS, **SALES, **service.settings, **settings_of(folder), **settings}
        config = load_config(environ={}, overrides=overrides)
        app = create_app(config)
        runner = Runner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        ledger = Ledger(app[STORAGE], Clock(), config.apis.metering)
        _, license_key = await Licenses(app[STORAGE], Clock(), ledger).create("alice@example.com", tier="enterprise")
        _, api_key = await app[API_KEYS].create("alice", SCOPES)
        (folder / "repositories").mkdir()
        bearers = {  # by the paths that begin so, the first that fits
            "/admin": KEYS["server.admin_key"],
            "/metrics": KEYS["server.admin_key"],
            "/api/cron": KEYS["apis.metering.cron_secret"],
            "/api/desktop": license_key,
            "/api/stripe": license_key,
            "/api/tokens": license_key,
            "/api": KEYS["apis.sessions.api_key"],
            "/ws": KEYS["apis.sessions.api_key"],
            "/": api_key,
        }
        yield {
            "url": f"http://{host}:{port}",
            "folder": str(folder / "repositories"),
            "username": "alice",
            "license_key": license_key,
            "webhook_secret": WEBHOOK_SECRET,
            "signing_secret": KEYS["apis.leaderboard.slack_signing_secret"],
            "authorize": REQUEST,
            "redeem": {
                "grant_type": "authorization_code",
                "client_id": "desktop",
                "redirect_uri": REDIRECT,
                "code_verifier": VERIFIER,
            },
            "recording": tone(0.1).hex(),
            "keys": [
                ("/api/claude", "X-API-Key", KEYS["apis.console_usage.api_key"]),
                *((path, "Authorization", f"Bearer {key}") for path, key in bearers.items()),
            ],
        }


async def run(given: dict[str, Any], phases: str, examples: int) -> str:
    """What schemathesis says, where it finds nothing."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={HERE / 'schemathesis.toml'}"),
        *("run", f"{given['url']}/openapi.json", "--no-color"),
        *(
            f"--phases={phases}",
            f"--max-examples={examples}",
            "--seed=1",
            "--generation-database=none",
        ),
        *("--continue-on-failure", "--output-sanitize=false"),
        cwd=given["folder"],
        env=os.environ | {"HOMEPORT_FUZZ": json.dumps(given), "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = said.decode()
    assert process.returncode == 0, report
    return report


@pytest.mark.parametrize(
    ("back_end", "phases", "examples"),
    [
        pytest.param("sqlite", "examples,stateful", 3, id="a few"),
        *(
            pytest.param(name, "examples,coverage,fuzzing,stateful", 20, id=f"on {name}", marks=pytest.mark.slow)
            for name in BACK_ENDS
        ),
    ],
)
async def test_it_answers_as_it_says(given: dict[str, Any], phases: str, examples: int, log: Log) -> None:
    report = await run(given, phases, examples)
    operations = re.search(r"Selected: (\d+)/\1\b", report)
    assert operations is not None
    assert int(operations[1]) > 80
    assert "Traceback" not in log.stream.getvalue()
