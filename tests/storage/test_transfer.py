"""A store's content in another store: the same to the byte, or not at all."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.storage import (
    Change,
    Collection,
    Delete,
    Field,
    Floor,
    Gone,
    NotEmpty,
    Put,
    Query,
    Snapshot,
    Storage,
    StorageDamaged,
    StorageError,
    StorageFull,
    Tombstones,
    open_storage,
)
from homeport.storage.backup import read_backup, write_backup
from homeport.storage.memory import MemoryStorage
from homeport.storage.remote import RemoteStorage
from homeport.storage.remote.serving import serve_storage
from homeport.storage.transfer import Tally, tally, transfer

from .choices import DECLARATIONS, Choices
from .conftest import BACK_ENDS, SQLITE
from .disks import Disk, once, use
from .stranger.dictstore import DictStorage, Shelf

NAMES = [back_end.name for back_end in BACK_ENDS] + ["stranger", "remote"]
NOTES = Collection("notes", (Field("u", "text", unique=True), Field("n", "integer", indexed=True)), tombstones=True)
PLAIN = Collection("plain")
FILES = Collection("files", tombstones=True, layout="files")

ODD_IDS = ["A", "a", "..", "con", "😀", '"\\/', "a\nb", " ", "\x7f", "x" * 2048, "é", "e\u0301"]
ODD_DOCUMENTS = [
    b"{}",
    b' {"n" : -0.0 ,\t"n":1.0} ',
    b'{"big":123456789012345678901234567890,"e":1E+2,"z":1.10}',
    b'{"s":"\\u0000\\ud83d\\ude00\\/\xf0\x9f\x98\x80 \xe2\x80\xa8","u":null}',
    b'{"deep":' + b"[" * 100 + b"]" * 100 + b"}",
]


@asynccontextmanager
async def opened(name: str, folder: Path) -> AsyncIterator[Storage]:
    """A new store of a kind."""
    async with AsyncExitStack() as stack:
        if name == "stranger":
            yield await stack.enter_async_context(DictStorage(Shelf()))
            return
        if name == "remote":
            served = await stack.enter_async_context(open_storage(SQLITE.url(folder / "served")))
            await stack.enter_async_context(serve_storage(served, folder / "s"))
            yield await stack.enter_async_context(RemoteStorage(folder / "s"))
            return
        (back_end,) = [back_end for back_end in BACK_ENDS if back_end.name == name]
        yield await stack.enter_async_context(back_end.make(folder / name))


async def fill(storage: Storage) -> None:
    """A bit of everything: odd, overwritten, deleted, forgotten, unique."""
    await storage.declare(NOTES, PLAIN, FILES)
    for collection in NOTES, PLAIN, FILES:
        await storage.commit([Put(collection, id, b"{}") for id in ODD_IDS])
        await storage.commit(
            [Put(collection, id, ODD_DOCUMENTS[n % len(ODD_DOCUMENTS)]) for n, id in enumerate(ODD_IDS)]
        )
        await storage.commit([Put(collection, f"{n}", {"u": f"{n}", "n": n}) for n in range(120)])
        await storage.commit([Delete(collection, id) for id in ("A", "3", "4")])
    await storage.commit([Put(NOTES, "A", {"u": "again"}), Delete(FILES, "5")])
    await storage.purge(Tombstones(FILES, (await storage.changes(FILES, 0, 1000)).version - 1))


async def shown(storage: Storage) -> list[object]:
    """All that the interface shows of a store, changes from every version included."""
    found: list[object] = []
    for name, collection in sorted(storage.collections.items()):
        page = await storage.changes(collection, 0, 10_000)
        found += [collection, page, await storage.find(Query(collection, total=True))]
        steps = {0, 1, *range(1, page.store_version + 2, 1 + page.store_version // 8), page.floor, page.floor - 1}
        for after in sorted(step for step in steps if step >= 0):
            try:
                found.append(await storage.changes(collection, after, 3))
            except Gone:
                found.append((name, after))
        for field in collection.fields:
            found.append((await storage.find(Query(collection, sort=(f"-{field.name}",)))).records)
    return found


async def copied(source: Storage, target: Storage) -> None:
    async with source.snapshot() as snapshot:
        await transfer(snapshot, target)


# Every pair


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
async def test_from_every_back_end_to_every(source: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    async with opened(source, tmp_path) as one, opened(target, tmp_path / "to") as other:
        await fill(one)
        formerly = other.id
        await copied(one, other)
        assert other.id not in (formerly, one.id)
        assert await shown(other) == await shown(one)
        after = await one.commit([Put(PLAIN, "more", {}), Delete(NOTES, "a")])
        assert await other.commit([Put(PLAIN, "more", {}), Delete(NOTES, "a")]) == after
        assert await shown(other) == await shown(one)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 12))
def test_any_history_survives_a_journey_through_all_of_them(seed: int, length: int) -> None:
    rng = random.Random(seed)

    async def history(storage: DictStorage) -> None:
        declared: dict[str, Collection] = {}
        for turn in range(length):
            for name, declarations in DECLARATIONS.items():
                if name not in declared or rng.random() < 0.1:
                    try:
                        await storage.declare(choice := rng.choice(declarations))
                    except StorageError:  # a field cannot become unique
                        await storage.declare(choice := declared.get(name, declarations[0]))
                    declared[name] = choice
            choose = Choices(seed + turn, storage.shelf, declared)
            for writes in choose.commits(3):
                try:
                    await storage.commit(writes)
                except (StorageError, ValueError):
                    continue
            if rng.random() < 0.2:
                await storage.purge(Tombstones(choose.collection(), choose.version()))

    async def journey(folder: Path) -> None:
        async with AsyncExitStack() as stack:
            origin = await stack.enter_async_context(DictStorage(Shelf()))
            await history(origin)
            expected = await shown(origin)
            store: Storage = origin
            for name in rng.sample(["memory", "file", "sqlite"], 3):
                follows = await stack.enter_async_context(opened(name, folder))
                await copied(store, follows)
                assert await shown(follows) == expected
                store = follows
            path = folder / rng.choice(["backup.jsonl", "backup.jsonl.gz"])
            async with store.snapshot() as snapshot:
                await write_backup(path, store.id, snapshot)
            async with opened("stranger", folder) as last:
                await transfer(read_backup(path).snapshot(), last)
                assert await shown(last) == expected

    with TemporaryDirectory() as folder:
        asyncio.run(journey(Path(folder)))


# What may be filled


async def test_only_an_empty_store_is_filled(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as source, opened("file", tmp_path) as target:
        await fill(source)
        await target.declare(PLAIN)
        await target.commit([Put(PLAIN, "mine", {})])
        before = await shown(target)
        with pytest.raises(NotEmpty, match="the store is not empty: it is at version 1"):
            await copied(source, target)
        assert await shown(target) == before


async def test_what_is_there_already_is_compared(tmp_path: Path) -> None:
    """A copy may have been killed after it was loaded, and is then done again."""
    async with opened("sqlite", tmp_path) as source, opened("file", tmp_path) as target:
        await fill(source)
        await copied(source, target)
        id = target.id
        await copied(source, target)
        assert target.id == id
        await source.commit([Put(PLAIN, "a", {"mine": 1})])
        await target.commit([Put(PLAIN, "a", {"mine": 2})])
        with pytest.raises(NotEmpty):
            await copied(source, target)


async def test_other_declarations_give_way(tmp_path: Path) -> None:
    """A server of another version made the empty store."""
    async with opened("sqlite", tmp_path) as source, opened("file", tmp_path) as target:
        await fill(source)
        await target.declare(Collection("plain", (Field("x", "text"),)), Collection("unknown"))
        await copied(source, target)
        assert target.collections["plain"] == PLAIN


class Forgetful(MemoryStorage):
    """Loses what one loads as number 7."""

    async def load(self, changes: AsyncIterator[Change | Floor]) -> None:  # type: ignore[override] # as it is called
        await super().load(self._some(changes))

    async def _some(self, changes: AsyncIterator[Change | Floor]) -> AsyncIterator[Change | Floor]:
        number = 0
        async for change in changes:
            number += 1
            if number != 7:
                yield change


async def test_what_does_not_come_back_is_an_error(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as source, Forgetful() as target:
        await fill(source)
        with pytest.raises(StorageDamaged, match=r"what was written is not what can be read: collection \w+ has"):
            await copied(source, target)


@pytest.mark.parametrize(
    "other",
    [
        Change("notes", "a", 2, b'{"n":1}'),
        Change("notes", "b", 1, b'{"n":1}'),
        Change("notes", "a", 1, b'{"n":1 }'),
        Change("notes", "a", 1, None),
        Change("notes", "a", 1, b""),
    ],
)
def test_a_tally_tells_them_apart(other: Change) -> None:
    one, two = Tally(), Tally()
    one.add(Change("notes", "a", 1, b'{"n":1}'))
    two.add(other)
    assert one != two


def test_a_tally_does_not_depend_on_order() -> None:
    changes = [Change("notes", f"{n}", n, b"{}") for n in range(9)] + [Floor("notes", 3)]
    tallies = []
    for order in changes, changes[::-1]:
        tallies.append(Tally())
        for change in order:
            tallies[-1].add(change)
    assert tallies[0] == tallies[1]


async def test_progress_is_told(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as source, opened("sqlite", tmp_path) as target:
        await source.declare(PLAIN)
        await source.commit([Put(PLAIN, f"{n}", {}) for n in range(2500)])
        told: list[int] = []
        async with source.snapshot() as snapshot:
            await transfer(snapshot, target, told.append)
        assert told == [1000, 1000, 501] * 2  # a floor counts too


# The file


@pytest.fixture
async def snapshot(tmp_path: Path) -> AsyncIterator[Snapshot]:
    async with opened("memory", tmp_path) as source:
        await fill(source)
        async with source.snapshot() as snapshot:
            yield snapshot


@pytest.fixture(params=["b.jsonl", "b.jsonl.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / str(request.param)


async def test_a_backup_is_the_owners_and_leaves_nothing_beside_it(path: Path, snapshot: Snapshot) -> None:
    expected = await write_backup(path, "an id", snapshot)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*path.parent.iterdir()] == [path]
    backup = read_backup(path)
    assert (backup.store, backup.version) == ("an id", snapshot.version)
    assert await tally(backup.snapshot()) == expected


async def test_an_older_backup_is_replaced_and_nothing_else(path: Path, snapshot: Snapshot) -> None:
    await write_backup(path, "1", snapshot)
    empty = Snapshot(0, (), snapshot.changes)  # they have been read
    await write_backup(path, "2", empty)
    assert read_backup(path).store == "2"
    for content in b"", b"\x1f\x8b", b"SQLite format 3\0", b'{"id":"a"}\n':
        path.write_bytes(content)
        with pytest.raises(StorageError):
            await write_backup(path, "3", empty)
        assert path.read_bytes() == content
    with pytest.raises(StorageError, match="is no backup"):
        await write_backup(path.parent, "3", empty)
    with pytest.raises(StorageError, match="is no backup"):
        await write_backup(Path(os.devnull), "3", empty)


async def test_a_backup_that_fails_leaves_the_older_one(path: Path, snapshot: Snapshot) -> None:
    async def failing() -> AsyncIterator[Change | Floor]:
        yield Change("notes", "a", 1, b"{}")
        raise ConnectionError

    await write_backup(path, "1", snapshot)
    with pytest.raises(StorageError):
        await write_backup(path, "2", Snapshot(1, (NOTES,), failing()))
    assert read_backup(path).store == "1"
    assert [*path.parent.iterdir()] == [path]


async def refused(path: Path) -> str:
    """Why a file is not restored; nothing of it is written."""
    async with MemoryStorage() as target:
        with pytest.raises(StorageDamaged) as caught:
            await transfer(read_backup(path).snapshot(), target)
        assert target.collections == {}
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


async def test_a_backup_that_is_cut_or_changed_is_refused(path: Path, snapshot: Snapshot) -> None:
    expected = await write_backup(path, "an id", snapshot)
    whole = path.read_bytes()
    rng = random.Random(7)
    for _ in range(30):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        await refused(path)
    for at in [*range(3), *rng.sample(range(10, len(whole)), 50)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            await refused(path)
        except pytest.fail.Exception:  # a bit of gzip's that says nothing
            assert path.suffix == ".gz"
            assert await tally(read_backup(path).snapshot()) == expected
    path.write_bytes(whole + b"\n")
    assert path.suffix == ".gz" or await refused(path)


async def test_why_a_file_is_no_backup(tmp_path: Path, snapshot: Snapshot) -> None:
    path = tmp_path / "b.jsonl"
    await write_backup(path, "an id", snapshot)
    first, second, *_, last = lines = path.read_bytes().splitlines(keepends=True)
    for content, why in {
        b"": " is empty",
        b"SQLite format 3\0": ", line 1: this is no backup of Homeport",
        first.replace(
            b":1,", b":2,", 1
        ): ", line 1: this backup was written by a later Homeport (format 2; this one knows 1)",
        first: " is cut off after line 1",
        b"".join(lines[:-1]): f" is cut off after line {len(lines) - 1}",
        first + last: ", line 2: the checksum is wrong: the file was damaged or changed",
        b"".join(
            [first, *lines[2:]]
        ): f", line {len(lines) - 1}: the checksum is wrong: the file was damaged or changed",
        first + second.replace(b'"notes"', b'"other"'): ", line 2: the version or the collection is not the backup's",
        b"\x1f\x8b": ": what is compressed is damaged or cut off after line 0",
    }.items():
        path.write_bytes(content)
        assert await refused(path) == why


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*/b\.jsonl: No such file or directory"):
        read_backup(tmp_path / "b.jsonl")


async def test_a_document_that_white_space_surrounds(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as source, opened("memory", tmp_path) as target:
        await source.declare(PLAIN)
        await source.commit([Put(PLAIN, "a", b"\t{} ")])
        async with source.snapshot() as snapshot:
            await write_backup(tmp_path / "b.jsonl", source.id, snapshot)
        await transfer(read_backup(tmp_path / "b.jsonl").snapshot(), target)
        assert (await target.get(PLAIN, ["a"]))["a"].document == b"\t{} "


async def test_a_disk_that_is_full(path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [change async for change in snapshot.changes]

    async def again() -> AsyncIterator[Change | Floor]:
        for change in changes:
            yield change

    await write_backup(path, "old", Snapshot(snapshot.version, snapshot.collections, again()))
    for call in range(1, 20):
        use(monkeypatch, failing := Disk(once(call, errno.ENOSPC)))
        try:
            await write_backup(path, "new", Snapshot(snapshot.version, snapshot.collections, again()))
        except StorageFull as error:
            assert str(error) == f"cannot write {path}: No space left on device"  # noqa: PT017 - the last call succeeds
            assert read_backup(path).store == ("new" if "replace" in failing.calls[:-2] else "old")
            assert [*path.parent.iterdir()] == [path] or failing.calls[-1] == "unlink"
        else:
            return
    raise AssertionError("it never succeeds")
