"""What the SQLite back end does besides the contract: its file, its traps, its faults."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from homeport.storage import (
    Collection,
    Conflict,
    Delete,
    Field,
    Filter,
    Put,
    Query,
    Storage,
    StorageDamaged,
    StorageFull,
    StorageLocked,
    StorageUnavailable,
    make_storage,
    open_storage,
)
from homeport.storage import sqlite as back_end
from homeport.storage.sqlite import connection, reading, schema, writing

NOTES = Collection("notes", (Field("title", "text", indexed=True), Field("rank", "integer")), tombstones=True)
CHILD = Path(__file__).with_name("sqlite_child.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def rows(path: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What another program reads."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(statement, parameters).fetchall()


# The file


async def test_tables_read_well_in_other_programs(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n1", b'{"title": "Milk",  "rank": 3}'), Put(NOTES, "n2", {"rank": -1})])
        await storage.commit([Delete(NOTES, "n2")])
        found = rows(path, "SELECT version, id, title, rank, document FROM notes")
        assert found == [(1, "n1", "Milk", 3, '{"title": "Milk",  "rank": 3}')]
        assert rows(path, "SELECT * FROM homeport_tombstones") == [(3, "notes", "n2")]
        assert rows(path, "SELECT value FROM homeport WHERE key = 'version'") == [(3,)]


async def test_columns_of_fields_with_awkward_names(path: Path) -> None:
    names = ["version", "Version", "document", 'a "quoted" one', "a b; DROP TABLE odd", "é", "A", "a"]
    odd = Collection("odd", tuple(Field(name, "integer", indexed=True) for name in names))
    async with open_storage(f"sqlite:{path}", [odd]) as storage:
        await storage.commit([Put(odd, "x", {name: place for place, name in enumerate(names)})])
        for place, name in enumerate(names):
            assert await storage.count(Query(odd, (Filter(name, "==", place),))) == 1, name
            assert await storage.count(Query(odd, (Filter(name, "==", place + 1),))) == 0, name


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "50%25.db", "#1.db", "é😀.db", "it's.db"])
async def test_odd_file_names(tmp_path: Path, name: str) -> None:
    async with open_storage(f"sqlite:{tmp_path / name}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n", {})])
        assert await storage.get(NOTES, ["n"])
        assert await storage.count(Query(NOTES)) == 1
    assert (tmp_path / name).exists()


async def test_only_the_owner_can_read(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n", {})])
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file.name


async def test_a_second_server_is_refused(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]):
        with pytest.raises(StorageLocked, match=f"in use by process {os.getpid()}"):
            async with open_storage(f"sqlite:{path}"):
                pass


# Schema versions


async def test_an_older_schema_is_migrated_after_a_backup(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n", {"title": "kept"})])
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, _adds_a_table))
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        assert (await storage.get(NOTES, ["n"]))["n"].decode() == {"title": "kept"}
    assert rows(path, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    assert rows(path, "SELECT * FROM added") == []
    (backup,) = path.parent.glob("store.db.before-schema-2-*")
    assert rows(backup, "PRAGMA user_version") == [(1,)]
    assert rows(backup, "SELECT id FROM notes") == [("n",)]


def _adds_a_table(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE added (x)")


async def test_a_migration_that_fails_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n", {})])

    def fails(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE notes")
        db.execute("no SQL")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fails))
        with pytest.raises(StorageUnavailable, match="syntax error"):
            async with open_storage(f"sqlite:{path}"):
                pass
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        assert await storage.get(NOTES, ["n"])


async def test_a_store_of_a_later_version_is_refused(path: Path) -> None:
    async with open_storage(f"sqlite:{path}"):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageDamaged, match=f"{path} was written by a later Homeport"):
        async with open_storage(f"sqlite:{path}"):
            pass


async def test_other_tables_in_the_database_are_left_alone_and_backed_up(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
        db.execute("INSERT INTO theirs VALUES (1)")
        db.commit()
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "n", {})])
    assert rows(path, "SELECT * FROM theirs") == [(1,)]
    (backup,) = path.parent.glob("store.db.before-schema-1-*")
    assert rows(backup, "SELECT name FROM sqlite_schema") == [("theirs",)]


# The three traps


async def test_readers_cannot_write_or_checkpoint(path: Path) -> None:
    """Before SQLite 3.51.3 two connections that write and checkpoint lose data: so only the writer can."""
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        assert isinstance(storage, back_end.SqliteStorage)
        await storage.commit([Put(NOTES, f"{n}", {"title": "x" * 1000}) for n in range(500)])
        wal = Path(f"{path}-wal").stat().st_size
        with closing(sqlite3.connect(storage._read_only, uri=True, isolation_level=None)) as reader:
            assert reader.execute("SELECT count(*) FROM notes").fetchone() == (500,)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("DELETE FROM notes")
            with pytest.raises(sqlite3.OperationalError):
                reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert Path(f"{path}-wal").stat().st_size == wal  # nor did closing it


def test_other_programs_may_come_and_go_while_a_server_runs(path: Path) -> None:
    """A `sqlite3` shell must not take itself for the last user and unlink the WAL that the server goes on writing."""
    child = subprocess.Popen([sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    shell = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('SELECT count(*) FROM notes').fetchone()"
    lines = []
    for _ in range(10):
        lines += [child.stdout.readline() for _ in range(10)]
        subprocess.run([sys.executable, "-c", shell, str(path)], check=True)
    child.kill()
    lines += child.communicate()[0].splitlines()
    acknowledged = [int(line) for line in lines if line.strip().isdigit()]
    assert [line for line in lines if line.startswith("opened")] == []
    assert len(acknowledged) >= 100
    kept = {int(row[0]) for row in rows(path, "SELECT id FROM notes")}
    assert set(acknowledged) <= kept


async def test_large_commits_and_pages_take_few_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step gives the GIL away, and on a busy loop takes milliseconds to win it back."""
    statements: list[str] = []
    execute = connection.Connection.execute

    def counting(self: Any, work: Any, parameters: Any = (), /) -> Any:
        if not callable(work):
            statements.append(work)
        return execute(self, work, parameters)

    async def steps_of(work: Callable[[], Awaitable[object]]) -> int:
        statements.clear()
        await work()
        return len(statements)

    monkeypatch.setattr(connection.Connection, "execute", counting)
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        puts = [Put(NOTES, f"{n:04}", {"title": f"t{n}"}, if_version=0) for n in range(1200)]
        assert await steps_of(lambda: storage.commit(puts)) < 15
        assert await steps_of(lambda: storage.find(Query(NOTES, limit=1000, total=True, rank=True))) < 10
        assert await steps_of(lambda: storage.changes(NOTES, 0, 1000)) == 1
        assert await steps_of(lambda: storage.get(NOTES, [f"{n:04}" for n in range(1000)])) == 1


WORKS: list[Callable[[Storage], Awaitable[object]]] = [
    lambda storage: storage.get(NOTES, ["b", "c"]),
    lambda storage: storage.find(Query(NOTES)),
    lambda storage: storage.changes(NOTES, 0, 10),
]
"""What reads several records."""


async def test_what_other_programs_wrote(path: Path) -> None:
    """A blob is read as text; a document that holds what no JSON text can is told."""
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, id, {"title": id}) for id in "abc"])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE notes SET document = CAST(document AS BLOB)")
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        for ids in ("a", "abc"):
            assert [record.document for record in (await storage.get(NOTES, ids)).values()] == [
                f'{{"title":"{id}"}}'.encode() for id in ids
            ]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE notes SET document = char(30) || document WHERE id = 'b'")
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        for work in WORKS:
            with pytest.raises(StorageDamaged, match=f"{path} a document among [ab] to c is no JSON"):
                await work(storage)


async def test_large_documents_are_not_read_on_the_event_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_loop: list[bool] = []
    get = reading.get

    def told(*arguments: Any) -> Any:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return get(*arguments)

    monkeypatch.setattr(reading, "get", told)
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        ids = [f"{n}" for n in range(64)]
        await storage.commit([Put(NOTES, id, {"title": "x" * 40_000}) for id in ids])
        for _ in range(3):
            for wanted in (ids, ids[:1]):
                assert set(await storage.get(NOTES, wanted)) == set(wanted)
    assert on_loop == [True, True] + 2 * [False, True]  # how large they are shows when they are first read


# The WAL


async def test_the_wal_stays_small_under_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(back_end, "PASSIVE_BYTES", 200_000)
    monkeypatch.setattr(back_end, "TRUNCATE_BYTES", 800_000)
    largest = 0
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        reading = asyncio.create_task(_read_without_a_pause(storage))
        for turn in range(200):
            await storage.commit([Put(NOTES, f"{turn}/{n}", {"title": "x" * 1000}) for n in range(10)])
            largest = max(largest, Path(f"{path}-wal").stat().st_size)
        reading.cancel()
        assert await storage.count(Query(NOTES)) == 2000
    assert 200_000 < largest < 1_200_000
    assert not Path(f"{path}-wal").exists()


async def _read_without_a_pause(storage: Any) -> None:
    while True:
        await storage.find(Query(NOTES, limit=50))
        await storage.get(NOTES, ["1/1"])


# Faults


async def test_a_snapshot_holds_up_no_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The WAL grows beyond its bounds meanwhile, and is cut when the snapshot is let go."""
    monkeypatch.setattr(back_end, "PASSIVE_BYTES", 50_000)
    monkeypatch.setattr(back_end, "TRUNCATE_BYTES", 200_000)
    wal = path.with_name("store.db-wal")
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, f"{n}", {}) for n in range(300)])
        async with asyncio.timeout(4), storage.snapshot() as snapshot:  # SQLite waits for five seconds
            for n in range(300):
                await storage.commit([Put(NOTES, f"{n}", {"text": "x" * 1000})])
            assert wal.stat().st_size > 1_000_000
            await storage.declare(Collection("more"))
            changes = [change async for change in snapshot.changes]
        assert [change.version for change in changes] == [*range(1, 301), 0]
        assert {collection.name for collection in snapshot.collections} == {"notes"}
        for n in range(3):
            await storage.commit([Put(NOTES, f"{n}", {})])
        assert wal.stat().st_size < 200_000


async def test_what_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageDamaged, match=f"{path}: file is not a database"):
        async with open_storage(f"sqlite:{path}"):
            pass
    assert path.read_bytes() == b"not a database at all" * 100


async def test_a_damaged_page_is_named_when_it_is_read(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, f"{n}", {"title": "x" * 500}) for n in range(1000)])
    data = bytearray(path.read_bytes())
    for page in range(20, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(data)
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        with pytest.raises(StorageDamaged, match=str(path)):
            await storage.find(Query(NOTES))


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable, match=f"{tmp_path}/file: File exists"):
        async with open_storage(f"sqlite:{tmp_path}/file/store.db"):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_loses_nothing_and_heals(small_disk: Path) -> None:
    async with open_storage(f"sqlite:{small_disk}/store.db", [NOTES]) as storage:
        acknowledged = []
        with pytest.raises(StorageFull, match="the disk is full"):
            for n in range(1000):
                await storage.commit([Put(NOTES, f"{n:04}", {"title": "x" * 10_000}), Put(NOTES, f"{n:04}-b", {})])
                acknowledged.append(f"{n:04}")
        assert len(acknowledged) > 20
        found = await storage.find(Query(NOTES, limit=5000))
        assert [record.id for record in found.records] == sorted([*acknowledged, *(f"{id}-b" for id in acknowledged)])
        version = found.version
        for n in range(3):
            with pytest.raises(StorageFull):
                await storage.commit([Put(NOTES, f"still-{n}", {"title": "x" * 100_000})])
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        assert (await storage.commit([Put(NOTES, "room", {"title": "x" * 100_000})])).version == version + 1
    async with open_storage(f"sqlite:{small_disk}/store.db", [NOTES]) as storage:
        assert await storage.count(Query(NOTES)) == len(acknowledged) * 2 + 1


async def test_a_limit_on_file_size_loses_nothing_and_heals(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "before", {})])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with pytest.raises(StorageUnavailable):
                await storage.commit([Put(NOTES, f"{n}", {"title": "x" * 1000}) for n in range(1000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await storage.count(Query(NOTES)) == 1
        assert (await storage.commit([Put(NOTES, "after", {})])).version == 2
    assert rows(path, "SELECT id FROM notes ORDER BY id") == [("after",), ("before",)]


async def test_a_write_that_fails_fails_its_batch_and_nothing_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        write = writing.write

        def failing(db: sqlite3.Connection, *arguments: Any) -> None:
            write(db, *arguments)
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(writing, "write", failing)
            failed = await asyncio.gather(
                *(storage.commit([Put(NOTES, f"{n}", {})]) for n in range(5)), return_exceptions=True
            )
        assert [type(error) for error in failed] == [StorageUnavailable] * 5
        assert await storage.count(Query(NOTES)) == 0
        assert (await storage.commit([Put(NOTES, "n", {})])).version == 1


async def test_a_new_unique_field_that_is_not_unique_changes_nothing(path: Path) -> None:
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "a", {"title": "same"}), Put(NOTES, "b", {"title": "same"})])
        with pytest.raises(Conflict, match="title is taken"):
            await storage.declare(Collection("notes", (Field("title", "text", unique=True),), tombstones=True))
        assert storage.collections["notes"] == NOTES
        assert await storage.count(Query(NOTES, (Filter("title", "==", "same"),))) == 2


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("f_flag", os.ST_RDONLY, StorageUnavailable, "the file system is read-only"),
        ("f_bavail", 0, StorageFull, "the disk is full"),
    ],
)
async def test_a_ping_asks_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: int, error: type[Exception], message: str
) -> None:
    system = os.statvfs(tmp_path)
    fields = [name for name in dir(system) if name.startswith("f_")]
    said = SimpleNamespace(**{name: getattr(system, name) for name in fields} | {field: value})
    async with make_storage(f"sqlite:{tmp_path}/store.db") as storage:
        await storage.ping()
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda path: said)
            with pytest.raises(error, match=f"store.db: {message}"):
                await storage.ping()
        await storage.ping()
