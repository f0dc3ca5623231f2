"""Ticket files: whatever people, editors and git do to a folder, its tickets follow, and nothing outside is touched."""

import asyncio
import os
import re
import stat
import time
import unicodedata
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from homeport.server.apis.sessions.folders import files, syncing
from homeport.server.apis.sessions.folders.files import Folder, Missing
from homeport.server.apis.sessions.folders.headings import title_of, with_title
from homeport.storage import disk

from .conftest import Served, on_memory
from .sessions_kit import Desk

FOLDER = "docs/jira-tickets"


class Board:
    """A project on a desk, and its tickets folder."""

    def __init__(self, desk: Desk, project: dict[str, Any]) -> None:
        self.desk = desk
        self.id: str = project["id"]
        self.folder = desk.repo / FOLDER

    def put(self, name: str, text: str | bytes = "# First\n") -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    async def tickets(self, query: str = "") -> list[dict[str, Any]]:
        return list(await self.desk.call("GET", f"/projects/{self.id}/tickets{query}"))

    async def ticket(self, external_id: str = "CSM-1") -> dict[str, Any]:
        (found,) = [ticket for ticket in await self.tickets() if ticket["external_id"] == external_id]
        return found

    async def titles(self) -> dict[str, str]:
        return {ticket["external_id"]: ticket["title"] for ticket in await self.tickets()}

    async def sync(self) -> tuple[int, int, int, int]:
        """Tickets created, updated and deleted, and errors."""
        answer = await self.desk.call("POST", f"/projects/{self.id}/sync-tickets")
        result = answer["result"]
        return result["created"], result["updated"], result["deleted"], result["errors"]

    async def content(self, id: str, status: int = 200) -> Any:
        return await self.desk.call("GET", f"/tickets/{id}/content", status)


@pytest.fixture
async def board(desk: Desk) -> Board:
    return Board(desk, await desk.project())


# What a folder says


async def test_files_come_change_and_go(board: Board) -> None:
    assert await board.sync() == (0, 0, 0, 0)  # there is no folder
    one, _ = board.put("CSM-1-one.md", "# One\n"), board.put("deep/er/NAT-2.md", "no heading")
    board.put("README.md")
    board.put("csm-3.md")
    board.put("CSM-4.txt")
    assert await board.sync() == (2, 0, 0, 0)
    assert await board.sync() == (0, 0, 0, 0)
    ticket = await board.ticket()
    assert (ticket["title"], ticket["file_path"]) == ("One", f"{FOLDER}/CSM-1-one.md")
    assert await board.titles() == {"CSM-1": "One", "NAT-2": "NAT-2"}
    board.desk.server.move_to("2025-06-04T12:00:00Z")
    one.write_text("# Two\n")
    assert await board.sync() == (0, 1, 0, 0)
    assert await board.ticket() == {**ticket, "title": "Two", "updated_at": "2025-06-04T12:00:00.000Z"}
    one.unlink()
    assert await board.sync() == (0, 0, 1, 0)
    assert await board.titles() == {"NAT-2": "NAT-2"}
    await board.desk.call("GET", f"/tickets/{ticket['id']}", 404)


async def test_a_renamed_file_keeps_its_ticket(board: Board) -> None:
    file = board.put("CSM-1-one.md")
    before = await board.ticket()
    await board.desk.call("PATCH", f"/tickets/{before['id']}", json={"state": "in_progress"})
    (board.folder / "moved").mkdir()
    file.rename(board.folder / "moved/CSM-1-two.md")
    shown = await board.desk.call("GET", f"/tickets/{before['id']}")  # before the folder was listed
    assert (shown["file_path"], shown["content"]) == (f"{FOLDER}/moved/CSM-1-two.md", "# First\n")
    after = await board.ticket()
    assert (after["id"], after["state"]) == (before["id"], "in_progress")
    history = await board.desk.call("GET", f"/tickets/{before['id']}/history")
    assert [step["to_state"] for step in history["data"]] == ["in_progress"]
    assert await board.sync() == (0, 0, 0, 0)


async def test_what_a_server_knew_is_known_after_a_restart(board: Board) -> None:
    board.put("CSM-1.md")
    before = await board.tickets()
    await board.desk.restart()
    assert await board.tickets() == before
    assert await board.sync() == (0, 0, 0, 0)


async def test_files_that_have_not_changed_are_not_read(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        board.put(f"{number % 7}/CSM-{number}.md", f"# Title {number}\n")
    await asyncio.sleep(0.15)  # what was written just now may change again unnoticed
    before = await board.tickets()
    assert len(before) == 300
    await board.desk.restart()
    monkeypatch.setattr(syncing, "read_titles", None)
    assert await board.tickets() == before
    board.put("3/CSM-3.md", "# Changed\n")
    monkeypatch.undo()
    assert await board.titles() == {ticket["external_id"]: ticket["title"] for ticket in before} | {"CSM-3": "Changed"}


@on_memory
async def test_two_files_with_one_external_id(board: Board) -> None:
    board.put("CSM-1-b.md", "# B\n")
    assert await board.titles() == {"CSM-1": "B"}
    board.put("CSM-1-a.md", "# A\n")
    assert await board.sync() == (0, 0, 0, 1)
    assert await board.titles() == {"CSM-1": "B"}
    (board.folder / "CSM-1-b.md").unlink()
    assert await board.sync() == (0, 1, 0, 0)
    assert await board.titles() == {"CSM-1": "A"}


@on_memory
@pytest.mark.parametrize(
    ("text", "title"),
    [
        pytest.param("# First", "First", id="no line break"),
        pytest.param("intro\n\n#   Spaced  \r\nmore", "Spaced", id="further down"),
        pytest.param("\ufeff# With a mark\n", "With a mark", id="a byte order mark"),
        pytest.param("## Second level\n#No blank\n", "CSM-1-name", id="no such heading"),
        pytest.param("# \n# Next\n", "Next", id="an empty one first"),
        pytest.param("", "CSM-1-name", id="an empty file"),
        pytest.param("# größe 日本 🎫", "größe 日本 🎫", id="Unicode"),
        pytest.param("# a\x1b[31mb\tc", "a [31mb c", id="control characters"),
        pytest.param("# <b>&\"'", "<b>&\"'", id="markup"),
        pytest.param(b"# gr\xf6\xdfe\n", "CSM-1-name", id="Latin-1"),
        pytest.param("# größe".encode("utf-16"), "CSM-1-name", id="UTF-16"),
        pytest.param(b"\x00\xff" * 100, "CSM-1-name", id="no text"),
        pytest.param("# " + "x" * 5000, "x" * 300, id="a long one"),
        pytest.param("---\n# a comment\nowner: me\n---\n\n# After\n", "After", id="front matter"),
        pytest.param("---\n---\n# After\n", "After", id="empty front matter"),
        pytest.param("---\n# After a line\n", "After a line", id="a line across"),
        pytest.param("```sh\n# a comment\n```\n# After\n", "After", id="code"),
        pytest.param("~~~~\n# one\n~~~\n```\n# two\n  ~~~~~  \n# After\n", "After", id="a fence within code"),
        pytest.param("```\r\n# a comment\r\n", "CSM-1-name", id="code to the end"),
        pytest.param("```code``` in a line\n# After\n", "After", id="code in a line"),
        pytest.param("``` a\n" * 9000 + "``` \n# After", "After", id="many fences"),
        pytest.param("\n" * 70_000 + "# Far", "CSM-1-name", id="one that is far down"),
    ],
)
async def test_titles(board: Board, text: str | bytes, title: str) -> None:
    board.put("CSM-1-name.md", text)
    ticket = await board.ticket()
    assert ticket["title"] == title
    content = (await board.content(ticket["id"]))["content"]
    assert content == (text if isinstance(text, str) else text.decode(errors="replace"))


@on_memory
@pytest.mark.parametrize(
    "name", ["CSM-1-a\nb.md", "CSM-1-größe \"'`$(id);.md", "CSM-1-\\..md", f"CSM-1-{'n' * 240}.md"]
)
async def test_odd_names(board: Board, name: str) -> None:
    board.put(name, "no heading")
    ticket = await board.ticket()
    assert ticket["file_path"] == f"{FOLDER}/{name}"
    assert ticket["title"] == name.removesuffix(".md").replace("\n", " ")
    path = f"/tickets/{ticket['id']}/content"
    assert (await board.desk.call("PUT", path, json={"content": "new"}))["content"] == "new"
    assert (board.folder / name).read_text() == "new"


@on_memory
async def test_a_name_that_is_no_text_is_an_error(board: Board) -> None:
    board.put("CSM-1.md")
    (board.folder / os.fsdecode(b"CSM-2-\xff.md")).write_text("# Two\n")
    assert await board.sync() == (1, 0, 0, 1)


@on_memory
async def test_what_cannot_be_read_is_counted_and_keeps_its_ticket(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.put("CSM-1.md")
    board.put("inner/CSM-2.md")
    before = await board.tickets()
    open_ = os.open

    def refused(path: Any, *arguments: Any, **named: Any) -> int:
        if path in ("inner", "CSM-1.md", "CSM-3.md"):
            raise PermissionError(13, "Permission denied")
        return open_(path, *arguments, **named)

    (board.folder / "CSM-1.md").write_text("# Changed\n")
    board.put("CSM-3.md")
    monkeypatch.setattr(os, "open", refused)
    assert await board.sync() == (0, 0, 0, 3)
    assert await board.tickets() == before
    refusal = await board.content(before[-1]["id"], 409)
    assert refusal == {"error": "Conflict", "message": "The ticket's file cannot be read: Permission denied"}
    monkeypatch.undo()
    assert await board.sync() == (1, 1, 0, 0)


@on_memory
async def test_a_repository_that_is_away_keeps_its_tickets(board: Board) -> None:
    board.put("CSM-1.md")
    before = await board.tickets()
    board.desk.repo.rename(board.desk.folder / "away")
    assert await board.sync() == (0, 0, 0, 1)
    assert await board.tickets() == before
    assert (await board.content(before[0]["id"], 404))["message"] == "The ticket's file is not there"
    body = {"title": "New"}
    assert (await board.desk.call("POST", f"/projects/{board.id}/adhoc-tickets", 409, json=body))["error"] == "Conflict"
    (board.desk.folder / "away").rename(board.desk.repo)
    assert await board.tickets() == before


@on_memory
async def test_a_ticket_whose_session_runs_survives_another_branch(board: Board) -> None:
    file = board.put("CSM-1.md")
    ticket = await board.ticket()
    started = await board.desk.call("POST", f"/tickets/{ticket['id']}/start")
    file.rename(board.desk.folder / "elsewhere")
    assert await board.sync() == (0, 0, 0, 0)
    assert (await board.ticket())["state"] == "in_progress"
    await board.desk.call("POST", f"/sessions/{started['session']['id']}/stop", json={"force": True})
    assert await board.sync() == (0, 0, 1, 0)


# What leads out of it


@on_memory
@pytest.mark.parametrize("kind", ["file", "folder", "inside", "pipe", "named like a folder"])
async def test_what_is_no_file_is_no_ticket(board: Board, kind: str) -> None:
    secret = board.desk.folder / "secret"
    secret.mkdir()
    (secret / "CSM-2.md").write_text("# Secret\n")
    board.put("CSM-1.md")
    match kind:
        case "file":
            (board.folder / "CSM-2.md").symlink_to(secret / "CSM-2.md")
        case "folder":
            (board.folder / "inner").symlink_to(secret)
        case "inside":
            (board.folder / "CSM-2.md").symlink_to("CSM-1.md")
        case "pipe":
            os.mkfifo(board.folder / "CSM-2.md")
        case _:
            (board.folder / "CSM-2.md").mkdir()
    assert await board.titles() == {"CSM-1": "First"}


@on_memory
async def test_a_file_that_becomes_a_link_is_neither_read_nor_written(board: Board) -> None:
    secret = board.desk.folder / "secret.md"
    secret.write_text("# Secret\n")
    file = board.put("inner/CSM-1.md")
    id = (await board.ticket())["id"]
    file.unlink()
    file.symlink_to(secret)
    await board.desk.call("PUT", f"/tickets/{id}/content", 404, json={"content": "x"})
    file.unlink()
    board.put("inner/CSM-1.md")
    id = (await board.ticket())["id"]
    (board.folder / "inner").rename(board.desk.folder / "moved")
    (board.folder / "inner").symlink_to(board.desk.folder / "moved")
    await board.content(id, 404)
    assert secret.read_text() == "# Secret\n"


@on_memory
async def test_a_tickets_folder_that_becomes_a_link_out_is_not_read(board: Board) -> None:
    board.put("CSM-1.md")
    before = await board.ticket()
    board.folder.rename(board.desk.folder / "moved")
    board.folder.symlink_to(board.desk.folder / "moved")
    assert await board.sync() == (0, 0, 0, 1)
    await board.content(before["id"], 404)
    await board.desk.call("POST", f"/projects/{board.id}/adhoc-tickets", 409, json={"title": "T"})
    assert [path.name for path in (board.desk.folder / "moved").iterdir()] == ["CSM-1.md"]


@on_memory
async def test_a_tickets_folder_may_be_a_link_inside(board: Board) -> None:
    (board.desk.repo / "real").mkdir()
    (board.desk.repo / "docs").mkdir()
    board.folder.symlink_to(board.desk.repo / "real")
    board.put("CSM-1.md")
    assert (await board.ticket())["file_path"] == f"{FOLDER}/CSM-1.md"


def test_a_link_put_in_between_is_not_followed(tmp_path: Path) -> None:
    """Whoever swaps a folder for a link after it was looked at gains nothing."""
    (tmp_path / "repo/tickets/inner").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/CSM-1.md").write_text("secret")
    folder = Folder(str(tmp_path / "repo"), "tickets")
    (tmp_path / "repo/tickets/inner").rmdir()
    (tmp_path / "repo/tickets/inner").symlink_to(tmp_path / "out")
    for path in ("inner/CSM-1.md", "../../out/CSM-1.md"):
        with pytest.raises(Missing):
            files.read(folder, path) if path.startswith("inner") else folder.below(f"docs/{path}")
    with pytest.raises(Missing):
        files.write(folder, "inner/CSM-1.md", lambda _: b"x")
    assert (tmp_path / "out/CSM-1.md").read_text() == "secret"


# Reading and writing one


async def test_content_is_written_where_its_etag_still_is(board: Board) -> None:
    file = board.put("CSM-1.md")
    file.chmod(0o640)
    id = (await board.ticket())["id"]
    path = f"/api/tickets/{id}/content"
    server: Served = board.desk.server
    shown = await server.get(path)
    assert shown.json == {"ticket_id": id, "file_path": f"{FOLDER}/CSM-1.md", "content": "# First\n"}
    etag = shown.headers["ETag"]

    async def put(content: str, **headers: str) -> tuple[int, str]:
        answer = await server(
            "PUT", path, json={"content": content}, headers={n.replace("_", "-"): v for n, v in headers.items()}
        )
        return answer.status, answer.headers["ETag"]

    status, second = await put("# Second\r\n\r\nmore", If_Match=f'"other", {etag}')
    assert (status, second == etag) == (200, False)
    assert file.read_bytes() == b"# Second\r\n\r\nmore"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert (await board.ticket())["title"] == "Second"
    assert await put("# Third", If_Match=etag) == (412, second)
    refused = await server("PUT", path, json={"content": ""}, headers={"If-Match": etag})
    assert refused.json == {"error": "Precondition failed", "message": "The ticket's file has changed"}
    assert file.read_bytes() == b"# Second\r\n\r\nmore"
    assert (await put("# Third", If_Match="*"))[0] == 200
    assert (await put(""))[0] == 200
    assert (await board.titles(), file.read_bytes()) == ({"CSM-1": "CSM-1"}, b"")
    assert [p.name for p in board.folder.iterdir()] == ["CSM-1.md"]


@on_memory
async def test_of_two_writers_with_one_etag_one_is_told(board: Board) -> None:
    board.put("CSM-1.md")
    path = f"/api/tickets/{(await board.ticket())['id']}/content"
    etag = {"If-Match": (await board.desk.server.get(path)).headers["ETag"]}
    answers = await asyncio.gather(
        *(board.desk.server("PUT", path, json={"content": f"{n}"}, headers=etag) for n in range(4))
    )
    assert sorted(answer.status for answer in answers) == [200, 412, 412, 412]


@on_memory
async def test_a_title_is_written_into_the_file(board: Board) -> None:
    file = board.put("CSM-1.md", b"intro\r\n# Old  \r\n\xff rest\n# Other\n")
    id = (await board.ticket())["id"]
    changed = await board.desk.call("PATCH", f"/tickets/{id}/title", json={"title": " New: größe "})
    assert changed["title"] == "New: größe"
    assert file.read_bytes() == "intro\r\n# New: größe\r\n".encode() + b"\xff rest\n# Other\n"
    assert await board.titles() == {"CSM-1": "New: größe"}
    assert await board.sync() == (0, 0, 0, 0)

    file.write_text("no heading")
    await board.desk.call("PATCH", f"/tickets/{id}/title", json={"title": "Now one"})
    assert file.read_text() == "# Now one\n\nno heading"


@on_memory
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"x" + 'é日🙂"\\\n'.encode() * 30_000, id="characters that are escaped, and of several bytes"),
        pytest.param(b"x" * 2**17, id="whole pieces"),
        pytest.param(b"x" * (2**16 - 1) + b"\xc3", id="half a character at the end"),
        pytest.param(b"\xff\0" * 2**17, id="no text"),
    ],
)
async def test_what_is_in_a_file_is_answered_whole(board: Board, data: bytes) -> None:
    board.put("CSM-1.md", data)
    ticket = await board.ticket()
    text = data.decode(errors="replace")
    shown = {"ticket_id": ticket["id"], "file_path": ticket["file_path"], "content": text}
    assert await board.content(ticket["id"]) == shown
    details = await board.desk.call("GET", f"/tickets/{ticket['id']}")
    assert details == {**ticket, "project_id": board.id, "content": text}


@on_memory
async def test_a_huge_file(board: Board) -> None:
    file = board.put("CSM-1.md", b"# Huge\n" + "é".encode() * 2**20)
    size = file.stat().st_size
    id = (await board.ticket())["id"]
    content = await board.content(id)
    assert content["truncated"] is True
    assert len(content["content"].encode(errors="replace")) <= 2**20 + 3
    shown = await board.desk.call("GET", f"/tickets/{id}")
    assert (shown["title"], shown["truncated"]) == ("Huge", True)
    for method, path, body in [("PUT", "content", {"content": "x"}), ("PATCH", "title", {"title": "x"})]:
        refused = await board.desk.call(method, f"/tickets/{id}/{path}", 413, json=body)
        assert refused["error"] == "Payload too large"
    assert file.stat().st_size == size


@on_memory
@pytest.mark.parametrize(
    ("number", "status", "error"),
    [
        (28, 507, "Insufficient storage"),
        (13, 409, "Conflict"),
        (30, 409, "Conflict"),
        (5, 503, "Service unavailable"),
    ],
    ids=["full", "no permission", "read-only", "a failing disk"],
)
async def test_a_disk_that_refuses(
    board: Board, monkeypatch: pytest.MonkeyPatch, number: int, status: int, error: str
) -> None:
    file = board.put("CSM-1.md")
    id = (await board.ticket())["id"]

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, "write", fail)
    for method, path, body in [
        ("PUT", f"/tickets/{id}/content", {"content": "x"}),
        ("PATCH", f"/tickets/{id}/title", {"title": "x"}),
        ("POST", f"/projects/{board.id}/adhoc-tickets", {"title": "x"}),
    ]:
        refused = await board.desk.call(method, path, status, json=body)
        assert refused["error"] == error
        assert str(board.desk.folder) not in refused["message"]
    assert file.read_text() == "# First\n"
    assert [p.name for p in board.folder.iterdir()] == ["CSM-1.md"]


# Any title, any text


_TITLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=60)


_MARKDOWN = st.lists(st.sampled_from(["---", "```", "~~~", "# a", "#", "b", "\n", "\r\n", "\ufeff", " "])).map("".join)


@given(text=st.binary(max_size=200) | (st.text(max_size=200) | _MARKDOWN).map(str.encode), title=_TITLE)
@settings(max_examples=200)
@example(text=b"---\n# a comment\n---", title="T")
@example(text=b"---\n---\n```\n# a comment\n", title="T")
def test_a_title_that_was_written_is_read(text: bytes, title: str) -> None:
    title = title.strip()
    if title:
        written = with_title(text, title)
        assert title_of("CSM-1.md", written) == title
        assert with_title(written, title) == written


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=40)


@on_memory
@given(names=st.lists(_NAME, max_size=4), text=_TEXT, title=_TITLE)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_name_any_text_and_any_title(board: Board, names: list[str], text: str, title: str) -> None:
    """Whatever stands in names and files, they are found, read as they are, and get the title that is asked for."""
    rmtree(board.folder, ignore_errors=True)
    for number, name in enumerate(names):
        board.put(f"AB-{number}-{name}.md", text)
    tickets = await board.tickets()
    assert sorted(ticket["file_path"] for ticket in tickets) == sorted(
        f"{FOLDER}/AB-{number}-{name}.md" for number, name in enumerate(names)
    )
    for ticket in tickets:
        assert ticket["title"] == ticket["title"].strip()
        assert not any(unicodedata.category(character) == "Cc" for character in ticket["title"])
        assert (await board.content(ticket["id"]))["content"] == text
    status = 201 if title.strip() else 400
    made = await board.desk.call("POST", f"/projects/{board.id}/adhoc-tickets", status, json={"title": title})
    if status == 201:
        assert made["title"] == title.strip()
        assert re.fullmatch(rf"{FOLDER}/ADHOC-1-[a-z0-9-]+\.md", made["file_path"])
        (board.desk.repo / made["file_path"]).write_text(text)
        renamed = await board.desk.call("PATCH", f"/tickets/{made['id']}/title", json={"title": title})
        assert renamed == await board.ticket("ADHOC-1")
        assert renamed["title"] == title.strip()


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["sqlite"])
async def test_five_thousand_tickets(board: Board) -> None:
    """After the first time they are listed in under 200 ms."""
    for number in range(5000):
        board.put(f"{number % 50}/CSM-{number}.md", f"# Title {number}\n")
    assert await board.sync() == (5000, 0, 0, 0)
    await asyncio.sleep(0.15)
    assert len(await board.tickets()) == 5000
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        answer = await board.desk.server.get(f"/api/projects/{board.id}/tickets")
        times.append(time.perf_counter() - begin)
        assert answer.content.count(b'"external_id"') == 5000
    assert min(times) < 0.2
