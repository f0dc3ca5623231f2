"""storage/file/: a store in a folder, whatever its disk, its files and its process come to."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.storage import (
    ABSENT,
    Conflict,
    Delete,
    DeleteWhere,
    Put,
    Query,
    Storage,
    StorageDamaged,
    StorageFull,
    StorageLocked,
    StorageUnavailable,
    file,
)
from homeport.storage.file import FileStorage
from homeport.storage.file.sealed import seal
from homeport.storage.memory import MemoryStorage

from .disks import Disk, copy, dead, once, use
from .lives import (
    COLLECTIONS,
    LIFE,
    LINES,
    OTHER,
    PLAIN,
    Step,
    commits,
    declares,
    lived,
    opened,
    purges,
    put,
    reopens,
    state,
)


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


IDS = st.sampled_from(["a", "A", "../b", "con", "long" * 100])
DOCUMENTS = st.sampled_from([b"{}", b'{"n":1}', b'{"n":2,"u":"x"}', b' {"u":"y","n":null}\t', b'{"u":"x"}'])
WRITES = st.one_of(
    st.builds(Put, st.sampled_from(COLLECTIONS), IDS, DOCUMENTS, st.sampled_from([None, None, ABSENT])),
    st.builds(Delete, st.sampled_from(COLLECTIONS), IDS),
    st.builds(DeleteWhere, st.sampled_from(COLLECTIONS).map(Query)),
)
COMMITS = st.lists(WRITES, max_size=4, unique_by=lambda write: getattr(write, "id", None)).map(lambda w: commits(*w))
ANY_LIFE = st.lists(
    st.one_of(
        COMMITS,
        COMMITS,
        st.builds(purges, st.sampled_from(COLLECTIONS), st.integers(0, 20)),
        st.just(reopens),
        st.just("killed"),
    ),
    max_size=12,
)


@given(ANY_LIFE)
def test_any_life_is_that_of_the_back_end_in_memory(life: list[Step | str]) -> None:
    asyncio.run(any_life(life))


async def any_life(life: list[Step | str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage, memory = FileStorage(Path(folder, "0")), MemoryStorage()
        await storage.open()
        await memory.open()
        try:
            for number, step in enumerate([declares(*COLLECTIONS), *life], 1):
                if isinstance(step, str):
                    copied = copy(storage.path, Path(folder, f"{number}"))
                    await storage.close()
                    storage = FileStorage(copied)
                    await storage.open()
                else:
                    outcomes = [await outcome(step, each) for each in (storage, memory)]
                    assert outcomes[0] == outcomes[1]
                assert await state(storage) == await state(memory)
        finally:
            await storage.close()


async def outcome(step: Step, storage: Storage) -> object:
    try:
        return await step(storage)
    except Conflict as conflict:
        return vars(conflict)


# Failing disks


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


async def test_a_journal_that_cannot_be_cut_is_read_only_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    attempts: list[Step] = [
        commits(put(PLAIN, "c")),
        declares(OTHER),
        lambda storage: storage.ping(),
    ]
    async with opened(path) as storage:
        await storage.commit([put(PLAIN, "a")])
        with monkeypatch.context() as patch:
            use(patch, Disk(dead(1)))
            with pytest.raises(StorageUnavailable, match="Input/output error"):
                await storage.commit([put(PLAIN, "b")])
            for attempt in attempts:
                with pytest.raises(StorageUnavailable, match=r"cannot repair .*: Input/output error"):
                    await attempt(storage)
            assert list(await storage.get(PLAIN, ["a", "b", "c"])) == ["a"]
        for attempt in attempts:
            await attempt(storage)
        assert list(await storage.get(PLAIN, ["a", "b", "c"])) == ["a", "c"]
    async with opened(path) as storage:
        assert list(await storage.get(PLAIN, ["a", "b", "c"])) == ["a", "c"]


async def test_cut_anywhere_in_its_last_batches_the_journal_holds_the_commits_that_were_whole(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as storage:
        await storage.commit([put(LINES, "a", b'{"n":1}')])
        states, sizes = [await state(storage)], []
        journal = tmp_path / "store" / "journal" / "1.log"
        for batch in range(2):
            sizes.append(journal.stat().st_size)
            puts = [put(collection, f"{batch}", b'{"n":%d}' % batch) for collection in COLLECTIONS]
            await asyncio.gather(*[storage.commit([each, Delete(LINES, "a")]) for each in puts])
            states.append(await state(storage))
        whole = journal.read_bytes()
        assert whole.count(b"\n") == 4
        copied = copy(tmp_path / "store", tmp_path / "copy")
    for size in range(sizes[0], len(whole) + 1):
        (copied / "journal" / "1.log").write_bytes(whole[:size])
        stored = FileStorage(copy(copied, tmp_path / f"{size}"))
        await stored.open()
        expected = states[2] if size == len(whole) else states[1] if size >= sizes[1] else states[0]
        assert await state(stored) == expected
        await stored.close()


# Full disks


async def fill(storage: Storage) -> int:
    """Commits until there is no room, and returns how many commits there was room for."""
    for number in range(10_000):
        try:
            await storage.commit([Put(PLAIN, f"{number:05}", {"filler": "x" * 4000})])
        except StorageFull:
            return number
    raise AssertionError("there was no end of room")


async def goes_on_when_there_is_room(storage: Storage, make_room: Callable[[], object]) -> None:
    filled = await fill(storage)
    assert filled > 10
    assert (await storage.find(Query(PLAIN, limit=1, total=True))).total == filled
    make_room()
    await storage.ping()
    assert (await storage.commit([put(PLAIN, "again")])).version == filled + 1


async def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(tmp_path / "store") as storage:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            await goes_on_when_there_is_room(storage, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        expected = await state(storage)
    async with FileStorage(tmp_path / "store") as storage:
        assert await state(storage) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("checkpoint_bytes", [16 << 20, 100_000], ids=["without checkpoints", "with checkpoints"])
async def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_bytes: int) -> None:
    monkeypatch.setattr(file, "MIN_CHECKPOINT_BYTES", checkpoint_bytes)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    async with opened(small_disk / "store") as storage:
        await goes_on_when_there_is_room(storage, ballast.unlink)
        copied = copy(small_disk / "store", small_disk.parent / "copy")
        expected = await state(storage)
    async with FileStorage(copied) as storage:
        assert await state(storage) == expected
    async with FileStorage(small_disk / "store") as storage:
        assert await state(storage) == expected


async def test_a_store_that_cannot_be_folded_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "store") as storage:
        await storage.commit([put(PLAIN, "a")])
        expected = await state(storage)
        with monkeypatch.context() as patch:
            use(patch, Disk(dead(1)))
            await storage.close()
    assert "the journal could not be folded into the data files: cannot write" in caplog.text
    async with FileStorage(tmp_path / "store") as storage:
        assert await state(storage) == expected


# Opening


async def test_a_second_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with opened(path) as storage:
        other = FileStorage(path)
        with pytest.raises(StorageLocked, match=rf"^{path} is in use by process {os.getpid()}$"):
            await other.open()
        await other.close()
        await storage.commit([put(PLAIN, "a")])
    async with other:
        assert list(await other.get(PLAIN, ["a"])) == ["a"]


async def test_a_store_that_does_not_open_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with opened(path):
        pass
    whole = (path / "manifest").read_bytes()
    (path / "manifest").write_bytes(whole[:-2])
    for _ in range(2):
        with pytest.raises(StorageDamaged, match=rf"^{path}/manifest, line 1: the line is damaged"):
            await FileStorage(path).open()
    (path / "manifest").write_bytes(whole)
    async with opened(path):
        pass


async def test_a_store_without_its_manifest_is_not_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with opened(path):
        (path / "manifest").rename(path / "elsewhere")
        killed = copy(path, tmp_path / "killed")
    for folder in path, killed:
        (folder / "manifest").unlink(missing_ok=True)
        with pytest.raises(StorageDamaged, match=rf"^{folder}/manifest is missing$"):
            await FileStorage(folder).open()


async def test_a_store_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with opened(path):
        pass
    (path / "manifest").write_bytes(seal(b'{"format":2}'))
    with pytest.raises(StorageDamaged, match=r"manifest was written by a later Homeport \(format 2, not 1\)$"):
        await FileStorage(path).open()


async def test_where_no_folder_can_be_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageUnavailable, match=rf"^cannot open {tmp_path}/store: Not a directory$"):
        await FileStorage(tmp_path / "store").open()


async def test_a_commit_that_is_interrupted_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a loop is stopped with everything that runs on it."""
    begun, go = threading.Event(), threading.Event()

    class Slow(Disk):
        def fsync(self, descriptor: int) -> None:
            begun.set()
            go.wait()
            os.fsync(descriptor)

    path = tmp_path / "store"
    async with opened(path) as storage:
        with monkeypatch.context() as patch:
            use(patch, Slow())
            commit = asyncio.create_task(storage.commit([put(PLAIN, "a")]))
            await asyncio.to_thread(begun.wait)
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "group commit"]
            task.cancel()
            with pytest.raises(StorageUnavailable, match="the store was stopped"):
                await commit
            go.set()
        with pytest.raises(StorageUnavailable, match="a commit was interrupted: restart"):
            await storage.commit([put(PLAIN, "b")])
    async with FileStorage(path) as storage:
        assert list(await storage.get(PLAIN, ["a", "b"])) == ["a"]
