"""The leaderboard's HTML pages, read as a browser reads them."""

import base64
import hashlib
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest

from .conftest import Answer, Serve
from .leaderboards import Board, entry, open_board

MODEL = '<script>alert("x")</script>&amp;'


class Page(HTMLParser):
    """Links, table rows and the text of the elements that a test asks about."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: dict[str, str] = {}
        self.current: list[str] = []
        self.tags: set[str] = set()
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(answer.content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        opened = [tag for tag, _ in self._open]
        if "td" in opened or "th" in opened:
            self.rows[-1][-1] += data
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "a":
            self.links[data] = attributes["href"] or ""
            if "aria-current" in attributes:
                self.current.append(data)
        self.texts[tag] = self.texts.get(tag, "") + data


@pytest.fixture
async def board(serve: Serve) -> Board:
    return await open_board(serve)


async def open_page(board: Board, path: str, status: int = 200) -> Page:
    answer = await board.server.get(path)
    assert answer.status == status, answer.content
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return Page(answer)


async def test_the_ranking(board: Board) -> None:
    await board.sync(entry(), entry(date="2025-12-20", totalCost=1234.5, totalTokens=0))
    await board.sync(entry(username="bob", modelsUsed=[]))
    page = await open_page(board, "/leaderboard?period=weekly")
    assert page.rows == [
        ["Rank", "User", "Cost", "Tokens", "Days", "Top model"],
        ["1", "alice", "$1,243.80", "11,681,277", "2", "claude-opus-4-5-20251101"],
        ["2", "bob", "$9.30", "11,681,277", "1", "\u2013"],
    ]
    assert page.current == ["weekly", "by cost"]
    assert "2025-W51 · 2 users · updated " in page.texts["p"]
    assert page.texts["time"] == "2025-12-21 12:00 UTC"
    page = await open_page(board, "/leaderboard?metric=tokens")
    assert [row[:2] for row in page.rows[1:]] == [["1", "alice"], ["1", "bob"]]
    assert page.current == ["all-time", "by tokens"]


async def test_nobody_yet(board: Board) -> None:
    page = await open_page(board, "/leaderboard?period=daily")
    assert page.rows == []
    assert "No usage in this period." in page.texts["p"]
    assert "0 users" in page.texts["p"]


async def test_links_lead_on_and_back(board: Board) -> None:
    for name in ("alice", "bob", "carol"):
        await board.sync(entry(username=name))
    first = await open_page(board, "/leaderboard?limit=2&period=daily&date=2025-12-21")
    assert [row[1] for row in first.rows[1:]] == ["alice", "bob"]
    assert "← previous" not in first.links
    second = await open_page(board, urljoin("/leaderboard", first.links["next →"]))
    assert [row[1] for row in second.rows[1:]] == ["carol"]
    assert "next →" not in second.links
    again = await open_page(board, urljoin("/leaderboard", second.links["← previous"]))
    assert again.rows == first.rows
    weekly = await open_page(board, urljoin("/leaderboard", second.links["weekly"]))
    assert [row[1] for row in weekly.rows[1:]] == ["alice", "bob"]
    user = await open_page(board, urljoin("/leaderboard", weekly.links["bob"]))
    assert user.texts["h1"] == "bob"
    back = urljoin("/user/bob", user.links["← Leaderboard"])
    assert (await open_page(board, back)).texts["h1"] == "Leaderboard"


async def test_an_offset_beyond_the_last_user(board: Board) -> None:
    await board.sync(entry())
    page = await open_page(board, "/leaderboard?offset=10&limit=4")
    assert page.rows == []
    assert urljoin("/leaderboard", page.links["← previous"]).endswith("offset=6")


async def test_a_user(board: Board) -> None:
    await board.sync(entry(), entry(date="2025-12-20", totalCost=0.005, totalTokens=1, modelsUsed=["b", "a"]))
    page = await open_page(board, "/user/alice")
    assert page.texts["h1"] == "alice"
    assert page.texts["p"] == "2025-12-20 to 2025-12-21"
    assert page.rows == [
        ["Day", "Cost", "Tokens", "Models"],
        ["2025-12-21", "$9.30", "11,681,277", "claude-opus-4-5-20251101"],
        ["2025-12-20", "$0.00", "1", "a, b"],
    ]
    assert "$4.65" in page.texts["dd"]


async def test_a_user_without_data(board: Board) -> None:
    page = await open_page(board, "/user/%3Cb%3E", 404)
    assert page.texts["h1"] == "No such user"
    assert "b" not in page.tags


async def test_what_clients_sent_is_text(board: Board) -> None:
    await board.sync(entry(modelsUsed=[MODEL]))
    for path in ("/leaderboard", "/user/alice"):
        page = await open_page(board, path)
        assert "script" not in page.tags
        assert page.rows[1][-1] == MODEL


@pytest.mark.parametrize("path", ["/leaderboard", "/user/alice", "/user/nobody"])
async def test_the_policy_allows_the_one_style_sheet_and_nothing_else(board: Board, path: str) -> None:
    await board.sync(entry())
    answer = await board.server.get(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    style = Page(answer).texts["style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert b" style=" not in answer.content  # the policy would drop it
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_bad_parameters_are_told(board: Board) -> None:
    answer = await board.server.get("/leaderboard?period=yearly")
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_where_reading_takes_a_key(serve: Serve) -> None:
    board = await open_board(serve, {"apis.leaderboard.public": False})
    await board.sync(entry())
    for path in ("/leaderboard", "/user/alice", "/v1/leaderboard", "/v1/user/alice"):
        assert (await board.server.get(path)).status == 401
        assert (await board.call("GET", path)).status == 200
        key = await board.key("alice", "sync")
        assert (await board.call("GET", path, key=key)).status == 403


async def test_below_a_prefix_links_stay_below_it(serve: Serve) -> None:
    board = await open_board(serve, {"server.base_path": "/homeport"})
    page = Page(await board.server.get("/homeport/leaderboard"))
    assert all(not urlsplit(link).path.startswith("/") for link in page.links.values())
