"""`homeport serve`, as a process."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import homeport

PATIENCE = 20.0
"""Seconds after which a process that does not do what it should is killed."""


class Server:
    """A `homeport serve` in a folder of its own. ``ready``: its line on standard output."""

    def __init__(self, folder: Path, *arguments: str, environ: dict[str, str]) -> None:
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "homeport", "serve", *arguments],
                cwd=folder,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.folder = folder
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    @property
    def url(self) -> str:
        return self.ready.split()[-1]

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def get(self, path: str = "/") -> int:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            status: int = answer.status
            return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit code, once the process has ended; it has written no second line."""
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._watchdog.cancel()


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers in an empty folder, with an environment that sets nothing; on a free port, unless told.

    There is a tmux, in name, on every machine.
    """
    servers = []
    tmux = tmp_path_factory.mktemp("bin") / "tmux"
    tmux.touch(0o755)
    names = ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_START")
    plain = {name: os.environ[name] for name in names if name in os.environ} | {"HOME": str(tmp_path)}
    plain["PATH"] = f"{tmux.parent}:{plain['PATH']}"

    def run(*arguments: str, config: str = "", **environ: str) -> Server:
        if config:
            (tmp_path / "homeport.toml").write_text(config)
        port = () if config else ("--port", "0")
        servers.append(Server(tmp_path, *port, *arguments, environ=plain | environ))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


def failure(server: Server) -> tuple[int, str]:
    """Exit code and the lines on standard error of a server that did not start."""
    assert server.ready == ""
    return server.ended(), "\n".join(server.log)


def test_from_start_to_stop(start: Start, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("of an earlier server")
    server = start("--ready-file", "url")
    assert server.ready == f"homeport {homeport.__version__} ready on {server.url}\n"
    assert server.url.startswith("http://127.0.0.1:")
    assert (tmp_path / "url").read_text() == f"{server.url}\n"
    assert server.get() == 200
    assert server.stop() == 0
    assert {path.name for path in tmp_path.iterdir()} == {".local", "log", "url"}
    data = tmp_path / ".local" / "share" / "homeport"
    assert (data / "homeport.db").exists()
    assert data.stat().st_mode & 0o777 == 0o700


def test_ctrl_c_stops_cleanly(start: Start) -> None:
    server = start("--storage", "memory:")
    assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in "\n".join(server.log)


def test_the_log_says_what_is_on_and_where_the_data_lives(start: Start, tmp_path: Path) -> None:
    keys = {"ADMIN_KEY": "hunter2 hunter2 hunter2", "CLAUDE_SYNC_API_KEY": "hunter3"}
    server = start("--storage", "sqlite:d/x.db", **keys)
    server.stop()
    events = [json.loads(line)["event"] for line in server.log]
    assert events == [
        f"homeport {homeport.__version__}, configuration: defaults, environment and arguments",
        f"data: sqlite:{tmp_path}/d/x.db",
        "network: for this machine alone",
        "ADMIN_KEY: set",
        "console_usage: on; CLAUDE_SYNC_API_KEY: set",
        "device_usage: on; any user key may begin",
        "leaderboard: on; anybody may read; Slack's /apikey is off: apis.leaderboard.slack_signing_secret is not set",
        "sessions: on; from this machine alone; push notifications are off",
        "metering: on; transcription is pocketsphinx's; sale of tokens is off: STRIPE_SECRET_KEY is not set",
        "collections: on; there are none",
        f"listening on {server.url}",
        "SIGTERM: stopping",
        "stopped",
    ]


def test_an_exposed_server_says_so(start: Start) -> None:
    server = start("--storage", "memory:", "--host", "0.0.0.0", API_KEY="hunter4 hunter4 hunter4")
    assert server.url.startswith("http://127.0.0.1:")  # where this machine reaches it
    assert server.get() == 200
    server.stop()
    warnings = [json.loads(line)["event"] for line in server.log if '"level":"warning"' in line]
    assert [warning.partition(":")[0] for warning in warnings] == ["network", "ADMIN_KEY", "console_usage"]


def test_the_log_for_people(start: Start) -> None:
    server = start("--storage", "memory:", "--log-format", "console")
    server.stop()
    assert "data: memory:" in "\n".join(server.log)
    assert [line for line in server.log if line.startswith("{")] == []


def test_only_warnings(start: Start) -> None:
    server = start("--storage", "memory:", HOMEPORT_LOG__LEVEL="warning", CLAUDE_SYNC_API_KEY="hunter3")
    server.get()
    server.stop()
    assert server.log == []


# Addresses


def unix_get(path: Path) -> int:
    """The status of GET / on a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def test_several_addresses_under_a_base_path(start: Start, tmp_path: Path) -> None:
    listen = '["127.0.0.1:0", "unix:web.sock", "127.0.0.2:0"]'
    server = start(config=f'server.listen = {listen}\nserver.base_path = "/sync/"\nstorage.url = "memory:"')
    assert server.url.endswith("/sync")
    assert server.get() == 200
    assert unix_get(tmp_path / "web.sock") == 404  # outside the base path
    assert server.stop() == 0
    listening = next(json.loads(line)["event"] for line in server.log if "listening" in line)
    assert [url.rpartition(":")[0] for url in listening.split(", ")] == [
        "listening on http://127.0.0.1",
        "unix",
        "http://127.0.0.2",
    ]
    assert not (tmp_path / "web.sock").exists()


def test_a_socket_alone(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "web.sock"))  # left behind by a server that was killed
    server = start(config='server.listen = ["unix:web.sock"]\nstorage.url = "memory:"')
    assert server.ready == f"homeport {homeport.__version__} ready on unix:web.sock\n"
    assert unix_get(tmp_path / "web.sock") == 200
    second = start(config='server.listen = ["unix:web.sock"]\nstorage.url = "memory:"')
    assert failure(second)[1].startswith("homeport: cannot listen on unix:web.sock: Address already in use; ")
    assert unix_get(tmp_path / "web.sock") == 200


def test_a_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = start("--storage", "memory:", "--port", str(port))
        assert failure(server) == (
            1,
            f"homeport: cannot listen on 127.0.0.1:{port}: Address already in use;"
            " stop the server that does, or give another port (--port 0 takes a free one)",
        )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:0", "Cannot assign requested address; this machine does not have that address"),
        ("unix:none/web.sock", "No such file or directory"),
        (f"unix:{'x' * 120}", "AF_UNIX path too long"),
    ],
    ids=["foreign", "no folder", "too long"],
)
def test_an_address_that_cannot_be_had(start: Start, address: str, reason: str) -> None:
    server = start(config=f'server.listen = ["{address}"]\nstorage.url = "memory:"', API_KEY="hunter4")
    assert failure(server) == (1, f"homeport: cannot listen on {address}: {reason}")


# What keeps it from starting


def test_bad_configuration(start: Start) -> None:
    server = start(config="server.prot = 1\nserver.port = 'x'")
    code, lines = failure(server)
    assert code == 2
    assert sorted(lines.splitlines()) == [
        'homeport.toml: server.port: "x" is not a whole number from 0 to 65535',
        "homeport.toml: server.prot: unknown key; did you mean server.port?",
    ]


def test_a_store_in_use(start: Start, tmp_path: Path) -> None:
    first = start("--storage", "sqlite:x.db")
    log = tmp_path / "log"
    log.rename(tmp_path / "first")
    second = start("--storage", "sqlite:x.db")
    assert failure(second) == (1, f"homeport: {tmp_path}/x.db is in use by process {first.process.pid}")
    assert first.get() == 200


def test_a_store_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    code, line = failure(start("--storage", "sqlite:taken/x.db"))
    assert code == 1
    assert line.startswith("homeport: ")
    assert len(line.splitlines()) == 1
    assert f"{tmp_path}/taken" in line


def test_a_damaged_store(start: Start, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database at all" * 1000)
    code, line = failure(start("--storage", "sqlite:x.db"))
    assert (code, line) == (1, f"homeport: {tmp_path}/x.db: file is not a database")


def test_a_ready_file_that_cannot_be_written(start: Start) -> None:
    code, lines = failure(start("--storage", "memory:", "--ready-file", "none/url"))
    assert code == 1
    assert "homeport: cannot write none/url: No such file or directory" in lines.splitlines()
    assert "Traceback" not in lines


# Stopping

REPORT = json.dumps(
    {
        "userKey": "ab" * 32,
        "hostname": "M4x.local",
        "timestamp": "2025-06-03T10:30:00Z",
        "usage": dict.fromkeys(
            ["totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"], 1
        ),
        "sessions": {"total": 1, "active": 1, "averageDuration": 1.0},
        "costs": {"opus": 1, "sonnet": 1, "haiku": 1, "actual": 1},
        "hourlyUsage": [0] * 24,
        "version": "3.0.2",
    }
).encode()


def begin_request(server: Server) -> socket.socket:
    """A request of which the last byte is still to come; the server is at it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = "POST /api/sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    connection.sendall(f"{head}Content-Length: {len(REPORT)}\r\n\r\n".encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    connection.sendall(REPORT[:-1])
    return connection


def wait_for_log(server: Server, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(text in line for line in server.log):
        assert time.monotonic() < deadline
        assert server.process.poll() is None
        time.sleep(0.01)


def test_requests_under_way_are_finished(start: Start) -> None:
    server = start("--storage", "memory:")
    with begin_request(server) as connection:
        server.process.send_signal(signal.SIGTERM)
        wait_for_log(server, "SIGTERM: stopping")
        connection.sendall(REPORT[-1:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert server.ended() == 0


def test_while_it_stops_it_is_not_ready(start: Start) -> None:
    server = start("--storage", "memory:")
    host, _, port = server.url.removeprefix("http://").partition(":")
    kept = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    with begin_request(server) as connection:
        kept.request("GET", "/health/ready")
        assert kept.getresponse().read() == b'{"status":"ready"}'
        server.process.send_signal(signal.SIGTERM)
        wait_for_log(server, "SIGTERM: stopping")
        kept.request("GET", "/health/ready")
        answer = kept.getresponse()
        assert (answer.status, json.load(answer)["detail"]) == (503, "The server is stopping")
        kept.close()
        connection.sendall(REPORT[-1:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert server.ended() == 0


def test_requests_that_do_not_end_are_cut_off(start: Start) -> None:
    server = start("--storage", "memory:", HOMEPORT_SERVER__SHUTDOWN_TIMEOUT="1")
    with begin_request(server) as connection:
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 3
        connection.recv(1000)
    assert json.loads(server.log[-1])["event"] == "stopped"


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--storage", "memory:", HOMEPORT_SERVER__SHUTDOWN_TIMEOUT="600")
    with begin_request(server):
        server.process.send_signal(signal.SIGTERM)
        wait_for_log(server, "SIGTERM: stopping")
        assert server.stop() == 1
    assert server.log[-1] == "homeport: ended by a second SIGTERM, before it had stopped"


STUCK = """
import threading
from homeport.storage.memory import MemoryStorage

class Stuck(MemoryStorage):
    async def close(self):
        threading.Thread(target=threading.Event().wait).start()
        threading.Event().wait()
"""


def test_what_hangs_does_not_keep_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    server = start("--storage", "stuck:Stuck", HOMEPORT_SERVER__SHUTDOWN_TIMEOUT="1")
    assert server.get() == 200
    began = time.monotonic()
    assert server.stop() == 1
    assert time.monotonic() - began < 3
    assert server.log[-1] == "homeport: ended, as it did not stop within 1 seconds"


# Files that the process may have open


def test_open_files_run_out(start: Start) -> None:
    server = start("--storage", "sqlite:store.db")
    assert server.get() == 200
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())) + 8, limits[1]))
    with ExitStack() as stack:
        ends = [answered(stack.enter_context(connected(server))) for _ in range(40)]
    assert ends.count(b"") > 30  # taken and closed at once, so that none waits for nothing
    assert ends.count(b"HTTP/1.1 200") + ends.count(b"") == 40
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    deadline = time.monotonic() + PATIENCE
    while True:  # whoever comes while the last of those is closed is closed too
        try:
            assert server.get() == 200
            break
        except OSError:
            assert time.monotonic() < deadline
    assert server.stop() == 0
    assert "Traceback" not in "\n".join(server.log)


def connected(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def answered(connection: socket.socket) -> bytes:
    """The first bytes of the answer to a request, which may be none."""
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(12)
    except ConnectionError:
        return b""
