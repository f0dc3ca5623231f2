"""The socket beside a store: who can connect, what of it stays, what callers cannot do to the server."""

import asyncio
import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.storage import Change, Collection, Commit, Put, Storage, StorageUnavailable, Write
from homeport.storage.memory import MemoryStorage
from homeport.storage.remote import RemoteStorage, serving
from homeport.storage.remote.serving import MAX_CALLERS, serve_storage

NOTES = Collection("notes")
SOON = 10.0
"""Seconds within which what should happen must have happened."""


@pytest.fixture
async def store() -> AsyncIterator[Storage]:
    """The store that is served."""
    async with MemoryStorage() as store:
        await store.declare(NOTES)
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
async def served(store: Storage, path: Path) -> AsyncIterator[Path]:
    """The path of the store's socket."""
    async with serve_storage(store, path):
        yield path.with_name("x.db.sock")


async def ping(path: Path) -> None:
    async with asyncio.timeout(SOON), RemoteStorage(path) as remote:
        await remote.ping()


# Where it is


async def test_a_socket_beside_the_store(store: Storage, path: Path) -> None:
    async with serve_storage(store, path):
        (found,) = path.parent.iterdir()
        assert found.name == "x.db.sock"
        assert found.is_socket()
        assert stat.S_IMODE(found.stat().st_mode) == 0o600
        await ping(path)
    assert [*path.parent.iterdir()] == []


async def test_it_is_the_owners_before_anybody_can_connect(
    store: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    start = asyncio.start_unix_server

    async def listens(*arguments: object, **options: object) -> asyncio.Server:
        place = path.with_name("x.db.sock")
        modes.append(stat.S_IMODE(place.stat().st_mode))
        with socket.socket(socket.AF_UNIX) as other, pytest.raises(ConnectionRefusedError):
            other.connect(str(place))
        return await start(*arguments, **options)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(asyncio, "start_unix_server", listens)
    async with serve_storage(store, path):
        await ping(path)
    assert modes == [0o600]


async def test_a_store_by_another_name_has_one_socket(store: Storage, path: Path) -> None:
    path.touch()
    other = path.with_name("link.db")
    other.symlink_to(path)
    async with serve_storage(store, path):
        assert path.with_name("x.db.sock").is_socket()
        await ping(path)
        await ping(other)


def left_behind(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))


@pytest.mark.parametrize("make", [left_behind, lambda place: place.symlink_to("/nowhere")], ids=["socket", "link"])
async def test_what_a_killed_server_left_is_replaced(store: Storage, path: Path, make: Callable[[Path], None]) -> None:
    make(path.with_name("x.db.sock"))
    with pytest.raises(StorageUnavailable, match="no server answers at"):
        await ping(path)
    async with serve_storage(store, path):
        await ping(path)
    assert [*path.parent.iterdir()] == []


async def test_no_file_of_somebody_elses_is_replaced(
    store: Storage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = path.with_name("x.db.sock")
    place.write_text("mine")
    async with serve_storage(store, path):
        assert caplog.messages == [f"commands cannot reach this server: no socket at {place}: Address already in use"]
        with pytest.raises(StorageUnavailable, match="no server answers at"):
            await ping(path)
    assert place.read_text() == "mine"


# A path too long for a socket


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    return folder / "x.db"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(params=["XDG_RUNTIME_DIR", "temporary"])
def runtime(request: pytest.FixtureRequest, short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime folder, not made yet."""
    if request.param == "temporary":
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(short))
        return short / f"homeport-{os.geteuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    return short / "homeport"


async def test_a_path_too_long(store: Storage, deep: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_storage(store, deep):
        (place,) = runtime.iterdir()
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        await ping(deep)
        with monkeypatch.context() as command:
            command.setenv("XDG_RUNTIME_DIR", "/nowhere")  # a command's need not be the server's
            await ping(deep)
    assert [*deep.parent.iterdir()] == [*runtime.iterdir()] == []


async def test_what_a_killed_server_left_far_away_is_replaced(store: Storage, deep: Path, runtime: Path) -> None:
    async with serve_storage(store, deep):
        (place,) = runtime.iterdir()
    left_behind(place)
    deep.with_name("x.db.sock").symlink_to(place)
    async with serve_storage(store, deep):
        await ping(deep)
    assert [*deep.parent.iterdir()] == [*runtime.iterdir()] == []


async def test_stores_share_a_runtime_folder(store: Storage, deep: Path, runtime: Path) -> None:
    other = deep.with_name("other.db")
    async with serve_storage(store, deep), MemoryStorage() as empty, serve_storage(empty, other):
        assert len([*runtime.iterdir()]) == 2
        async with RemoteStorage(deep) as remote, RemoteStorage(other) as another:
            assert [*remote.collections, *another.collections] == ["notes"]


async def test_a_runtime_folder_of_others_is_not_used(
    store: Storage, deep: Path, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir()
    runtime.chmod(0o770)
    async with serve_storage(store, deep):
        assert [message.partition(": ")[2] for message in caplog.messages] == [
            f"no socket at {deep}.sock: {runtime} is not this user's alone"
        ]
    assert [*deep.parent.iterdir()] == [*runtime.iterdir()] == []


# Who can connect

AS_NOBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
async def test_another_user_cannot_connect(store: Storage, short: Path) -> None:
    short.chmod(0o755)
    place = short / "x.db.sock"

    async def connect() -> int:
        command = [sys.executable, "-c", AS_NOBODY, str(place)]
        return int(await asyncio.to_thread(subprocess.check_output, command, timeout=SOON))

    async with serve_storage(store, short / "x.db"):
        assert await connect() == errno.EACCES
        place.chmod(0o666)
        assert await connect() == 0


# What callers cannot do

PING = b"\x91\xa4Ping"
WATCH = b"\x93\xa5Watch\x91\xa5notes\x00"


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def heard(place: Path, said: bytes) -> bytes:
    """All that the server says to a caller that has no more to say."""
    reader, writer = await asyncio.open_unix_connection(place)
    try:
        writer.write(said)
        writer.write_eof()
        async with asyncio.timeout(SOON):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param(frame(PING), b"Done", id="a request"),
        pytest.param(frame(PING) + b"xyz", b"Done", id="more than a request"),
        pytest.param(b"", b"Failed", id="nothing"),
        pytest.param(b"\0\0", b"Failed", id="half a length"),
        pytest.param(frame(PING)[:-1], b"Failed", id="half a request"),
        pytest.param(b"\xff\xff\xff\xff", b"Failed", id="too long"),
        pytest.param(frame(b"\x91\xa3End"), b"Failed", id="no request"),
        pytest.param(frame(b"\x92\xa4Ping\x01"), b"Failed", id="a request of another version"),
        pytest.param(frame(b"\x91\xa6Commit") + frame(PING), b"Failed", id="out of turn"),
        pytest.param(frame(b"\x93\xa3Get\xa5other\x90"), b"Failed", id="undeclared"),
    ],
)
async def test_what_is_said(served: Path, path: Path, said: bytes, answer: bytes) -> None:
    assert answer in await heard(served, said)
    await ping(path)


@given(said=st.binary(max_size=64), framed=st.booleans())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_nonsense(served: Path, path: Path, said: bytes, framed: bool) -> None:
    assert b"Failed" in await heard(served, frame(said) if framed else said)
    await ping(path)


@pytest.mark.parametrize("said", [b"", frame(WATCH)], ids=["idle", "watching"])
async def test_callers_have_a_bound(served: Path, path: Path, said: bytes) -> None:
    for _ in range(2):  # who has left makes room
        async with AsyncExitStack() as callers:
            for _ in range(MAX_CALLERS):
                _, writer = await asyncio.open_unix_connection(served)
                callers.push_async_callback(writer.wait_closed)
                callers.callback(writer.close)
                writer.write(said)
            async with asyncio.timeout(SOON):
                while not await refused(path):
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(SOON):
            while await refused(path):
                await asyncio.sleep(0.01)


async def refused(path: Path) -> bool:
    try:
        await ping(path)
    except StorageUnavailable as error:
        return str(error) == f"the server has {MAX_CALLERS} commands to answer already"
    return False


async def test_a_slow_caller_is_cut_off(served: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_PATIENCE", 0.1)
    reader, writer = await asyncio.open_unix_connection(served)
    async with asyncio.timeout(SOON):
        assert b"took more than 0.1 seconds" in await reader.read()
    writer.close()
    await writer.wait_closed()
    async with RemoteStorage(path) as remote:
        changes = remote.watch([NOTES], 0)  # who watches may wait
        first = asyncio.ensure_future(anext(changes))
        await asyncio.wait([first], timeout=0.2)
        await remote.commit([Put(NOTES, "a", {})])
        assert (await first).id == "a"
        await asyncio.sleep(0.2)
        await remote.commit([Put(NOTES, "b", {})])
        assert (await anext(changes)).id == "b"


# A caller, or the server, goes away


class Slow(MemoryStorage):
    """Its commits wait until they may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may = asyncio.Event(), asyncio.Event()

    async def commit(self, writes: Sequence[Write]) -> Commit:
        self.begun.set()
        await self.may.wait()
        return await super().commit(writes)


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    async with Slow() as slow:
        await slow.declare(NOTES)
        yield slow


async def test_a_commit_is_done_though_its_caller_goes_away(slow: Slow, path: Path) -> None:
    async with serve_storage(slow, path), RemoteStorage(path) as remote:
        commit = asyncio.create_task(remote.commit([Put(NOTES, "a", {})]))
        await slow.begun.wait()
        commit.cancel()
        await asyncio.wait([commit])
        slow.may.set()
        async with asyncio.timeout(SOON):
            assert (await anext(remote.watch([NOTES], 0))).id == "a"


async def test_a_call_under_way_is_finished_at_the_end(slow: Slow, path: Path) -> None:
    async with AsyncExitStack() as callers:
        async with serve_storage(slow, path):
            remote = await callers.enter_async_context(RemoteStorage(path))
            commit = asyncio.create_task(remote.commit([Put(NOTES, "a", {})]))
            await slow.begun.wait()
            asyncio.get_running_loop().call_later(0.05, slow.may.set)
        assert (await commit).version == 1
        with pytest.raises(StorageUnavailable, match="no server answers"):
            await remote.ping()


async def endless() -> AsyncIterator[Change]:
    yield Change("notes", "a", 1, b"{}")
    await asyncio.Event().wait()


async def test_no_caller_holds_up_the_end(slow: Slow, path: Path) -> None:
    await MemoryStorage.commit(slow, [Put(NOTES, "big", {"text": "x" * 5_000_000})])
    async with asyncio.timeout(SOON), AsyncExitStack() as callers:
        async with serve_storage(slow, path):
            remote = await callers.enter_async_context(RemoteStorage(path))
            _, idle = await asyncio.open_unix_connection(path.with_name("x.db.sock"))
            _, deaf = await asyncio.open_unix_connection(path.with_name("x.db.sock"), limit=1)
            deaf.write(frame(b"\x93\xa3Get\xa5notes\x91\xc4\x03big"))
            calls = [
                asyncio.create_task(remote.commit([Put(NOTES, "a", {})])),
                asyncio.create_task(remote.load(endless())),
                asyncio.ensure_future(anext(remote.watch([NOTES], 1))),
            ]
            await slow.begun.wait()
            await asyncio.wait(calls, timeout=0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        for call in calls[::2]:
            with pytest.raises(StorageUnavailable, match="the server ended before it had answered"):
                await call
        # A load hears of it when it has something to say.
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        for caller in idle, deaf:
            caller.close()
            await caller.wait_closed()


async def test_the_end_does_not_wait_for_a_watch_at_all(store: Storage, path: Path) -> None:
    async with AsyncExitStack() as callers:
        async with serve_storage(store, path):
            remote = await callers.enter_async_context(RemoteStorage(path))
            watch = asyncio.ensure_future(anext(remote.watch([NOTES], 0)))
            await asyncio.wait([watch], timeout=0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 0.2
        with pytest.raises(StorageUnavailable):
            await watch
