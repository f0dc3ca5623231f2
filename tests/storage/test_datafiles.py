"""storage/file/datafiles.py: what people find in a store, what they may do to it, and what is refused."""

from __future__ import annotations

import errno
import json
import re
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from homeport.storage import (
    Collection,
    Conflict,
    Delete,
    Field,
    Filter,
    Gone,
    Put,
    Query,
    StorageDamaged,
    StorageFull,
    Tombstones,
)
from homeport.storage.file import FileStorage
from homeport.storage.file.checkpoint import Folder
from homeport.storage.file.recovery import recover

from .disks import Disk, PowerLoss, copy, use

LINES = Collection("lines", (Field("n", "integer", indexed=True), Field("u", "text", unique=True)), tombstones=True)
FILES = Collection("files", (Field("u", "text", unique=True),), tombstones=True, layout="files")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FileStorage]:
    async with FileStorage(path) as storage:
        await storage.declare(LINES, FILES)
        yield storage


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A store that was closed, at version 8: a and b as lines and as files, c and d deleted."""
    path = tmp_path / "store"
    async with opened(path) as storage:
        for collection in LINES, FILES:
            puts = [Put(collection, id, b'{"n": 1, "u": "%b"}' % id.encode()) for id in "abc"]
            await storage.commit(puts)
            await storage.commit([Delete(collection, "c")])
    return path


def lines(path: Path) -> Path:
    return path / "data" / "lines.jsonl"


def files(path: Path) -> Path:
    return path / "data" / "files"


async def holds(path: Path, collection: Collection) -> dict[str, tuple[int, bytes | None]]:
    """Version and document of every record and tombstone; the same when the store is opened once more."""
    async with opened(path) as storage:
        first = await storage.changes(collection, 0, 100)
    manifest = (path / "manifest").read_bytes()
    assert b'"version":%d,' % first.store_version in manifest
    async with opened(path) as storage:
        assert await storage.changes(collection, 0, 100) == first
    assert (path / "manifest").read_bytes() == manifest
    return {change.id: (change.version, change.document) for change in first.changes}


# What is there


async def test_a_line_a_record_in_order_of_id(path: Path) -> None:
    assert [re.sub("[0-9a-f]{8}", "…", line) for line in lines(path).read_text().splitlines()] == [
        '{"id":"a","version":1,"checksum":"…","record":{"n": 1, "u": "a"}}',
        '{"id":"b","version":2,"checksum":"…","record":{"n": 1, "u": "b"}}',
    ]


async def test_a_file_a_record_is_the_document(path: Path) -> None:
    assert sorted(path.name for path in files(path).iterdir()) == ["a.json", "b.json"]
    assert (files(path) / "a.json").read_text() == '{"n": 1, "u": "a"}\n'


async def test_all_of_it_is_the_owners(path: Path) -> None:
    for each in [path, *path.rglob("*"), path.with_name("store.lock")]:
        assert stat.S_IMODE(each.stat().st_mode) == (0o700 if each.is_dir() else 0o600), each


async def test_nothing_is_written_where_nothing_has_changed(path: Path) -> None:
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}
    async with opened(path):
        pass
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}.keys() == before.keys()
    assert (path / "manifest").stat().st_mtime_ns == before[path / "manifest"]


async def test_only_files_that_have_changed_are_written(path: Path) -> None:
    before = {name: (files(path) / name).stat().st_ino for name in ("a.json", "b.json")}
    async with opened(path) as storage:
        await storage.commit([Put(FILES, "a", b"{}")])
    after = {name: (files(path) / name).stat().st_ino for name in ("a.json", "b.json")}
    assert after["a.json"] != before["a.json"]
    assert after["b.json"] == before["b.json"]


async def test_another_layout_leaves_nothing_behind(path: Path) -> None:
    async with opened(path) as storage:
        await storage.declare(replace(LINES, layout="files"), replace(FILES, layout="lines"))
    assert sorted(str(each.relative_to(path)) for each in path.glob("data/**/*")) == [
        *["data/files", "data/files.jsonl", "data/lines", "data/lines/a.json", "data/lines/b.json"]
    ]


async def test_what_is_forgotten_is_not_in_the_index(path: Path) -> None:
    index = path / "index" / "lines.idx"
    assert index.read_text().endswith('["c",4,null]\n')
    async with opened(path) as storage:
        await storage.purge(Tombstones(LINES, 4))
    assert not index.exists()


# Edits


Edit = Callable[[Path], object]


def replaces(old: str, new: str) -> Edit:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def appends(line: str) -> Edit:
    return lambda path: path.write_text(path.read_text() + line)


def per_line(change: Callable[[list[str]], list[str]], end: str = "\n") -> Edit:
    return lambda path: path.write_text("".join(line + end for line in change(path.read_text().splitlines())))


A = (1, b'{"n": 1, "u": "a"}')
B = (2, b'{"n": 1, "u": "b"}')
C = (4, None)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param(replaces('{"n": 1, "u": "a"}', '{"n":2}'), {"a": (9, b'{"n":2}')}, id="a record"),
        pytest.param(
            replaces('"n": 1', '"n": 2'),
            {"a": (9, b'{"n": 2, "u": "a"}'), "b": (10, b'{"n": 2, "u": "b"}')},
            id="all records",
        ),
        pytest.param(appends('{"id": "d", "record": {"n":4}}\n'), {"d": (9, b'{"n":4}')}, id="a line more"),
        pytest.param(appends('{"record":{},"id":"c"}'), {"c": (9, b"{}")}, id="a deleted record, no line break"),
        pytest.param(
            lambda path: (replaces('"u": "a"', '"u": "x"')(path), replaces('"u": "b"', '"u": "a"')(path)),
            {"a": (9, b'{"n": 1, "u": "x"}'), "b": (10, b'{"n": 1, "u": "a"}')},
            id="a unique value handed over",
        ),
        pytest.param(per_line(lambda lines: lines[::-1]), {}, id="another order"),
        pytest.param(per_line(lambda lines: [*lines, " \t"], "\r\n\r\n"), {}, id="line breaks of DOS, blank lines"),
        pytest.param(per_line(lambda lines: lines, " \n"), {}, id="blanks at the end of lines"),
        pytest.param(
            per_line(lambda lines: [json.dumps(json.loads(line)) for line in lines]),
            {"a": (9, A[1]), "b": (10, B[1])},
            id="written anew by a tool",
        ),
    ],
)
async def test_lines_may_be_edited(path: Path, edit: Edit, expected: dict[str, tuple[int, bytes | None]]) -> None:
    edit(lines(path))
    assert await holds(path, LINES) == {"a": A, "b": B, "c": C} | expected
    for text in filter(str.strip, lines(path).read_text().splitlines()):
        assert json.loads(text).keys() == {"id", "version", "checksum", "record"}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param(per_line(lambda lines: lines[1:]), {"b": B}, id="a line removed"),
        pytest.param(lambda path: path.write_text(""), {}, id="all lines removed"),
        pytest.param(replaces('"id":"a"', '"id":"A"'), {"A": (9, A[1]), "b": B}, id="an id changed"),
        pytest.param(
            per_line(lambda lines: [lines[0], lines[1].replace("b", "d"), *lines[1:]]),
            {"a": A, "b": B, "d": (9, b'{"n": 1, "u": "d"}')},
            id="a line copied with its checksum",
        ),
        pytest.param(
            per_line(lambda lines: [*lines[1:], '{"id":"d","record":{}}']),
            {"b": B, "d": (9, b"{}")},
            id="one removed, one added",
        ),
    ],
)
async def test_after_a_line_is_gone_clients_start_over(
    path: Path, edit: Edit, expected: dict[str, tuple[int, bytes | None]]
) -> None:
    edit(lines(path))
    assert await holds(path, LINES) == expected | {"c": C}
    async with opened(path) as storage:
        with pytest.raises(Gone):
            await storage.changes(LINES, 8, 100)
        version = (await storage.changes(LINES, 0, 100)).store_version
        assert (await storage.changes(LINES, version, 100)).changes == ()


async def test_after_an_older_line_is_put_back_clients_start_over(path: Path) -> None:
    older = lines(path).read_text()
    async with opened(path) as storage:
        await storage.commit([Put(LINES, "a", {}), Put(LINES, "c", {})])
    lines(path).write_text(older + lines(path).read_text().splitlines()[2])
    assert await holds(path, LINES) == {"a": A, "b": B, "c": (10, b"{}")}
    async with opened(path) as storage:
        with pytest.raises(Gone):
            await storage.changes(LINES, 10, 100)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param(
            lambda folder: (folder / "a.json").write_text('{\n  "n": 2\n}\n'),
            {"a": (9, b'{   "n": 2 }')},
            id="a document",
        ),
        pytest.param(lambda folder: (folder / "%41%2f.json").write_text("{}"), {"A/": (9, b"{}")}, id="a file more"),
        pytest.param(lambda folder: (folder / "c.json").write_text("{}"), {"c": (9, b"{}")}, id="a deleted record"),
        pytest.param(lambda folder: (folder / "a.json").unlink(), {"a": (9, None)}, id="a file removed"),
        pytest.param(
            lambda folder: (folder / "a.json").rename(folder / "x.json"),
            {"a": (10, None), "x": (9, A[1])},
            id="a file renamed",
        ),
        pytest.param(lambda folder: (folder / "a.json").write_bytes(A[1]), {}, id="no line break at the end"),
        pytest.param(lambda folder: (folder / "a.json").touch(), {}, id="only touched"),
        pytest.param(
            lambda folder: [(folder / name).write_text("no JSON") for name in (".a.json.swp", "a.json~", ".#a.json")],
            {},
            id="what editors leave",
        ),
    ],
)
async def test_files_may_be_edited(path: Path, edit: Edit, expected: dict[str, tuple[int, bytes | None]]) -> None:
    edit(files(path))
    before = {"a": (5, A[1]), "b": (6, B[1]), "c": (8, None)}
    assert await holds(path, FILES) == before | expected


async def test_an_edit_is_found_by_its_fields(path: Path) -> None:
    replaces('"n": 1, "u": "b"', '"n": 7, "u": "x"')(lines(path))
    async with opened(path) as storage:
        found = await storage.find(Query(LINES, (Filter("n", "==", 7),)))
        assert [record.id for record in found.records] == ["b"]
        with pytest.raises(Conflict):
            await storage.commit([Put(LINES, "d", {"u": "x"})])


async def test_an_edit_comes_after_what_is_in_the_journal(path: Path, tmp_path: Path) -> None:
    async with opened(path) as storage:
        await storage.commit([Put(LINES, "a", {"n": 5}), Put(LINES, "b", {"n": 6})])
        killed = copy(path, tmp_path / "killed")
    replaces('"n": 1, "u": "a"', '"n": 7')(lines(killed))
    assert await holds(killed, LINES) == {"a": (11, b'{"n": 7}'), "b": (10, b'{"n":6}'), "c": C}


async def test_files_put_where_a_collection_begins_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with opened(path):
        killed = copy(path, tmp_path / "killed")
    lines(killed).write_text('{"id":"a","record":{}}')
    files(killed).mkdir()
    (files(killed) / "b.json").write_text("{}")
    assert await holds(killed, LINES) == {"a": (1, b"{}")}
    assert await holds(killed, FILES) == {"b": (2, b"{}")}


@pytest.mark.parametrize("seed", range(5))
async def test_a_file_that_is_put_back_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Also when the power is lost after a checkpoint has removed it, and the person is faster than the next server."""
    (tmp_path / "before").mkdir()
    with monkeypatch.context() as patch:
        use(patch, power := PowerLoss())
        for write in Put(FILES, "a", b"{}"), Delete(FILES, "a"):
            async with opened(tmp_path / "before" / "store") as storage:
                await storage.commit([write])
    power.restore(tmp_path / "before", tmp_path / "after", Random(seed))
    power.forget()
    (files(tmp_path / "after" / "store") / "a.json").write_text("{}")
    assert await holds(tmp_path / "after" / "store", FILES) == {"a": (3, b"{}")}


async def test_an_edit_that_cannot_be_made_durable_is_not_taken_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaces('"n": 1, "u": "a"', '"n": 7')(lines(path))
    with monkeypatch.context() as patch:
        use(patch, disk := Disk(lambda call: errno.ENOSPC if disk.calls[-1] == "write" else None))
        with pytest.raises(StorageFull):
            await FileStorage(path).open()
    assert (await holds(path, LINES))["a"] == (9, b'{"n": 7}')


# Damage


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(replaces('{"n": 1, "u": "b"}', '{"n": 1'), ", line 2: Input data was truncated", id="no JSON"),
        pytest.param(replaces('{"n": 1, "u": "b"}', "[]"), ", line 2: must be a JSON object", id="no object"),
        pytest.param(replaces('"n": 1, "u": "b"', '"n": 1e999'), ", line 2: holds a number out", id="a number"),
        pytest.param(replaces('"n": 1, "u": "b"', '"n": "x"'), ", line 2: n must be an integer or null", id="a type"),
        pytest.param(
            replaces('"u": "b"', '"u": "a"'), ", line 2: u must be unique, and another record has the same", id="taken"
        ),
        pytest.param(replaces('"u": "a"', '"u": "b"'), ", line 1: u must be unique", id="taken by the first"),
        pytest.param(replaces('"id":"b"', '"id":"a"'), ", line 2: the id 'a' stands twice", id="an id twice"),
        pytest.param(replaces('"id":"b"', '"id":""'), ", line 2: id must be 1 to 2048 bytes", id="no id"),
        pytest.param(replaces('"id":"b"', '"id":3'), ", line 2: Expected `str`", id="an id of another type"),
        pytest.param(replaces('"id":"b",', ""), ", line 2: .*missing required field `id`", id="without id"),
        pytest.param(replaces('"id":"b"', '"id":"b","x":1'), ", line 2: .*unknown field `x`", id="an unknown member"),
        pytest.param(appends("garbage"), ", line 3: ", id="garbage"),
        pytest.param(appends('{"id":"d","record":' + "[" * 10000), ", line 3: ", id="nested too deep"),
        pytest.param(Path.unlink, " is missing", id="the file is gone"),
    ],
)
async def test_lines_that_cannot_be_taken_in_are_named(path: Path, edit: Edit, message: str) -> None:
    edit(lines(path))
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    for _ in range(2):
        with pytest.raises(StorageDamaged, match=re.escape(str(lines(path))) + message):
            await FileStorage(path).open()
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda folder: (folder / "a.json").write_text("{"), r"/a\.json: is not JSON", id="no JSON"),
        pytest.param(lambda folder: (folder / "a.json").write_text(""), r"/a\.json: is not JSON", id="empty"),
        pytest.param(
            lambda folder: (folder / "x.json").write_text("[]"), r"/x\.json: must be a JSON object", id="a new one"
        ),
        pytest.param(
            lambda folder: (folder / "a.json").write_bytes(B[1]), r"/a\.json: u must be unique", id="a value taken"
        ),
        pytest.param(
            lambda folder: (folder / "Hello.json").write_text("{}"),
            r"/Hello\.json: no id has this file name",
            id="a name",
        ),
        pytest.param(shutil.rmtree, r"files is missing", id="the folder is gone"),
    ],
)
async def test_files_that_cannot_be_taken_in_are_named(path: Path, edit: Edit, message: str) -> None:
    edit(files(path))
    with pytest.raises(StorageDamaged, match=message):
        await FileStorage(path).open()


async def test_a_bit_that_flips_is_noticed_in_every_file(path: Path) -> None:
    for each in [each for each in path.rglob("*") if each.is_file()]:
        whole = each.read_bytes()
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            each.write_bytes(damaged)
            try:
                store = recover(Folder(path))
            except StorageDamaged as error:
                assert str(each) in str(error) or each.parent == files(path)  # noqa: PT017 - or it is taken for an edit
            else:
                assert store.edited or damaged.isspace()
        each.write_bytes(whole)
