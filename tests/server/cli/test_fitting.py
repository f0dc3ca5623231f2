"""`homeport check` and collections: schemas that are wrong, and records that an edited schema no longer allows."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from homeport.server.cli import cli

from ..test_serve import Server

LOOSE = {"type": "object", "properties": {"title": {"type": "string"}}}
STRICT = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string", "minLength": 4}}}
SEED = [{"id": "n1", "title": "Milk"}, {"id": "n2", "title": "Egg"}, {"id": "n3"}]


def write_schema(schema: object) -> None:
    Path("schemas/note.schema.json").write_text(json.dumps(schema))


@pytest.fixture
def notes(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose store holds `SEED` as notes."""
    monkeypatch.setenv("HOMEPORT_APIS__COLLECTIONS__SCHEMAS", "schemas")
    Path("schemas").mkdir()
    write_schema(LOOSE)
    Path("schemas/note.json").write_text(json.dumps(SEED))
    server = Server(folder, "--port", "0", environ=dict(os.environ))
    yield server
    server.kill()


def findings(subject: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit code of the check, and levels and messages of what it finds of a subject."""
    result = CliRunner().invoke(cli, ["check", "--json"], prog_name="homeport")
    found: list[dict[str, Any]] = json.loads(result.stdout)["findings"]
    return result.exit_code, [(one["level"], one["message"]) for one in found if one["subject"] == subject]


@pytest.mark.parametrize("serving", [True, False], ids=["a server", "no server"])
def test_records_that_no_longer_fit_are_counted_and_named(notes: Server, serving: bool) -> None:
    if not serving:
        assert notes.stop() == 0
    assert findings("records") == (0, [("ok", "note: 3, which fit the schema")])
    write_schema(STRICT)
    assert findings("records") == (0, [("warning", "note: 2 of 3 do not fit the schema: n2, n3")])


def test_they_can_be_read_and_not_written(notes: Server, folder: Path) -> None:
    assert notes.stop() == 0
    write_schema(STRICT)
    server = Server(folder, "--port", "0", environ=dict(os.environ))
    try:
        with urllib.request.urlopen(f"{server.url}/collections/note/n2") as answer:
            body = answer.read()
        request = urllib.request.Request(f"{server.url}/collections/note/n2", body, method="PUT")
        request.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            urllib.request.urlopen(request)
        assert json.load(refused.value)["errors"][0]["pointer"] == "/title"
    finally:
        server.kill()


def test_a_schema_that_is_none_is_fatal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEPORT_APIS__COLLECTIONS__SCHEMAS", "schemas")
    Path("schemas").mkdir()
    write_schema({"type": "objekt"})
    code, found = findings("collections")
    assert code == 1
    assert [message.partition(": ")[2][:21] for level, message in found if level == "fatal"] == [
        "/type: must be one of"
    ]
