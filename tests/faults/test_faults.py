"""The whole server under load while what it stands on fails: what it answers, that it recovers by itself, and that
nothing is lost or half there afterwards."""

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from .serving import Load, Refusal, Server, check

Start = Callable[..., Server]


@pytest.fixture(params=["file", "sqlite"])
def start(request: pytest.FixtureRequest, tmp_path: Path, unused_tcp_port: int) -> Iterator[Start]:
    """Starts a server whose store is in ``folder``, else beside it."""
    servers = []

    def begin(folder: Path = tmp_path, environ: Mapping[str, str] = MappingProxyType({})) -> Server:
        servers.append(Server(tmp_path, f"{request.param}:{folder}/store", unused_tcp_port, environ))
        return servers[-1]

    yield begin
    for server in servers:
        server.kill()


@pytest.fixture(params=[0.3, pytest.param(10.0, marks=pytest.mark.slow)], ids=["short", "long"])
def spell(request: pytest.FixtureRequest) -> float:
    """Seconds that a fault lasts, at least."""
    return float(request.param)


def problem(status: int, title: str, detail: str) -> dict[str, object]:
    return {"title": title, "status": status, "detail": detail}


FULL = problem(507, "Insufficient Storage", "Storage is full")
AWAY = problem(503, "Service Unavailable", "Service unavailable")


def logged(server: Server, refusals: list[Refusal]) -> None:
    """Each refusal's answer has the request id of a line of the log that says why."""
    reasons = {line.get("requestId") for line in server.log if line["event"].startswith("the store is ")}
    assert {refusal.headers["X-Request-Id"] for refusal in refusals} <= reasons
    assert not [line for line in server.log if "exception" in line]


# The disk fills


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 256 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "homeport-test", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """By another program's file."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
    yield
    ballast.unlink()


async def test_its_disk_fills(disk: Path, start: Start, spell: float) -> None:
    server = start(folder=disk)
    async with Load(server) as load:
        await load.acknowledges()
        with filled(disk):
            refusals = await load.refuses()
            await load.ready(503)
            await asyncio.sleep(spell)
            assert await load.read(next(iter(load.acknowledged))) == 200
            assert (await load.get("/health/live"))[0] == 200
            for minute in range(60):  # the last bytes of a block may be free
                status, answer = await report(load.session, minute)
                if status != 200:
                    break
        await load.ready(200)
        await load.acknowledges()
    assert load.answers.keys() == {200, 507}
    assert [refusal.body for refusal in refusals] == [FULL] * len(refusals)
    assert (status, answer) == (507, {"status": "error", "message": "Internal server error"})
    logged(server, refusals)
    await check(server, load)


async def report(session: aiohttp.ClientSession, minute: int = 0) -> tuple[int, Any]:
    """What device usage answers to the report of a minute."""
    counts = ["totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"]
    report = {
        "userKey": "ab" * 32,
        "hostname": "h" * 200,
        "timestamp": f"2025-06-03T10:{minute:02}:00Z",
        "usage": dict.fromkeys(counts, 1),
        "sessions": {"total": 1, "active": 1, "averageDuration": 1.0},
        "costs": {"opus": 1, "sonnet": 1, "haiku": 1, "actual": 1},
        "hourlyUsage": [0] * 24,
        "version": "3.0.2",
    }
    async with session.post("/api/sync", json=report) as answer:
        return answer.status, await answer.json()


# Its store turns read-only


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """As a file system is that has remounted itself: what changes it fails."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    store = server.storage.partition(":")[2]
    files = [store, f"{store}-wal", *(f"{store}/{name}" for name in ("ping", "journal", "journal/1.log"))]
    writes = "write,pwrite64,fsync,fdatasync,ftruncate,openat"
    command = ["strace", "-f", "-o", os.devnull, "-p", str(server.process.pid), "-e", f"trace={writes}"]
    command += ["-e", f"inject={writes}:error=EROFS", *(word for file in files for word in ("-P", file))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        try:
            yield
        finally:
            strace.terminate()
            strace.stderr.read()


async def test_its_store_turns_read_only(start: Start, spell: float) -> None:
    server = start()
    async with Load(server) as load:
        await load.acknowledges()
        with read_only(server):
            refusals = await load.refuses()
            await asyncio.sleep(spell)
            assert await load.read(next(iter(load.acknowledged))) == 200
            assert (await load.get("/health/live"))[0] == 200
            if server.storage.startswith("file:"):  # SQLite asks the file system, which is none of these here
                await load.ready(503)
        await load.ready(200)
        await load.acknowledges()
    assert load.answers.keys() == {200, 503}
    assert [refusal.body for refusal in refusals] == [AWAY] * len(refusals)
    assert all(int(refusal.headers["Retry-After"]) > 0 for refusal in refusals)
    logged(server, refusals)
    await check(server, load)


# It is stopped


@pytest.mark.parametrize("seconds", [2.0, pytest.param(10.0, marks=pytest.mark.slow)])
async def test_it_is_stopped_for_a_while(start: Start, seconds: float) -> None:
    """As by a debugger, or a machine that sleeps: it answers nothing, then everything."""
    server = start()
    async with Load(server) as load:
        await load.acknowledges()
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.2)  # for what was on its way
        before = len(load.acknowledged)
        await asyncio.sleep(seconds)
        assert len(load.acknowledged) == before
        server.process.send_signal(signal.SIGCONT)
        await load.acknowledges()
        assert load.answers.keys() == {200}
    assert len(load.unanswered) <= 8  # those that were on their way at the end
    await check(server, load)


# It is killed


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
async def test_it_is_killed_and_started_again(start: Start, kills: int) -> None:
    server = start()
    async with Load(server) as load:
        for _ in range(kills):
            await load.acknowledges()
            server.kill()
            await asyncio.to_thread(server.start)
        await load.ready(200)
        await load.acknowledges()
        assert load.answers.keys() == {200}
    await check(server, load)


# The clock jumps


class SystemClock:
    """The clock of the system as one process sees it, which `jump` sets; the monotonic one goes on."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock"
        self.jump(0)
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            pytest.skip("needs libfaketime")
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """Away from the real time by so much."""
        draft = self._offset.with_suffix(".draft")
        draft.write_text(f"{seconds:+d}")
        draft.replace(self._offset)


def seconds_to(date: str) -> int:
    return int(datetime.fromisoformat(date).timestamp() - time.time())


async def test_the_clock_jumps(start: Start, tmp_path: Path) -> None:
    """That by which the server writes, limits and works; deadlines of connections are on one that cannot be set."""
    clock = SystemClock(tmp_path)
    server = start(environ=clock.environ)
    async with Load(server) as load:
        for seconds in (
            366 * 86400,
            seconds_to("2000-07-01T00:00:00Z"),
            seconds_to("1980-07-01T00:00:00Z"),
            seconds_to("2250-07-01T00:00:00Z"),
            0,
        ):
            await load.acknowledges(20)
            clock.jump(seconds)
            assert (await load.get("/health/ready"))[0] == 200
            status, answer = await report(load.session)
            assert status == (400 if seconds_to("2025-06-03T10:00:00Z") > seconds + 86400 else 200), answer
        await load.acknowledges()
        assert load.answers.keys() == {200}
        _, health = await load.get("/api/health")
        assert health["uptime"] >= 0
    log = server.log
    assert not [line for line in log if "exception" in line]
    assert {"1980", "2000", "2250"} <= {line["timestamp"][:4] for line in log}
    await check(server, load)


# It may open no more files


@contextmanager
def no_more_files(server: Server) -> Iterator[None]:
    """Other clients have opened as many as may be."""
    pid = server.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_files = [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(open_files) + 5, hard))
    address = "127.0.0.1", int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(max(open_files) + 5):
            stack.enter_context(socket.create_connection(address))
        yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


async def test_it_may_open_no_more_files(start: Start, spell: float) -> None:
    server = start()
    async with Load(server) as load:
        await load.acknowledges()
        with no_more_files(server):
            for _ in range(20):  # they are turned away, and need not wait
                with pytest.raises(aiohttp.ClientError):
                    await load.get("/health/live")
            await load.acknowledges()  # of who is connected
            await asyncio.sleep(spell)
        await load.ready(200)
        await load.acknowledges()
        assert load.answers.keys() <= {200, 503}  # SQLite may want a file for what it is at
    assert not [line for line in server.log if "exception" in line]
    await check(server, load)


# All of it


@pytest.mark.slow
async def test_one_after_the_other(disk: Path, start: Start) -> None:
    server = start(folder=disk)
    async with Load(server) as load:
        for _ in range(3):
            for fault in (filled(disk), read_only(server), no_more_files(server)):
                with fault:
                    await asyncio.sleep(1)
                await load.ready(200)
                await load.acknowledges()
            server.kill()
            await asyncio.to_thread(server.start)
            await load.acknowledges()
    assert load.answers.keys() <= {200, 503, 507}
    await check(server, load)
