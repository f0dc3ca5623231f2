"""The pytest plugin, in test runs of its own (contracts/cli.md, "pytest")."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

NOTE = {
    "type": "object",
    "required": ["title"],
    "properties": {"id": {"type": "string"}, "title": {"type": "string"}},
}
PYPROJECT = """
[tool.pytest]
strict = true
filterwarnings = ["error"]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
"""
GET = """
import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest


def get(url):
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def titles(server):
    return [note["title"] for note in server.records("note")]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a schema and two notes in a folder; its runs load the plugins that are named."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    folder = pytester.mkdir("schemas")
    (folder / "note.schema.json").write_text(json.dumps(NOTE))
    (folder / "note.json").write_text(json.dumps([{"id": "a", "title": "A"}, {"id": "b", "title": "B"}]))
    pytester.makepyprojecttoml(PYPROJECT + '[tool.homeport]\nschemas = "schemas"\n')
    return pytester


def run(project: pytest.Pytester, test: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
    """Runs a test file, of which so many pass."""
    project.makepyfile(GET + test)
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "homeport.server.plugin"]
    result = project.runpytest_subprocess(*plugins, *arguments, timeout=60)
    result.assert_outcomes(**outcomes)
    return result


def test_what_the_fixture_can_do(project: pytest.Pytester) -> None:
    run(
        project,
        """
from datetime import UTC, datetime, timedelta
from importlib import import_module


def test_records(homeport):
    assert homeport.records("note") == [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}]
    homeport.load("note", [{"title": "One"}, {"id": "x", "title": "X", "more": 0.1}])
    homeport.load("note", {"a": {"title": "Again"}})
    assert titles(homeport) == ["One", "Again", "B", "X"]
    assert get(homeport.url + "/collections/note/x")["more"] == 0.1
    homeport.reset()
    assert titles(homeport) == ["A", "B"]
    assert homeport.requests == []
    homeport.load("note", ({"title": str(number)} for number in range(1001)))
    assert len(homeport.records("note")) == 1003


def test_records_that_cannot_be(homeport):
    with pytest.raises(ValueError, match=r"^note: record 2: title is required$"):
        homeport.load("note", [{"title": "fits"}, {}])
    with pytest.raises(ValueError, match=r"^note: record 1: id must be 1 to 255 bytes"):
        homeport.load("note", [{"id": "a/b", "title": ""}])
    for call in (lambda: homeport.load("other", []), lambda: homeport.records("other")):
        with pytest.raises(LookupError, match="there is no collection other"):
            call()
    assert titles(homeport) == ["A", "B"]


def test_requests(homeport):
    request = Request(homeport.url + "/collections/note?x=1", b'{"title": "C"}', {"Content-Type": "application/json"})
    urlopen(request, timeout=10).close()
    (asked,) = homeport.requests
    assert (asked.method, asked.path, asked.query, asked.status) == ("POST", "/collections/note", {"x": "1"}, 201)
    assert (asked.json, asked.body) == ({"title": "C"}, b'{"title": "C"}')
    assert asked.headers["content-type"] == "application/json"


def test_faults(homeport):
    homeport.fail("/", status=503, times=2)
    homeport.fail("/", method="GET", disconnect=True)
    homeport.fail("/", delay_ms=1)
    for _ in range(2):
        with pytest.raises(HTTPError) as failed:
            get(homeport.url)
        assert failed.value.code == 503
        failed.value.close()
    with pytest.raises(OSError):
        get(homeport.url)
    assert get(homeport.url)["status"] == "healthy"
    assert [asked.status for asked in homeport.requests] == [503, 503, None, 200]
    with pytest.raises(ValueError, match="one of status, delay_ms and disconnect"):
        homeport.fail("/")


@pytest.mark.parametrize("noon", ["2026-01-01T12:00:00Z", 1767268800000000, datetime(2026, 1, 1, 12, tzinfo=UTC),
                                  datetime(2026, 1, 1, 12)])
def test_clock(homeport, noon):
    real = homeport.clock.now
    homeport.clock.move_to(noon)
    homeport.clock.advance(0.5)
    homeport.clock.advance(timedelta(minutes=1))
    assert get(homeport.url)["data"]["timestamp"] == "2026-01-01T12:01:00.500Z"
    assert homeport.clock.now == datetime(2026, 1, 1, 12, 1, 0, 500000, UTC)
    homeport.clock.reset()
    assert homeport.clock.now >= real
    with pytest.raises(ValueError, match="1970 to 2999"):
        homeport.clock.move_to(-1)


def test_api_key(homeport):
    for scopes, status in ((), 400), (("sync",), 400), (("read",), 403):
        headers = {"Authorization": "Bearer " + homeport.api_key("alice", *scopes), "Content-Type": "application/json"}
        request = Request(homeport.url + "/v1/sync", b"{}", headers)
        try:
            urlopen(request, timeout=10).close()
            answered = 200
        except HTTPError as error:
            answered = error.code
            error.close()
        assert answered == status, scopes


async def test_asynchronous_tests(homeport):
    import aiohttp

    async with aiohttp.ClientSession(homeport.url) as session:
        async with session.put("/collections/note/c", json={"title": "C"}) as answer:
            assert answer.status == 201
        homeport.load("note", [{"id": "d", "title": "D"}])
        async with session.get("/collections/note") as answer:
            assert [note["title"] for note in (await answer.json())["records"]] == ["A", "B", "C", "D"]
    assert titles(homeport) == ["A", "B", "C", "D"]


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_other_clients(homeport, client):
    http = import_module(client)
    assert http.put(homeport.url + "/collections/note/c", json={"title": "C"}).status_code == 201
    homeport.fail("/collections/*", status=503)
    assert http.get(homeport.url + "/collections/note").status_code == 503
    answer = http.get(homeport.url + "/collections/note", params={"title": "C"})
    assert [note["title"] for note in answer.json()["records"]] == ["C"]


async def test_an_asynchronous_client_of_another_library(homeport):
    import httpx

    async with httpx.AsyncClient(base_url=homeport.url) as client:
        assert (await client.delete("/collections/note/a")).status_code == 204
    assert titles(homeport) == ["B"]
""",
        passed=13,
    )


def test_each_test_has_a_server_and_a_session_one(project: pytest.Pytester) -> None:
    run(
        project,
        """
urls = set()


@pytest.mark.parametrize("number", range(3))
def test_alone(homeport, homeport_server, number):
    assert homeport.url != homeport_server.url
    assert titles(homeport) == ["A", "B"]
    assert len(homeport_server.records("note")) == 2 + number
    homeport.load("note", [{"title": "mine"}])
    homeport_server.load("note", {str(number): {"title": "ours"}})
    urls.add(homeport_server.url)
    assert len(urls) == 1
    get(homeport.url)
    assert (len(homeport.requests), len(homeport_server.requests)) == (1, 0)
""",
        passed=3,
    )


def test_options(project: pytest.Pytester) -> None:
    other = project.mkdir("other")
    (other / "task.schema.json").write_text("{}")
    (project.path / "homeport.toml").write_text("this is not for tests")
    (project.path / "mine.toml").write_text('[apis]\nenabled = ["leaderboard"]\n')
    run(
        project,
        """
def kind(server):
    return type(server._app[__import__("homeport.server.keys").server.keys.STORAGE]).__name__


def test_project(homeport):
    assert (titles(homeport), kind(homeport)) == (["A", "B"], "MemoryStorage")


@pytest.mark.homeport(schemas="other", settings={"server.base_path": "/base"})
def test_mark(homeport):
    assert homeport.url.endswith("/base")
    assert homeport.records("task") == []
    with pytest.raises(LookupError):
        homeport.records("note")


@pytest.mark.homeport(config="mine.toml", schemas=".")
def test_file(homeport):
    with pytest.raises(HTTPError) as failed:
        get(homeport.url)
    failed.value.close()


@pytest.mark.homeport(storage="file")
class TestClosest:
    def test_class(self, homeport):
        assert (titles(homeport), kind(homeport)) == (["A", "B"], "FileStorage")

    @pytest.mark.homeport(storage="sqlite")
    def test_function(self, homeport):
        assert (titles(homeport), kind(homeport)) == (["A", "B"], "SqliteStorage")
""",
        passed=5,
    )


WRONG = [
    ('@pytest.mark.homeport(stoarge="file")', "@pytest.mark.homeport: no such option: stoarge; use config, schemas,"),
    ('@pytest.mark.homeport("file")', "@pytest.mark.homeport takes options by name"),
    ('@pytest.mark.homeport(storage="fil")', "homeport cannot start: *storage.url*"),
    ('@pytest.mark.homeport(schemas="missing")', "homeport cannot start: *missing is no folder*"),
    ('@pytest.mark.homeport(settings={"server.hots": "x"})', "homeport cannot start: *server.hots: unknown key*"),
    ('@pytest.mark.homeport(settings={"server.public_url": "https://x.example"})', "*which is exposed*"),
]


def test_options_that_cannot_be(project: pytest.Pytester) -> None:
    tests = "\n".join(f"{mark}\ndef test_{number}(homeport): ...\n" for number, (mark, _) in enumerate(WRONG))
    result = run(project, tests, errors=len(WRONG))
    result.stdout.fnmatch_lines([f"*{message}*" for _, message in WRONG])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_project_option_that_cannot_be(project: pytest.Pytester) -> None:
    project.makepyprojecttoml(PYPROJECT + "[tool.homeport]\nschema = 'x'\n")
    result = run(project, "def test(homeport): ...", errors=1)
    result.stdout.fnmatch_lines(["*pyproject.toml: [[]tool.homeport]: no such option: schema; use*"])


SHARED = """
@pytest.mark.parametrize("number", range(12))
def test_alone(homeport, homeport_server, number):
    assert titles(homeport) == ["A", "B"]
    homeport.load("note", [{"title": "mine"}])
    homeport_server.load("note", {str(number): {"title": "ours"}})
    assert len(homeport.records("note")) == 3
    get(homeport.url)
"""


def test_under_xdist(project: pytest.Pytester) -> None:
    run(project, SHARED, "-p", "xdist.plugin", "-n", "2", passed=12)


def test_under_randomly(project: pytest.Pytester) -> None:
    pytest.importorskip("pytest_randomly", reason="needs pytest-randomly")
    run(project, SHARED, "-p", "pytest_randomly", passed=12)


LEAKS = """
import os
import socket
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

seen = []


def left():
    descriptors = sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd")
                         if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}"))
    threads = sorted(thread.name for thread in threading.enumerate())
    files = sorted(path.name for path in Path(tempfile.gettempdir()).glob("homeport-*"))
    return threads, [d for d in descriptors if not d.startswith("/proc")], files


@pytest.mark.homeport
@pytest.mark.parametrize("storage", ["memory", "file", "sqlite"])
@pytest.mark.parametrize("number", range(2))
def test_use(request, storage, number):
    before = left()
    marker = pytest.mark.homeport(storage=storage)
    request.node.add_marker(marker)
    server = request.getfixturevalue("homeport")
    key = server.api_key("alice")
    with socket.create_connection(urlsplit(server.url).netloc.split(":")) as waiting:
        waiting.sendall(b"GET /")  # an answer that is never asked for in full
        server.fail("/slow", delay_ms=60_000)
        slow = socket.create_connection(urlsplit(server.url).netloc.split(":"))
        slow.sendall(b"GET /slow HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        while not server.requests:
            pass
        request_ = Request(server.url + "/v1/user/data", headers={"Authorization": f"Bearer {key}"})
        urlopen(request_, timeout=10).close()
        slow.close()
    if number:  # what is kept for good was made by then
        seen.append((before, server.url))


def test_nothing_is_left():
    assert len(seen) == 3
    for before, url in seen:
        assert left()[0] == before[0] == ["MainThread"]
        assert left()[1:] == before[1:]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(urlsplit(url).netloc.split(":"))
"""


def test_nothing_is_left_behind(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run(project, LEAKS, passed=7)
    assert list(tmp_path.glob("homeport*")) == []


def test_importing_it_costs_nothing() -> None:
    script = """
import sys, pytest
before = set(sys.modules)
import homeport.server.plugin
print(sorted(module for module in set(sys.modules) - before if not module.startswith("homeport")))
print(sorted(module for module in sys.modules if module.startswith("homeport")))
"""
    others, ours = subprocess.check_output([sys.executable, "-c", script], text=True).splitlines()
    assert others == "[]"
    assert ours == "['homeport', 'homeport.server', 'homeport.server.plugin']"
