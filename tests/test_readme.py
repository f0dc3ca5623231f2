"""The README's examples do what it says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from homeport.server.cli import cli

from . import documented
from .documented import ROOT, URL, check_settings, served, shell

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return documented.blocks(README, language)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return documented.environment(tmp_path_factory.mktemp("readme") / "store.db")


@pytest.fixture(scope="module")
def url(environment: dict[str, str]) -> Iterator[str]:
    with served(environment) as url:
        yield url


def test_the_first_request_is_answered_as_shown(url: str, environment: dict[str, str]) -> None:
    (request,) = (text for text in blocks("sh") if text == f"curl {URL}/\n")
    (answer,) = map(json.loads, shell(request, url, environment))
    shown = json.loads(blocks("json")[0])
    assert answer | {"data": None} == shown | {"data": None}
    assert answer["data"].keys() == shown["data"].keys()


def test_a_report_is_pushed_and_read_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/api/sync" in text)
    synced, stats, history, removed = map(json.loads, shell(session, url, environment))
    assert synced["message"] == "Data synced successfully for M4x.local"
    assert stats["totalTokens"] == 2412018
    assert stats["totalCost"] == 15.11
    assert [report["hostname"] for report in history["data"]["reports"]] == ["M4x.local"]
    assert removed == {"status": "success", "message": "Device M4x.local removed"}


def test_a_user_is_ranked_and_deleted_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/v1/sync" in text)
    synced, board, deleted = map(json.loads, shell(session, url, environment))
    assert synced["message"] == "Successfully synced 1 entry"
    assert [(entry["rank"], entry["username"], entry["totalTokens"]) for entry in board["entries"]] == [
        (1, "alice", 11681277)
    ]
    assert deleted["entriesDeleted"] == 1


def test_console_usage_is_posted_and_read_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/api/claude/console-usage" in text)
    posted, snapshot = map(json.loads, shell(session, url, environment))
    assert posted["message"] == "Usage data synced"
    assert snapshot["currentSession"] == {"resetsIn": "2 hr 42 min", "percentageUsed": 47}
    assert (snapshot["ageMinutes"], snapshot["isStale"]) == (0, False)


def test_tokens_are_spent_as_shown(url: str, environment: dict[str, str]) -> None:
    (session,) = (text for text in blocks("sh") if "/tokens/consume" in text)
    spent, balance = map(json.loads, shell(session, url, environment))
    assert spent["tokens_consumed"] == 1000
    assert balance["tokens_balance"] == spent["tokens_balance"] == 249_000


def test_a_project_is_registered_as_shown(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    (session,) = (text for text in blocks("sh") if "/api/projects" in text)
    project, sessions = map(json.loads, shell(session, url, environment, tmp_path))
    assert (project["name"], project["repo_path"]) == ("Demo", str(tmp_path))
    assert sessions == []


def test_a_store_is_backed_up_and_moved_as_shown(
    url: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (session,) = (text for text in blocks("sh") if "homeport backup" in text)
    wrote, restored, copied = shell(session, url, environment)
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
    answers = [json.loads(line) for line in shell(quiet, URL, environment, tmp_path)]
    assert answers[2]["status"] == 503  # the fault
    assert answers[3]["requests"][-1]["path"] == "/collections/note"


def test_a_schema_is_a_collection_as_shown(environment: dict[str, str], tmp_path: Path) -> None:
    (begin,) = (text for text in blocks("sh") if "--watch" in text)
    *prepare, serve = begin.splitlines()
    shell("\n".join(prepare), URL, environment, tmp_path)
    (session,) = (text for text in blocks("sh") if "-X PATCH" in text)
    with served(environment, [*serve.split(), "--storage", "memory:"], tmp_path) as url:
        done, created, patched, changes = map(json.loads, shell(session, url, environment))
    assert [note["title"] for note in done["records"]] == ["Bread"]
    assert created["title"] == "Eggs"
    assert (patched["title"], patched["done"]) == ("Milk", True)
    assert [change["record"]["title"] for change in changes["changes"]] == ["Bread", "Eggs", "Milk"]


@pytest.mark.parametrize("text", [text for text in blocks("toml") if not text.startswith("# pyproject.toml")])
def test_settings_are_settings(text: str, tmp_path: Path) -> None:
    check_settings(text, tmp_path)


def test_commands_exist() -> None:
    for command in re.findall(r"`homeport ([a-z-]+)", README):
        assert command in cli.list_commands(click.Context(cli)), command


def test_what_it_points_at_exists() -> None:
    for path in re.findall(r"`((?:tests|docs|bench|storage|server)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
