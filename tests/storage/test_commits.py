"""storage/commits.py: how commits gather into batches, and what becomes of a batch."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.storage import (
    ABSENT,
    Check,
    Commit,
    Conflict,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Put,
    Query,
    StorageFull,
    StorageUnavailable,
    Write,
    commits,
)
from homeport.storage import Collection as Declared
from homeport.storage.commits import GroupCommit, Key, Resolution, UniqueValue, resolve
from homeport.storage.observing import CommitTimes
from homeport.storage.tables import Tables

NOTES = Declared("notes")
PEOPLE = Declared("people", (Field("email", "text", unique=True), Field("n", "integer", unique=True)), tombstones=True)

Batch = Sequence[Sequence[Write]]


def note(id: str = "a", size: int = 0) -> list[Write]:
    return [Put(NOTES, id, {"text": "x" * size})]


def named(batch: Batch) -> list[str]:
    """The ids of commits of one `note` each; ``*`` for a query's."""
    return ["*" if isinstance(write, DeleteWhere) else write.id for (write,) in batch]


async def settled() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Disk:
    """A ``write`` that waits until it is told what becomes of each batch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.housekeeping = 0
        self._going: asyncio.Future[None] | None = None
        self.commits = GroupCommit(self._write, self._between)
        self.version = 0

    async def _write(self, batch: Batch) -> Sequence[Commit | Conflict]:
        assert self._going is None, "written to before the last batch was done"
        self.batches.append(batch)
        self._going = asyncio.get_running_loop().create_future()
        try:
            await self._going
        finally:
            self._going = None
        outcomes: list[Commit | Conflict] = []
        for writes in batch:
            first = writes[0]
            if isinstance(first, Put) and first.id.startswith("conflict"):
                outcomes.append(Conflict(0, "notes", first.id, "version", 7))
            else:
                self.version += 1
                outcomes.append(Commit(self.version, (self.version,), (1,)))
        return outcomes

    async def _between(self) -> None:
        self.housekeeping += 1

    async def go(self, error: BaseException | None = None) -> None:
        """Ends the batch that is being written."""
        await settled()
        assert self._going is not None, "nothing is being written"
        if error is None:
            self._going.set_result(None)
        else:
            self._going.set_exception(error)
        await settled()

    def submit(self, *ids: str, size: int = 0) -> list[asyncio.Task[Commit]]:
        return [asyncio.create_task(self.commits.submit(note(id, size))) for id in ids]


@pytest.fixture
def disk() -> Disk:
    return Disk()


# Gathering


async def test_while_one_batch_is_written_the_next_gathers(disk: Disk) -> None:
    first = disk.submit("a")
    await settled()
    rest = disk.submit("b", "c")
    await settled()
    rest += disk.submit("d")
    await disk.go()
    assert [task.done() for task in (*first, *rest)] == [True, False, False, False]
    await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a"], ["b", "c", "d"]]
    assert [(await task).version for task in (*first, *rest)] == [1, 2, 3, 4]
    assert disk.housekeeping == 2


async def test_an_idle_one_begins_at_once_again(disk: Disk) -> None:
    for id in "abc":
        (task,) = disk.submit(id)
        await disk.go()
        assert task.done()
    assert [named(batch) for batch in disk.batches] == [["a"], ["b"], ["c"]]


async def test_each_commit_has_an_outcome_of_its_own(disk: Disk) -> None:
    tasks = disk.submit("a", "conflict 1", "b", "conflict 2")
    await disk.go()
    assert [(await tasks[place]).version for place in (0, 2)] == [1, 2]
    for place, id in (1, "conflict 1"), (3, "conflict 2"):
        with pytest.raises(Conflict, match=id):
            await tasks[place]


async def test_a_batch_holds_a_bounded_number_of_commits(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_BATCH_COMMITS", 3)
    tasks = disk.submit(*"abcdefg")
    for _ in range(3):
        await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert all(task.done() for task in tasks)


async def test_a_batch_holds_a_bounded_number_of_bytes(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_BATCH_BYTES", 10_000)
    tasks = disk.submit("a", "b", size=4_000) + disk.submit("c", size=4_000)
    tasks += disk.submit("one that is larger than a batch", size=20_000) + disk.submit("d", "e")
    for _ in range(4):
        await disk.go()
    assert [named(batch) for batch in disk.batches] == [
        ["a", "b"],
        ["c"],
        ["one that is larger than a batch"],
        ["d", "e"],
    ]
    assert all(task.done() for task in tasks)


async def test_a_query_is_judged_on_what_is_written(disk: Disk) -> None:
    """So it begins a batch."""
    tasks = disk.submit("a", "b")
    tasks.append(asyncio.create_task(disk.commits.submit([DeleteWhere(Query(NOTES))])))
    tasks += disk.submit("c")
    tasks.append(asyncio.create_task(disk.commits.submit([DeleteWhere(Query(NOTES))])))
    for _ in range(3):
        await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a", "b"], ["*", "c"], ["*"]]
    assert [(await task).version for task in tasks] == [1, 2, 3, 4, 5]


# Waiting for room


async def test_beyond_a_bound_committers_wait_before_they_queue(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_WAITING_BYTES", 10_000)
    monkeypatch.setattr(commits, "MAX_BATCH_BYTES", 5_000)
    tasks = disk.submit(*"abcd", size=4_000)
    for _ in range(4):
        await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a"], ["b"], ["c"], ["d"]]
    assert [(await task).version for task in tasks] == [1, 2, 3, 4]


async def test_what_is_larger_than_the_bound_goes_alone(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_WAITING_BYTES", 10_000)
    tasks = disk.submit("a") + disk.submit("large", size=20_000) + disk.submit("b")
    await disk.go()
    await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a", "b"], ["large"]]
    assert all(task.done() for task in tasks)


async def test_who_waits_for_room_may_stop(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_WAITING_BYTES", 5_000)
    tasks = disk.submit("a", "b", "c", size=4_000)
    await settled()
    tasks[1].cancel()
    await disk.go()
    await disk.go()
    assert [named(batch) for batch in disk.batches] == [["a"], ["c"]]
    assert (await tasks[2]).version == 2


# Errors


async def test_where_a_write_fails_every_commit_of_the_batch_does(disk: Disk) -> None:
    tasks = disk.submit("a", "b", "c")
    await settled()
    later = disk.submit("d")
    cause = OSError(28, "No space left on device")
    error = StorageFull("the disk is full")
    error.__cause__ = cause
    await disk.go(error)
    raised = [task.exception() for task in tasks]
    assert [(type(each), str(each)) for each in raised] == [(StorageFull, "the disk is full")] * 3
    assert all(each is not None and each.__cause__ is cause for each in raised)
    assert len({id(each) for each in raised}) == 3  # so that no traceback grows with each that is told
    await disk.go()
    assert (await later[0]).version == 1


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(Conflict(3, "notes", "a", "unique", field="email"), id="with attributes"),
        pytest.param(OSError(28, "No space left on device"), id="of the system"),
        pytest.param(RuntimeError(), id="without a word"),
    ],
)
async def test_an_error_keeps_what_it_says(disk: Disk, error: Exception) -> None:
    (task,) = disk.submit("a")
    await disk.go(error)
    raised = task.exception()
    assert type(raised) is type(error)
    assert (str(raised), vars(raised)) == (str(error), vars(error))


async def test_a_cancelled_committer_harms_no_other(disk: Disk) -> None:
    tasks = disk.submit("a", "b", "c")
    await settled()
    waiting = disk.submit("d", "e", "conflict")
    await settled()
    for task in (tasks[1], waiting[0], waiting[2]):
        task.cancel()
    await disk.go()
    await disk.go()
    assert [(await task).version for task in (tasks[0], tasks[2], waiting[1])] == [1, 3, 5]
    assert all(task.cancelled() for task in (tasks[1], waiting[0], waiting[2]))


async def test_when_it_is_stopped_nobody_is_left_waiting(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the loop's tasks are cancelled; what comes after is written again."""
    monkeypatch.setattr(commits, "MAX_WAITING_BYTES", 10_000)
    written, queued = disk.submit("a"), disk.submit("b", size=5_000)
    await settled()
    queued += disk.submit("c", size=4_000)
    without_room = disk.submit("d", size=9_000)
    await disk.go(asyncio.CancelledError())
    for task in *written, *queued:
        with pytest.raises(StorageUnavailable, match="stopped"):
            await asyncio.wait_for(task, 60)
    await disk.go()
    assert (await without_room[0]).version == 1


# Closing


async def test_closing_lets_the_waiting_commits_finish(disk: Disk) -> None:
    tasks = disk.submit("a")
    await settled()
    tasks += disk.submit("b")
    await settled()
    closing = asyncio.create_task(disk.commits.close())
    await settled()
    with pytest.raises(StorageUnavailable, match="closed"):
        await disk.commits.submit(note("late"))
    await disk.go()
    assert not closing.done()
    await disk.go()
    await closing
    assert [(await task).version for task in tasks] == [1, 2]


async def test_closing_turns_away_who_waits_for_room(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_WAITING_BYTES", 5_000)
    tasks = disk.submit("a", "b", size=4_000)
    await settled()
    closing = asyncio.create_task(disk.commits.close())
    await disk.go()
    await closing
    assert (await tasks[0]).version == 1
    with pytest.raises(StorageUnavailable, match="closed"):
        await tasks[1]


async def test_closing_an_idle_one(disk: Disk) -> None:
    await disk.commits.close()
    await disk.commits.close()
    with pytest.raises(StorageUnavailable):
        await disk.commits.submit([])


# Observing


async def test_who_watches_is_told_how_long_a_commit_waited_and_took(disk: Disk) -> None:
    told: list[CommitTimes] = []

    async def pause() -> None:
        await settled()
        await asyncio.sleep(0.02)

    first = asyncio.create_task(disk.commits.submit(note("a"), told.append))
    await pause()
    second = asyncio.create_task(disk.commits.submit(note("b"), told.append))
    await pause()
    await disk.go()
    await pause()
    await disk.go()
    await asyncio.gather(first, second)
    (a, b) = told
    assert a.queued < 0.02 <= b.queued
    assert min(a.written, b.written) >= 0.02
    assert (a.outcome, b.outcome) == ("done", "done")


async def test_who_watches_is_told_what_became_of_it(disk: Disk) -> None:
    told: list[CommitTimes] = []
    conflict = asyncio.create_task(disk.commits.submit(note("conflict"), told.append))
    await settled()
    await disk.go()
    full = asyncio.create_task(disk.commits.submit(note(), told.append))
    await settled()
    await disk.go(StorageFull("full"))
    await asyncio.gather(conflict, full, return_exceptions=True)
    cancelled = asyncio.create_task(disk.commits.submit(note(), told.append))
    await settled()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await disk.go()
    assert [times.outcome for times in told] == ["conflict", "failed", "failed"]


async def test_batches_are_not_of_the_context_of_who_came_first(disk: Disk) -> None:
    name = ContextVar("name", default="nobody")
    seen = []
    between = disk._between

    async def watched() -> None:
        seen.append(name.get())
        await between()

    disk.commits = GroupCommit(disk._write, watched)
    name.set("somebody")
    [task] = disk.submit("a")
    await settled()
    await disk.go()
    await task
    await settled()
    assert seen == ["nobody"]


# Resolving


class Asked:
    """Tables that remember what they were asked for."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.tables.declare(NOTES)
        self.tables.declare(PEOPLE)
        self.keys: set[Key] = set()
        self.values: set[UniqueValue] = set()

    def versions(self, keys: Collection[Key]) -> Mapping[Key, int]:
        self.keys.update(keys)
        return self.tables.versions(keys)

    def holders(self, values: Collection[UniqueValue]) -> Mapping[UniqueValue, str]:
        self.values.update(values)
        return self.tables.holders(values)

    def select(self, query: Query) -> Sequence[str]:
        return self.tables.select(query)

    def commit(self, *batch: Sequence[Write]) -> Resolution:
        resolution = resolve(batch, self, self.tables.version)
        self.tables.apply(resolution.written, resolution.version)
        return resolution


def person(id: str, email: str | None = None, n: int | None = None, if_version: int | None = None) -> Put:
    return Put(PEOPLE, id, {"email": email, "n": n}, if_version)


def test_what_a_batch_comes_to() -> None:
    state = Asked()
    resolution = state.commit(
        [person("a", "x"), person("b", "y")],
        [person("c", "x")],
        [Put(NOTES, "a", {}), Delete(PEOPLE, "a", if_version=1)],
        [person("c", "x"), Delete(NOTES, "a")],
        [Put(NOTES, "a", {}), Delete(NOTES, "none")],
    )
    assert [type(outcome) for outcome in resolution.outcomes] == [Commit, Conflict, Commit, Commit, Commit]
    assert [(w.collection.name, w.id, w.version, w.put is None) for w in resolution.written] == [
        ("people", "a", 1, False),
        ("people", "b", 2, False),
        ("notes", "a", 3, False),
        ("people", "a", 4, True),
        ("people", "c", 5, False),
        ("notes", "a", 6, True),
        ("notes", "a", 7, False),
    ]
    assert {(w.collection.name, w.id): w.version for w in resolution.latest()} == {
        ("people", "a"): 4,
        ("people", "b"): 2,
        ("people", "c"): 5,
        ("notes", "a"): 7,
    }
    assert resolution.floors() == {"notes": 6}  # people has tombstones
    assert resolution.version == 7
    assert [write.change.document for write in resolution.written][3:5] == [None, b'{"email":"x","n":null}']


def test_the_state_is_asked_for_what_a_commit_depends_on_alone() -> None:
    state = Asked()
    state.commit(
        [Put(NOTES, "put", {}), Put(NOTES, "if", {}, if_version=ABSENT), Delete(NOTES, "delete")],
        [Check(NOTES, "check", if_version=ABSENT), person("a", "x"), person("b", None, 7)],
    )
    assert state.keys == {("notes", "if"), ("notes", "delete"), ("notes", "check")}
    assert state.values == {("people", 0, "x"), ("people", 1, 7)}


def test_a_query_later_in_a_batch_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="first commit"):
        Asked().commit(note("a"), [DeleteWhere(Query(NOTES))])


IDS = st.sampled_from(["a", "b", "c"])
VERSIONS = st.sampled_from([None, None, None, 0, 1, 2, 3, 4, 5])
EMAILS = st.sampled_from([None, "x", "y", "z"])
WRITES: st.SearchStrategy[Write] = st.one_of(
    st.builds(person, IDS, EMAILS, st.sampled_from([None, 1, 2]), VERSIONS),
    st.builds(person, IDS, EMAILS),
    st.builds(Delete, st.sampled_from([PEOPLE, NOTES]), IDS, VERSIONS),
    st.builds(Check, st.just(PEOPLE), IDS, st.integers(0, 5)),
    st.builds(Put, st.just(NOTES), IDS, st.just(b"{}"), VERSIONS),
)
WHERES = st.builds(
    lambda email, limit: DeleteWhere(Query(PEOPLE, (Filter("email", "==", email),), limit=limit)),
    EMAILS,
    st.sampled_from([None, 1]),
)


def one_each(writes: Iterable[Write]) -> list[Write]:
    """Without a second write of an id."""
    seen: set[tuple[type, str, str]] = set()
    kept: list[Write] = []
    for write in writes:
        if not isinstance(write, DeleteWhere):
            key = (Check if isinstance(write, Check) else Put, write.collection.name, write.id)
            if key in seen:
                continue
            seen.add(key)
        kept.append(write)
    return kept


COMMITS = st.lists(WRITES, max_size=4).map(one_each)
FIRST: st.SearchStrategy[list[Write]] = st.lists(st.one_of(WRITES, WHERES), max_size=4).map(one_each)


@given(st.lists(st.tuples(FIRST, st.lists(COMMITS, max_size=5)), max_size=4))
def test_a_batch_is_its_commits_one_after_another(batches: list[tuple[list[Write], list[list[Write]]]]) -> None:
    together, apart = Asked(), Asked()
    for first, rest in batches:
        resolution = together.commit(first, *rest)
        alone = [apart.commit(writes) for writes in (first, *rest)]
        assert list(map(told, resolution.outcomes)) == [told(outcome) for one in alone for outcome in one.outcomes]
        assert resolution.written == [write for one in alone for write in one.written]
        for state in together.tables, apart.tables:
            for table in state.tables.values():
                table.check_unique()
    for name in "notes", "people":
        one, other = (state.tables.tables[name].changes(0, 100, 0, state.tables.version) for state in (together, apart))
        assert one == other


def told(outcome: Commit | Conflict) -> object:
    return vars(outcome) if isinstance(outcome, Conflict) else outcome
