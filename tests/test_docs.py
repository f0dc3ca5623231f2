"""What docs/ shows does what it says."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from . import documented
from .documented import ROOT, blocks, check_settings, served, shell

DOCS = {file.stem: file.read_text("utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
SETTINGS = [(page, text) for page in DOCS for text in blocks(DOCS[page], "toml")]


@pytest.mark.parametrize(("page", "text"), SETTINGS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(SETTINGS)])
def test_settings_are_settings(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_settings(text, tmp_path)


def test_what_it_points_at_exists() -> None:
    for page, text in DOCS.items():
        for path in re.findall(r"`((?:tests|bench|storage|server|deploy)/[\w/.-]*)`", text):
            assert (ROOT / path).exists(), (page, path)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A shell in which the command `homeport` is this one, with a tmux server and a store of its own."""
    socket = f"homeport-{uuid4().hex}"
    yield documented.environment(tmp_path / "store.db") | {
        "HOMEPORT_APIS__SESSIONS__TMUX_SOCKET": socket,
        "HOMEPORT_APIS__SESSIONS__OUTPUT_FOLDER": str(tmp_path / "output"),
        "HOMEPORT_APIS__SESSIONS__SESSION_COMMAND": "sh -c 'echo works on $0; read answer'",
    }
    if shutil.which("tmux"):
        subprocess.run(["tmux", "-L", socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    with served(environment) as url:
        yield url


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_ticket_is_started_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks(DOCS["sessions"], "sh") if "/start" in text)
    started, sessions = map(json.loads, shell(script, url, environment, tmp_path))
    assert (started["ticket"]["external_id"], started["ticket"]["title"]) == ("CSM-001", "Say hello")
    assert started["ticket"]["state"] == "in_progress"
    assert [(session["id"], session["project"]["name"]) for session in sessions] == [(started["session"]["id"], "Demo")]


def test_the_hook_does_no_harm_without_a_server(environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks(DOCS["sessions"], "sh") if "/hooks/claude" in text)
    free = "http://127.0.0.1:1"
    assert shell("HOMEPORT_SESSION_ID=; echo '{}' | " + script, free, environment, tmp_path) == []


def test_tokens_are_spent_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks(DOCS["metering"], "sh") if "/tokens/consume" in text)
    spent, balance, ledger = map(json.loads, shell(script, url, environment, tmp_path))
    assert spent["tokens_balance"] == balance["tokens_balance"] == 249_000
    assert [entry["tokens_amount"] for entry in ledger["transactions"]] == [-1000, 250_000]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_speech_is_transcribed_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks(DOCS["metering"], "sh") if "espeak-ng" in text)
    (line,) = shell(script, url, environment, tmp_path)
    answer = json.loads(line)
    assert (answer["tokens_used"], answer["tokens_balance"]) == (375, 249_625)
    assert set(answer["text"].split()) & {"two", "three", "four", "five", "six"}
