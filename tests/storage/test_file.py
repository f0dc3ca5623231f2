"""storage/file.py: what becomes of a store whose disk fails, whose process is killed, whose files people edit."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from homeport.storage import (
    Change,
    Changes,
    Collection,
    Delete,
    Field,
    Floor,
    Put,
    Query,
    Storage,
    StorageFull,
    StorageUnavailable,
    Tombstones,
    Write,
    file,
)
from homeport.storage.file import FileStorage
from homeport.storage.memory import MemoryStorage

from .disks import Disk, PowerLoss, copy, dead, once, use

LINES = Collection("lines", (Field("n", "integer", indexed=True), Field("u", "text", unique=True)), tombstones=True)
PLAIN = Collection("plain")
FILES = Collection("files", tombstones=True, layout="files")
FORGETFUL = Collection("forgetful", layout="files")
COLLECTIONS = (LINES, PLAIN, FILES, FORGETFUL)

State = tuple[list[Changes], dict[str, Collection]]


async def state(storage: Storage) -> State:
    """All that a store holds and says."""
    known = storage.collections.values()
    return [await storage.changes(collection, 0, 1000) for collection in known], dict(storage.collections)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FileStorage]:
    async with FileStorage(path) as storage:
        await storage.declare(*COLLECTIONS)
        yield storage


def put(collection: Collection, id: str, document: bytes = b"{}", if_version: int | None = None) -> Put:
    return Put(collection, id, document, if_version)


# A life of a store, step by step

Step = Callable[[Storage], Awaitable[object]]


def declares(*collections: Collection) -> Step:
    return lambda storage: storage.declare(*collections)


def commits(*writes: Write) -> Step:
    return lambda storage: storage.commit(writes)


def purges(collection: Collection, up_to: int) -> Step:
    return lambda storage: storage.purge(Tombstones(collection, up_to))


async def opens(storage: Storage) -> None:
    await storage.open()


async def reopens(storage: Storage) -> None:
    """Closing a store writes its data files."""
    if isinstance(storage, FileStorage):
        await storage.close()
        await storage.open()


OTHER = Collection("lines", (Field("n", "integer"),), tombstones=True, layout="files")
LIFE: list[Step] = [
    declares(*COLLECTIONS),
    commits(put(LINES, "a", b' {"n":1,"u":"x"}'), put(PLAIN, "a"), put(FILES, "A/b", b'{"x":1}'), put(FORGETFUL, "a")),
    commits(put(LINES, "b", b'{"n":2}'), Delete(PLAIN, "a"), Delete(FILES, "A/b"), Delete(FORGETFUL, "a")),
    reopens,
    commits(put(LINES, "a", b'{"n":3,"u":"y"}'), put(FILES, "long" * 100), put(FORGETFUL, "b"), put(PLAIN, "b")),
    commits(Delete(LINES, "b"), put(FILES, "A/b", b'{"x":2}'), put(FORGETFUL, "c")),
    reopens,
    commits(Delete(FILES, "long" * 100), Delete(FORGETFUL, "b"), put(LINES, "c")),
    purges(LINES, 100),
    reopens,
    declares(OTHER),
    commits(put(OTHER, "d", b'{"n":4}'), Delete(OTHER, "c")),
    reopens,
    commits(put(OTHER, "d", b'{"n":5}')),
]


async def lived() -> list[State]:
    """What a store holds after each step, by the back end in memory."""
    async with MemoryStorage() as memory:
        states = [await state(memory)]
        for step in LIFE:
            await step(memory)
            states.append(await state(memory))
    return states


async def live(storage: Storage) -> int:
    """Leads the life until a step fails; returns how many succeeded."""
    done = 0
    try:
        await storage.open()
        for step in LIFE:
            await step(storage)
            done += 1
    except StorageUnavailable:
        return done
    return done


async def calls_of_a_life(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    counting = Disk()
    with monkeypatch.context() as patch:
        use(patch, counting)
        storage = FileStorage(path)
        assert await live(storage) == len(LIFE)
        await storage.close()
    return len(counting.calls)


async def test_a_life_is_that_of_the_back_end_in_memory(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "store")
    await storage.open()
    for step, expected in zip(LIFE, (await lived())[1:], strict=True):
        await step(storage)
        assert await state(storage) == expected
    id = storage.id
    await reopens(storage)
    assert await state(storage) == expected
    assert storage.id == id
    await storage.close()


async def test_a_kill_at_any_call_loses_nothing(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = await lived()
    calls = await calls_of_a_life(ram / "whole", monkeypatch)
    assert calls > 150
    for at in range(1, calls + 1):
        path = ram / str(at)
        storage = FileStorage(path)
        with monkeypatch.context() as patch:
            use(patch, Disk(dead(at)))
            done = await live(storage)
            await storage.close()
        async with FileStorage(path) as storage:
            assert await state(storage) in states[done : done + 2], f"killed at call {at}, after {done} steps"
        shutil.rmtree(path)


async def test_a_loss_of_power_at_any_call_loses_nothing(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = await lived()
    calls = await calls_of_a_life(ram / "whole", monkeypatch)
    for at in range(1, calls + 1):
        before, after = ram / f"{at}", ram / f"{at} after"
        before.mkdir()
        storage = FileStorage(before / "store")
        with monkeypatch.context() as patch:
            power = PowerLoss(dead(at))
            use(patch, power)
            done = await live(storage)
            await storage.close()
        power.restore(before, after, Random(at))
        power.forget()
        async with FileStorage(after / "store") as storage:
            assert await state(storage) in states[done : done + 2], f"power lost at call {at}, after {done} steps"
        shutil.rmtree(before)
        shutil.rmtree(after)


async def test_whatever_call_fails_the_store_goes_on(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = await lived()
    calls = await calls_of_a_life(ram / "whole", monkeypatch)
    for at in range(1, calls + 1):
        code, error = [(errno.EIO, StorageUnavailable), (errno.ENOSPC, StorageFull)][at % 2]
        path = ram / str(at)
        storage = FileStorage(path)
        failing = Disk(once(at, code))
        with monkeypatch.context() as patch:
            use(patch, failing)
            steps: list[tuple[Step, State]] = [(opens, states[0]), *zip(LIFE, states[1:], strict=True)]
            for step, expected in steps:
                try:
                    await step(storage)
                except error as raised:
                    assert isinstance(raised.__cause__, OSError)  # noqa: PT017 - some steps raise, for some calls
                    await (opens if step is reopens else step)(storage)
                assert await state(storage) == expected, f"{failing.calls[at - 1]}, call {at}, failed"
            await storage.close()
        async with FileStorage(path) as storage:
            assert await state(storage) == states[-1], f"{failing.calls[at - 1]}, call {at}, failed"
        shutil.rmtree(path)


async def test_what_was_seen_after_a_kill_survives_a_loss_of_power(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = await calls_of_a_life(ram / "whole", monkeypatch)
    for at in range(1, calls + 1, 3):
        before, after = ram / f"{at}", ram / f"{at} after"
        before.mkdir()
        with monkeypatch.context() as patch:
            power = PowerLoss(dead(at))
            use(patch, power)
            storage = FileStorage(before / "store")
            await live(storage)
            await storage.close()
            power.fails = lambda call: None
            await storage.open()
            seen = await state(storage)
            power.fails = dead(0)
            await storage.close()
        power.restore(before, after, Random(at))
        power.forget()
        async with FileStorage(after / "store") as storage:
            assert await state(storage) == seen, f"killed at call {at}"


async def test_what_a_failed_commit_wrote_is_cut_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "store") as storage:
        for failing in "write", "fsync":
            with monkeypatch.context() as patch:
                use(patch, Disk(once(["write", "fsync"].index(failing) + 1, errno.ENOSPC)))
                with pytest.raises(StorageFull, match=r"^cannot write .*/journal/1\.log: No space left on device$"):
                    await storage.commit([put(PLAIN, "a")])
            assert await storage.get(PLAIN, ["a"]) == {}
        assert (await storage.commit([put(PLAIN, "b")])).version == 1
        copied = copy(tmp_path / "store", tmp_path / "copy")
    async with FileStorage(copied) as storage:
        assert [record.id for record in (await storage.find(Query(PLAIN))).records] == ["b"]


async def test_a_journal_that_cannot_be_cut_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    async with opened(path) as storage:
        await storage.commit([put(PLAIN, "a")])
        with monkeypatch.context() as patch:
            use(patch, Disk(dead(1)))
            with pytest.raises(StorageUnavailable, match="Input/output error"):
                await storage.commit([put(PLAIN, "b")])
        attempts: list[Step] = [
            commits(put(PLAIN, "c")),
            declares(OTHER),
            lambda storage: storage.ping(),
        ]
        for attempt in attempts:
            with pytest.raises(StorageUnavailable, match=r"journal could not be repaired .*: restart$"):
                await attempt(storage)
        assert list(await storage.get(PLAIN, ["a", "b", "c"])) == ["a"]
    assert "could not be folded" in caplog.text
    async with opened(path) as storage:
        await storage.commit([put(PLAIN, "c")])
        assert list(await storage.get(PLAIN, ["a", "b", "c"])) == ["a", "c"]


async def test_cut_anywhere_in_its_last_batches_the_journal_holds_the_commits_that_were_whole(ram: Path) -> None:
    async with opened(ram / "store") as storage:
        await storage.commit([put(LINES, "a", b'{"n":1}')])
        states, sizes = [await state(storage)], []
        journal = ram / "store" / "journal" / "1.log"
        for batch in range(2):
            sizes.append(journal.stat().st_size)
            puts = [put(collection, f"{batch}", b'{"n":%d}' % batch) for collection in COLLECTIONS]
            await asyncio.gather(*[storage.commit([each, Delete(LINES, "a")]) for each in puts])
            states.append(await state(storage))
        whole = journal.read_bytes()
        assert whole.count(b"\n") == 4
        copied = copy(ram / "store", ram / "copy")
    for size in range(sizes[0], len(whole) + 1):
        (copied / "journal" / "1.log").write_bytes(whole[:size])
        stored = FileStorage(copy(copied, ram / f"{size}"))
        await stored.open()
        expected = states[2] if size == len(whole) else states[1] if size >= sizes[1] else states[0]
        assert await state(stored) == expected
        await stored.close()


# Loading


async def stream(changes: Sequence[Change | Floor]) -> AsyncIterator[Change | Floor]:
    for change in changes:
        yield change


LOADED = [
    Floor("plain", 3),
    Change("lines", "a", 5, b'{"n":1,"u":"x"}'),
    Change("lines", "b", 9, None),
    Change("files", "A", 7, b"{}"),
    Change("forgetful", "c", 8, b"{}"),
]


async def test_a_load_is_all_or_nothing_whatever_fails(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with MemoryStorage() as memory:
        await memory.declare(*COLLECTIONS)
        empty = await state(memory)
        await memory.load(stream(LOADED))
        full = await state(memory)
    for kill in False, True:
        at = 0
        failed = True
        while failed:  # one call later each time, until there are no more
            at += 1
            path = ram / f"{at} {kill}"
            async with opened(path) as storage:
                id = storage.id
                with monkeypatch.context() as patch:
                    use(patch, Disk(dead(at) if kill else once(at, errno.ENOSPC)))
                    try:
                        await storage.load(stream(LOADED))
                        failed = False
                    except StorageFull if not kill else StorageUnavailable:
                        assert (await state(storage), storage.id) == (empty, id)
                    if kill:
                        await storage.close()
                expected = [empty, full]
                if failed and not kill:
                    try:
                        await (storage.load(stream(LOADED)) if at % 2 else storage.commit([put(PLAIN, "instead")]))
                    except StorageUnavailable as error:
                        assert str(error) == "the store may have been loaded, or not: restart"  # noqa: PT017 - or it is
                    else:
                        expected = [await state(storage)]
            async with FileStorage(path) as storage:
                assert await state(storage) in expected
                assert (await state(storage) == full) == (storage.id != id)
                assert failed or storage.id != id
        assert at > 20


# Checkpoints while commits go on


async def test_a_checkpoint_that_was_not_finished_is_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file, "MIN_CHECKPOINT_BYTES", 5000)
    path = tmp_path / "store"

    def manifest() -> bytes:
        return (path / "manifest").read_bytes()

    async def commit_until_checkpoint(storage: Storage, collection: Collection) -> None:
        before = manifest()
        while manifest() == before:
            await storage.commit([Put(collection, "a", {"filler": "x" * 500})])

    def fails(call: int) -> int | None:
        # The first file to be replaced is the manifest.
        return errno.EIO if disk.calls[-1] == "replace" and disk.calls.count("replace") == 2 else None

    async with opened(path) as storage:
        use(monkeypatch, disk := Disk(fails))
        await commit_until_checkpoint(storage, PLAIN)
        await commit_until_checkpoint(storage, FILES)
        assert caplog.text.count("could not be folded") == 1
        copied = copy(path, tmp_path / "copy")
        expected = await state(storage)
    async with FileStorage(copied) as storage:
        assert await state(storage) == expected


async def increment(storage: Storage, id: str, times: int, acknowledged: dict[str, int]) -> None:
    for _ in range(times):
        records = await storage.get(PLAIN, [id])
        count = records[id].decode()["n"] + 1 if records else 1
        await storage.commit([Put(PLAIN, id, {"n": count, "filler": "x" * 200}), Put(FORGETFUL, id, {"n": count})])
        acknowledged[id] = count


@pytest.fixture
def always_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint begins after every batch, and commits wait for it when it lags by a few."""
    monkeypatch.setattr(file, "MIN_CHECKPOINT_BYTES", 500)


@pytest.mark.usefixtures("always_checkpoints")
async def test_commits_go_on_while_data_files_are_written(tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    async with opened(tmp_path / "store") as storage:
        await asyncio.gather(*[increment(storage, f"{task}", 20, acknowledged) for task in range(20)])
        folded = (tmp_path / "store" / "data" / "plain.jsonl").read_bytes()
        copied = copy(tmp_path / "store", tmp_path / "copy")
        expected = await state(storage)
    assert folded.count(b"\n") == 20
    assert acknowledged == {f"{task}": 20 for task in range(20)}
    async with FileStorage(tmp_path / "store") as storage:
        assert await state(storage) == expected
    async with FileStorage(copied) as storage:
        assert await state(storage) == expected


@pytest.mark.usefixtures("always_checkpoints")
@pytest.mark.parametrize("seed", range(40))
async def test_a_kill_among_checkpoints_and_commits_loses_nothing(
    ram: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    acknowledged: dict[str, int] = {}
    random = Random(seed)
    storage = FileStorage(ram / "before" / "store")
    (ram / "before").mkdir()
    with monkeypatch.context() as patch:
        power = PowerLoss(dead(random.randint(60, 600)))
        use(patch, power)
        await storage.open()
        await storage.declare(*COLLECTIONS)
        tasks = [increment(storage, f"{task}", 100, acknowledged) for task in range(5)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await storage.close()
    assert all(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
    power.restore(ram / "before", ram / "after", random)
    power.forget()
    for path in ram / "before" / "store", ram / "after" / "store":
        async with FileStorage(path) as storage:
            plain, files = [await storage.get(c, [f"{task}" for task in range(5)]) for c in (PLAIN, FORGETFUL)]
        for id, count in acknowledged.items():
            found = plain[id].decode()["n"]
            assert found in (count, count + 1)
            assert files[id].decode()["n"] == found
            assert files[id].version == plain[id].version + 1


async def test_commits_wait_when_the_journal_cannot_be_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MIN_CHECKPOINT_BYTES", 5000)
    full = False
    failing = Disk(lambda call: errno.ENOSPC if full and failing.calls[-1] == "replace" else None)
    use(monkeypatch, failing)
    async with opened(tmp_path / "store") as storage:
        full = True
        with pytest.raises(StorageFull):
            for number in range(100):
                await storage.commit([Put(PLAIN, f"{number}", {"filler": "x" * 500})])
        assert 30 < number < 50
        assert (await storage.find(Query(PLAIN, total=True))).total == number
        full = False
        await storage.commit([put(PLAIN, "again")])
        expected = await state(storage)
        assert sum(path.stat().st_size for path in (tmp_path / "store" / "journal").iterdir()) < 5000
    async with FileStorage(tmp_path / "store") as storage:
        assert await state(storage) == expected
