"""storage/sqlite/recent.py: the records that SQLite is not asked for."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from homeport.storage import Check, Collection, Conflict, Delete, DeleteWhere, Field, Put, Query, open_storage
from homeport.storage.commits import Written
from homeport.storage.records import Record
from homeport.storage.sqlite.recent import MAX_DOCUMENT, Recent

NOTES = Collection("notes")
USERS = Collection("users", (Field("email", "text", unique=True), Field("age", "integer")))


def record(id: str, version: int, size: int = 0) -> Record:
    return Record(id, version, b'{"text":"' + b"x" * size + b'"}')


@pytest.fixture
def recent() -> Recent:
    recent = Recent()
    recent.add(NOTES, [record("a", 1), record("b", 2)])
    return recent


def test_records_are_found_together_or_not_at_all(recent: Recent) -> None:
    assert recent.get(NOTES, ["a", "b"]) == {"a": record("a", 1), "b": record("b", 2)}
    assert recent.get(NOTES, ["a", "c"]) is None
    assert recent.get(USERS, ["a"]) is None


def test_what_is_being_written_is_not_here_until_it_is(recent: Recent) -> None:
    put = Put(NOTES, "a", b'{"text":"new"}')
    known = recent.take([[put, Check(NOTES, "b", 2)]])
    assert {key: held.version for key, held in known.items()} == {("notes", "a"): 1, ("notes", "b"): 2}
    recent.add(NOTES, [record("a", 1)])  # read before the batch was durable
    assert recent.get(NOTES, ["a"]) is None
    assert recent.get(NOTES, ["b"])
    recent.give([Written(NOTES, "a", 3, put)])
    assert recent.get(NOTES, ["a"]) == {"a": Record("a", 3, b'{"text":"new"}')}


def test_what_is_deleted_is_forgotten(recent: Recent) -> None:
    recent.take([[Delete(NOTES, "a")]])
    recent.give([Written(NOTES, "a", 3, None)])
    assert recent.get(NOTES, ["a"]) is None
    assert recent.get(NOTES, ["b"])


def test_a_query_may_delete_whatever_there_is(recent: Recent) -> None:
    assert recent.take([[DeleteWhere(Query(NOTES))]]) == {}
    recent.add(NOTES, [record("a", 1)])  # read before the batch was durable
    assert recent.get(NOTES, ["a"]) is None
    recent.give([Written(NOTES, "a", 3, None)])
    assert recent.get(NOTES, ["a"]) is None
    recent.add(NOTES, [record("b", 2)])
    assert recent.get(NOTES, ["b"])


def test_what_is_written_but_was_not_read_takes_no_room(recent: Recent) -> None:
    put = Put(NOTES, "c", {})
    recent.take([[put]])
    recent.give([Written(NOTES, "c", 3, put)])
    assert recent.get(NOTES, ["c"]) is None


def test_what_a_batch_did_not_write_after_all_is_here_again(recent: Recent) -> None:
    recent.take([[Put(NOTES, "a", {}, if_version=7)]])
    recent.give([])
    assert recent.get(NOTES, ["a"]) == {"a": record("a", 1)}


def test_after_a_failed_batch_what_it_would_have_written_is_read_anew(recent: Recent) -> None:
    recent.take([[Put(NOTES, "a", {})]])
    recent.take([[Put(NOTES, "c", {})]])
    recent.give([])
    assert recent.get(NOTES, ["a"]) is None
    recent.add(NOTES, [record("a", 5)])
    assert recent.get(NOTES, ["a"]) == {"a": record("a", 5)}


def test_the_ones_not_asked_for_longest_make_room() -> None:
    recent = Recent(3)
    recent.add(NOTES, [record("a", 1), record("b", 2)])
    assert recent.get(NOTES, ["a"])
    recent.add(NOTES, [record("c", 3), record("d", 4)])
    assert [id for id in "abcd" if recent.get(NOTES, [id])] == ["a", "c", "d"]


def test_large_documents_are_read_each_time(recent: Recent) -> None:
    recent.add(NOTES, [record("c", 3, MAX_DOCUMENT)])
    assert recent.get(NOTES, ["c"]) is None
    put = Put(NOTES, "a", {"text": "x" * MAX_DOCUMENT})
    recent.take([[put]])
    recent.give([Written(NOTES, "a", 4, put)])
    assert recent.get(NOTES, ["a"]) is None


async def test_a_record_that_was_read_costs_no_statement(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "a", {"n": 1})])
        await storage.get(NOTES, ["a"])
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE notes SET document = 'changed behind its back'")
            other.commit()
        assert (await storage.get(NOTES, ["a"]))["a"].decode() == {"n": 1}


async def test_values_that_are_known_are_unique_all_the_same(tmp_path: Path) -> None:
    async with open_storage(f"sqlite:{tmp_path / 'store.db'}", [USERS]) as storage:
        await storage.commit([Put(USERS, "a", {"email": "a@x", "age": 1}), Put(USERS, "b", {"email": "b@x", "age": 1})])
        for known in ([], ["a"], ["a", "b"]):
            await storage.get(USERS, known)
            with pytest.raises(Conflict) as conflict:
                await storage.commit([Put(USERS, "a", {"email": "b@x"})])
            assert conflict.value.field == "email"
            await storage.commit([Put(USERS, "a", {"email": "a@x", "age": 2})])
        swapped = [Put(USERS, "a", {"email": "b@x"}), Put(USERS, "b", {"email": "a@x"})]
        await storage.commit(swapped)
        await storage.commit([Put(USERS, "a", {"email": "c@x"})])
        await storage.commit([Put(USERS, "c", {"email": "b@x"})])
        found = await storage.get(USERS, ["a", "b", "c"])
        assert [found[id].decode()["email"] for id in "abc"] == ["c@x", "a@x", "b@x"]


async def test_nobody_sees_the_older_after_the_newer(tmp_path: Path) -> None:
    """One writer, readers of the one record by both ways of reading: none ever goes back."""
    async with open_storage(f"sqlite:{tmp_path / 'store.db'}", [NOTES]) as storage:
        await storage.commit([Put(NOTES, "a", {"n": 0})])
        seen = 0
        done = asyncio.Event()

        async def read() -> None:
            nonlocal seen
            while not done.is_set():
                for found in (
                    lambda: storage.get(NOTES, ["a"]),
                    lambda: storage.find(Query(NOTES, limit=1)),
                ):
                    least = seen
                    result = await found()
                    version = (result["a"] if isinstance(result, dict) else result.records[0]).version
                    assert version >= least
                    seen = max(seen, version)
                await asyncio.sleep(0)

        readers = [asyncio.create_task(read()) for _ in range(4)]
        for n in range(300):
            commit = await storage.commit([Put(NOTES, "a", {"n": n})])
            assert (await storage.get(NOTES, ["a"]))["a"].version == commit.version
        done.set()
        await asyncio.gather(*readers)
