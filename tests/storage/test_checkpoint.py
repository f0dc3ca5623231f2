"""storage/file/checkpoint.py: at whatever step a disk fails, a process is killed or the power is lost, nothing is."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import pytest

from homeport.storage import Change, Collection, Floor, Put, Query, Storage, StorageFull, StorageUnavailable, file
from homeport.storage.file import FileStorage
from homeport.storage.memory import MemoryStorage

from .disks import Disk, Pessimist, PowerLoss, copy, dead, once, use
from .lives import (
    COLLECTIONS,
    FILES,
    FORGETFUL,
    LIFE,
    PLAIN,
    State,
    Step,
    live,
    lived,
    opened,
    opens,
    put,
    reopens,
    state,
)


async def calls_of_a_life(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    counting = Disk()
    with monkeypatch.context() as patch:
        use(patch, counting)
        storage = FileStorage(path)
        assert await live(storage) == len(LIFE)
        await storage.close()
    return len(counting.calls)


EVERY = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
"""Of the calls of a life, which ones; all of them take a while."""


@EVERY
async def test_a_kill_or_loss_of_power_at_any_call_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    states = await lived()
    calls = await calls_of_a_life(tmp_path / "whole", monkeypatch)
    assert calls > 150
    for at in range(1, calls + 1, every):
        killed, powerless = tmp_path / f"{at} killed", tmp_path / f"{at} powerless"
        killed.mkdir()
        storage = FileStorage(killed / "of" / "the" / "store")
        with monkeypatch.context() as patch:
            use(patch, power := PowerLoss(dead(at)))
            done = await live(storage)
            await storage.close()
        power.restore(killed, powerless, Random(at))
        power.forget()
        for folder in killed, powerless:
            async with FileStorage(folder / "of" / "the" / "store") as storage:
                assert await state(storage) in states[done : done + 2], f"{folder.name}, after {done} steps"
            shutil.rmtree(folder)


@EVERY
async def test_whatever_call_fails_the_store_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    states = await lived()
    calls = await calls_of_a_life(tmp_path / "whole", monkeypatch)
    for at in range(1, calls + 1, every):
        code, error = [(errno.EIO, StorageUnavailable), (errno.ENOSPC, StorageFull)][at % 2]
        path = tmp_path / str(at)
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


@EVERY
async def test_what_follows_a_kill_survives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    states = await lived()
    calls = await calls_of_a_life(tmp_path / "whole", monkeypatch)
    for at in range(1, calls + 1, every):
        before, after = tmp_path / f"{at}", tmp_path / f"{at} after"
        before.mkdir()
        storage = FileStorage(before / "store")
        with monkeypatch.context() as patch:
            use(patch, power := PowerLoss(dead(at)))
            await live(storage)
            await storage.close()
            power.fails = lambda call: None
            await storage.open()
            lived_on = states.index(await state(storage))
            for step in LIFE[lived_on : lived_on + at % 5]:
                await step(storage)
            seen = await state(storage)
            power.fails = dead(0)
            await storage.close()
        power.restore(before, after, Pessimist())
        power.forget()
        async with FileStorage(after / "store") as storage:
            assert await state(storage) == seen, f"killed at call {at}"
        shutil.rmtree(before)
        shutil.rmtree(after)


# Loading


async def stream(changes: Sequence[Change | Floor]) -> AsyncIterator[Change | Floor]:
    for change in changes:
        yield change


LOADED: list[Change | Floor] = [
    Floor("plain", 3),
    Change("lines", "a", 5, b'{"n":1,"u":"x"}'),
    Change("lines", "b", 9, None),
    Change("files", "A", 7, b"{}"),
    Change("forgetful", "c", 8, b"{}"),
]


async def test_a_load_is_all_or_nothing_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            path = tmp_path / f"{at} {kill}"
            async with opened(path) as storage:
                id = storage.id
                with monkeypatch.context() as patch:
                    use(patch, Disk(dead(at) if kill else once(at, errno.ENOSPC)))
                    try:
                        await storage.load(stream(LOADED))
                        failed = False
                    except StorageUnavailable:
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
        # What it is about to rename or delete could not be copied.
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "checkpoint"))
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    acknowledged: dict[str, int] = {}
    random = Random(seed)
    storage = FileStorage(tmp_path / "before" / "store")
    (tmp_path / "before").mkdir()
    with monkeypatch.context() as patch:
        power = PowerLoss(dead(random.randint(60, 600)))
        use(patch, power)
        await storage.open()
        await storage.declare(*COLLECTIONS)
        tasks = [increment(storage, f"{task}", 100, acknowledged) for task in range(5)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await storage.close()
    assert all(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
    power.restore(tmp_path / "before", tmp_path / "after", random)
    power.forget()
    for path in tmp_path / "before" / "store", tmp_path / "after" / "store":
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
