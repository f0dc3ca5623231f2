"""What docs/ shows does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from homeport import load_config

ROOT = Path(__file__).parent.parent
DOCS = {file.stem: file.read_text("utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
URL = "http://127.0.0.1:8000"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS[page], re.MULTILINE | re.DOTALL)


SETTINGS = [(page, text) for page in DOCS for text in blocks(page, "toml")]


@pytest.mark.parametrize(("page", "text"), SETTINGS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(SETTINGS)])
def test_settings_are_settings(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'_file = "([^"]+)"', text):
        Path(name).write_text("a secret")
    Path("homeport.toml").write_text(text)
    assert tomllib.loads(text)
    load_config("homeport.toml", environ={})


def test_what_it_points_at_exists() -> None:
    for page, text in DOCS.items():
        for path in re.findall(r"`((?:tests|bench|storage|server|deploy)/[\w/.-]*)`", text):
            assert (ROOT / path).exists(), (page, path)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A shell in which the command `homeport` is this one, with a tmux server and a store of its own."""
    socket = f"homeport-{uuid4().hex}"
    yield os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOMEPORT_STORAGE__URL": f"sqlite:{tmp_path}/store.db",
        "HOMEPORT_APIS__SESSIONS__TMUX_SOCKET": socket,
        "HOMEPORT_APIS__SESSIONS__OUTPUT_FOLDER": str(tmp_path / "output"),
        "HOMEPORT_APIS__SESSIONS__SESSION_COMMAND": "sh -c 'echo works on $0; read answer'",
    }
    if shutil.which("tmux"):
        subprocess.run(["tmux", "-L", socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-m", "homeport", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()
        assert server.wait() == 0


def shell(script: str, url: str, environment: dict[str, str], folder: Path) -> list[str]:
    """The lines that a script prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(URL, url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_ticket_is_started_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks("sessions", "sh") if "/start" in text)
    script = script.replace("curl -s -X POST", "echo; curl -s -X POST").replace('curl -s "', 'echo; curl -s "')
    lines = shell(script, url, environment, tmp_path)
    print(lines)
    started, sessions = map(json.loads, lines)
    assert (started["ticket"]["external_id"], started["ticket"]["title"]) == ("CSM-001", "Say hello")
    assert started["ticket"]["state"] == "in_progress"
    assert [(session["id"], session["project"]["name"]) for session in sessions] == [(started["session"]["id"], "Demo")]


def test_the_hook_does_no_harm_without_a_server(environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks("sessions", "sh") if "/hooks/claude" in text)
    free = "http://127.0.0.1:1"
    assert shell("HOMEPORT_SESSION_ID=; echo '{}' | " + script, free, environment, tmp_path) == []


def test_tokens_are_spent_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks("metering", "sh") if "/tokens/consume" in text)
    spent, balance, ledger = map(json.loads, shell(script.replace("curl", "echo; curl"), url, environment, tmp_path))
    assert spent["tokens_balance"] == balance["tokens_balance"] == 249_000
    assert [entry["tokens_amount"] for entry in ledger["transactions"]] == [-1000, 250_000]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_speech_is_transcribed_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (script,) = (text for text in blocks("metering", "sh") if "espeak-ng" in text)
    (line,) = shell(script, url, environment, tmp_path)
    answer = json.loads(line)
    assert (answer["tokens_used"], answer["tokens_balance"]) == (375, 249_625)
    assert set(answer["text"].split()) & {"two", "three", "four", "five", "six"}
