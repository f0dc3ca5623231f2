"""The README's examples do what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeport import load_config
from homeport.server.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A shell in which the command `homeport` is this one."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def url(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment["HOMEPORT_STORAGE__URL"] = f"sqlite:{tmp_path_factory.mktemp('readme')}/store.db"
    command = [sys.executable, "-m", "homeport", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()
        assert server.wait() == 0


def test_the_first_request_is_answered_as_shown(url: str, environment: dict[str, str]) -> None:
    (request,) = (text for text in blocks("sh") if text == f"curl {URL}/\n")
    answer = json.loads(_shell(request, url, environment))
    shown = json.loads(blocks("json")[0])
    assert answer | {"data": None} == shown | {"data": None}
    assert answer["data"].keys() == shown["data"].keys()


def test_a_report_is_pushed_and_read_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/api/sync" in text)
    output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment)
    synced, stats, history, removed = map(json.loads, filter(None, output.splitlines()))
    assert synced["message"] == "Data synced successfully for M4x.local"
    assert stats["totalTokens"] == 2412018
    assert stats["totalCost"] == 15.11
    assert [report["hostname"] for report in history["data"]["reports"]] == ["M4x.local"]
    assert removed == {"status": "success", "message": "Device M4x.local removed"}


def test_a_user_is_ranked_and_deleted_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/v1/sync" in text)
    output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment)
    synced, board, deleted = map(json.loads, filter(None, output.splitlines()))
    assert synced["message"] == "Successfully synced 1 entry"
    assert [(entry["rank"], entry["username"], entry["totalTokens"]) for entry in board["entries"]] == [
        (1, "alice", 11681277)
    ]
    assert deleted["entriesDeleted"] == 1


def test_console_usage_is_posted_and_read_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/api/claude/console-usage" in text)
    output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment)
    posted, snapshot = map(json.loads, filter(None, output.splitlines()))
    assert posted["message"] == "Usage data synced"
    assert snapshot["currentSession"] == {"resetsIn": "2 hr 42 min", "percentageUsed": 47}
    assert (snapshot["ageMinutes"], snapshot["isStale"]) == (0, False)


def test_tokens_are_spent_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/tokens/consume" in text)
    output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment)
    spent, balance = map(json.loads, filter(None, output.splitlines()))
    assert spent["tokens_consumed"] == 1000
    assert balance["tokens_balance"] == spent["tokens_balance"] == 249_000


def test_a_project_is_registered_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (session,) = (text for text in blocks("sh") if "/api/projects" in text)
    output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment, tmp_path)
    project, sessions = map(json.loads, filter(None, output.splitlines()))
    assert (project["name"], project["repo_path"]) == ("Demo", str(tmp_path))
    assert sessions == []


def test_a_store_is_backed_up_and_moved_as_shown(
    url: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (session,) = (text for text in blocks("sh") if "homeport backup" in text)
    wrote, restored, copied = _shell(session, url, environment).splitlines()
    what = wrote.removeprefix("wrote ").removesuffix(" to homeport.jsonl.gz")
    assert restored.startswith(f"restored {what}, of ")
    assert copied == f"copied {what} to sqlite:moved.db"


@pytest.mark.parametrize("program", [text for text in blocks("python") if not text.startswith("# test_")])
def test_python_examples_run(program: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_fixture_serves_as_shown(environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "examples" / "schemas", tmp_path / "schemas")
    (options,) = (text for text in blocks("toml") if text.startswith("# pyproject.toml"))
    (tests,) = (text for text in blocks("python") if text.startswith("# test_notes.py"))
    (tmp_path / "pyproject.toml").write_text(options)
    (tmp_path / "test_notes.py").write_text(tests)
    # Named, since Homeport may be on the path without being installed.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "homeport.server.plugin"]
    alone = environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_server_for_tests_does_as_shown(environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "examples" / "schemas", tmp_path / "schemas")
    (session,) = (text for text in blocks("sh") if "serve --test" in text)
    quiet = session.replace("url.txt &", "url.txt >out 2>err &")
    output = _shell(quiet.replace("curl -s", "echo; curl -s"), URL, environment, tmp_path)
    answers = [json.loads(line) for line in output.splitlines() if line]
    assert answers[2]["status"] == 503  # the fault
    assert answers[3]["requests"][-1]["path"] == "/collections/note"


def test_a_schema_is_a_collection_as_shown(environment: dict[str, str], tmp_path: Path) -> None:
    (begin,) = (text for text in blocks("sh") if "--watch" in text)
    *prepare, serve = begin.splitlines()
    _shell("\n".join(prepare), URL, environment, tmp_path)
    (session,) = (text for text in blocks("sh") if "-X PATCH" in text)
    command = [*serve.split(), "--port", "0", "--storage", "memory:"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        output = _shell(session.replace("curl -s", "echo; curl -s"), url, environment)
        server.terminate()
    done, created, patched, changes = (json.loads(line) for line in output.splitlines() if line)
    assert [note["title"] for note in done["records"]] == ["Bread"]
    assert created["title"] == "Eggs"
    assert (patched["title"], patched["done"]) == ("Milk", True)
    assert [change["record"]["title"] for change in changes["changes"]] == ["Bread", "Eggs", "Milk"]


@pytest.mark.parametrize("text", [text for text in blocks("toml") if not text.startswith("# pyproject.toml")])
def test_settings_are_settings(text: str, tmp_path: Path) -> None:
    assert tomllib.loads(text)
    file = tmp_path / "homeport.toml"
    file.write_text(text)
    load_config(str(file), environ={})


def test_commands_exist() -> None:
    for command in re.findall(r"`homeport ([a-z-]+)", README):
        assert command in cli.commands, command


def test_what_it_points_at_exists() -> None:
    for path in re.findall(r"`((?:tests|docs|bench|storage|server)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path


def _shell(script: str, url: str, environment: dict[str, str], folder: Path | None = None) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(URL, url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
