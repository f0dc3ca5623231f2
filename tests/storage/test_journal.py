"""storage/file/journal.py, sealed.py: what is whole is read, what is torn is cut away, what is damaged is refused."""

import errno
import re
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.storage import Collection, Field, Put, StorageDamaged, StorageFull, StorageUnavailable
from homeport.storage.commits import Written
from homeport.storage.file.journal import Entry, Journal
from homeport.storage.file.sealed import may_be_torn, seal, unseal

from .disks import Disk, once, use

NOTES = Collection("notes", (Field("n", "integer", unique=True),), tombstones=True)


def entry(version: int, *documents: bytes | None) -> Entry:
    """Writes that end at a version."""
    written = [
        Written(NOTES, f"{n}/é", at, None if document is None else Put(NOTES, f"{n}/é", document))
        for n, (at, document) in enumerate(
            zip(range(version - len(documents) + 1, version + 1), documents, strict=True)
        )
    ]
    return Entry.of(written, version)


ENTRIES = [
    Entry(0, declared=[NOTES]),
    entry(1, b'{"a":1}'),
    entry(4, b"{}", None, b' \t{"a":-0.0} '),
    Entry(4, forgotten={"notes": 3}),
    entry(5, b'{"a":"\xf0\x9f\x98\x80"}'),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of `ENTRIES`."""
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder)
    journal.create()
    for each in ENTRIES:
        journal.append(each)
    journal.close()
    return folder


def read(folder: Path, first: int = 1, version: int = 0) -> list[Entry]:
    journal = Journal(folder)
    entries = list(journal.replay(first, version))
    journal.close()
    return entries


def test_it_is_read_as_it_was_written(folder: Path) -> None:
    assert [list(each.changes()) for each in read(folder)] == [list(each.changes()) for each in ENTRIES]
    assert [(e.version, e.declared, e.forgotten) for e in read(folder)] == [
        (e.version, e.declared, e.forgotten) for e in ENTRIES
    ]


def test_documents_are_kept_to_the_byte(folder: Path) -> None:
    changes = list(read(folder)[2].changes())
    assert [(change.version, change.document) for change in changes] == [(2, b"{}"), (3, None), (4, b' \t{"a":-0.0} ')]


def test_an_entry_is_a_line_that_people_can_read(folder: Path) -> None:
    lines = (folder / "1.log").read_text().splitlines()
    text = '{"version":1,"writes":[["notes","0/é",{"a":1}]]}'
    assert lines[1] == f"{len(text.encode()):08x} {crc32(text.encode()):08x} {text}"
    assert len(lines) == len(ENTRIES)


def test_cut_anywhere_it_holds_what_was_whole(folder: Path) -> None:
    path = folder / "1.log"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        entries = read(folder)
        assert len(entries) == sum(len(b"".join(lines[: n + 1])) <= size for n in range(len(lines)))
        assert path.read_bytes() == b"".join(lines[: len(entries)])


@pytest.mark.parametrize("garbage", [b"\0" * 50, b"0", b"\xff", seal(b"{}")[:-1], b"\0" * 20 + seal(b"{}")])
def test_garbage_at_the_end_is_cut_away(folder: Path, garbage: bytes) -> None:
    path = folder / "1.log"
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    assert len(read(folder)) == len(ENTRIES)
    assert path.read_bytes() == whole


def test_a_bit_that_flips_is_named(folder: Path) -> None:
    path = folder / "1.log"
    whole = bytearray(path.read_bytes())
    last = whole[:-1].rindex(b"\n") + 1
    for at in range(last):
        damaged = whole.copy()
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        line = whole[:at].count(b"\n") + 1
        with pytest.raises(StorageDamaged, match=rf"^{re.escape(str(path))}, line {line}: "):
            read(folder)
        assert path.read_bytes() == damaged


def test_a_line_that_is_missing_is_noticed(folder: Path) -> None:
    path = folder / "1.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(StorageDamaged, match=r"1\.log: versions after 0 are missing$"):
        read(folder)


def test_a_journal_that_begins_later_is_noticed(folder: Path) -> None:
    with pytest.raises(StorageDamaged, match=r"1\.log: versions after 7 are missing$"):
        read(folder, version=7)


# Segments


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rotated(folder: Path) -> Journal:
    """Three segments, the last without an entry."""
    journal = Journal(folder)
    list(journal.replay(1, 0))
    assert journal.rotate() == 2
    journal.append(entry(6, b"{}"))
    assert journal.rotate() == 3
    return journal


def test_segments_follow_each_other(folder: Path) -> None:
    rotated(folder).close()
    assert [each.version for each in read(folder)] == [0, 1, 4, 4, 5, 6]
    assert [each.version for each in read(folder, first=2, version=5)] == [6]


def test_what_is_dropped_is_gone(folder: Path) -> None:
    journal = rotated(folder)
    whole = sum(path.stat().st_size for path in folder.iterdir())
    assert journal.size == whole
    journal.drop(2)
    assert segments(folder) == ["2.log", "3.log"]
    assert journal.size == (folder / "2.log").stat().st_size
    journal.append(entry(7, b"{}"))
    journal.close()
    assert [each.version for each in read(folder, first=2, version=5)] == [6, 7]


def test_an_empty_segment_at_the_end_does_not_count(folder: Path) -> None:
    rotated(folder).close()
    (folder / "2.log").write_bytes((folder / "2.log").read_bytes()[:-1])
    assert [each.version for each in read(folder)] == [0, 1, 4, 4, 5]
    assert segments(folder) == ["1.log", "2.log"]


@pytest.mark.parametrize(("missing", "first"), [("1.log", 1), ("2.log", 1), ("2.log", 2)])
def test_a_missing_segment_is_named(folder: Path, missing: str, first: int) -> None:
    journal = rotated(folder)
    journal.append(entry(7, b"{}"))
    journal.close()
    (folder / missing).unlink()
    with pytest.raises(StorageDamaged, match=rf"{missing} is missing$"):
        read(folder, first, version=0 if first == 1 else 5)


def test_only_the_last_segment_may_be_torn(folder: Path) -> None:
    journal = rotated(folder)
    journal.append(entry(7, b"{}"))
    journal.close()
    (folder / "2.log").write_bytes((folder / "2.log").read_bytes()[:-1])
    with pytest.raises(StorageDamaged, match=r"2\.log, line 1: "):
        read(folder)


# Disks that fail


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "1.log").read_bytes()
    journal = Journal(folder)
    list(journal.replay(1, 0))
    # write, fsync; then, as it is repaired: open, ftruncate, fsync
    for at, code, error in [(1, errno.ENOSPC, StorageFull), (2, errno.EIO, StorageUnavailable)]:
        with monkeypatch.context() as patch:
            use(patch, Disk(once(at, code)))
            with pytest.raises(error, match=r"^cannot write .*/1\.log: ") as raised:
                journal.append(entry(6, b"{}"))
            assert isinstance(raised.value.__cause__, OSError)
        assert (folder / "1.log").read_bytes() == before
    journal.append(entry(6, b"{}"))
    journal.close()
    assert [each.version for each in read(folder)] == [0, 1, 4, 4, 5, 6]


@pytest.mark.parametrize("at", [3, 4, 5], ids=["open", "ftruncate", "fsync"])
def test_what_cannot_be_cut_away_is_so_before_anything_follows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = (folder / "1.log").read_bytes()
    journal = Journal(folder)
    list(journal.replay(1, 0))
    with monkeypatch.context() as patch:
        disk = Disk(lambda call: errno.EROFS if call == 2 or call >= at else None)
        use(patch, disk)
        with pytest.raises(StorageUnavailable, match=r"^cannot write .*/1\.log: Read-only file system$"):
            journal.append(entry(6, b"{}"))
        for attempt in (lambda: journal.append(entry(6, b"{}")), journal.rotate, journal.be_whole):
            with pytest.raises(StorageUnavailable, match=r"^cannot repair .*/1\.log: Read-only file system$"):
                attempt()
    journal.be_whole()
    assert (folder / "1.log").read_bytes() == before
    journal.append(entry(6, b"{}"))
    journal.close()
    assert [each.version for each in read(folder)] == [0, 1, 4, 4, 5, 6]


@pytest.mark.parametrize("at", [1, 2], ids=["open", "fsync"])
def test_without_a_new_segment_the_old_one_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    journal = Journal(folder)
    list(journal.replay(1, 0))
    with monkeypatch.context() as patch:
        use(patch, Disk(once(at, errno.ENOSPC)))
        with pytest.raises(StorageFull, match=r"^cannot write .*/2\.log: "):
            journal.rotate()
    journal.append(entry(6, b"{}"))
    assert journal.rotate() == 2
    journal.append(entry(7, b"{}"))
    journal.close()
    assert [each.version for each in read(folder)] == [0, 1, 4, 4, 5, 6, 7]


def test_its_files_are_the_owners(folder: Path) -> None:
    assert (folder / "1.log").stat().st_mode & 0o777 == 0o600


# Lines


@given(st.binary().filter(lambda text: b"\n" not in text))
def test_a_sealed_line_opens(text: bytes) -> None:
    assert unseal(seal(text)) == text


@given(st.binary(max_size=30).filter(lambda text: b"\n" not in text), st.data())
def test_a_sealed_line_that_was_changed_does_not(text: bytes, data: st.DataObject) -> None:
    line = bytearray(seal(text))
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    with pytest.raises(ValueError, match="damaged"):
        unseal(bytes(line))


@given(st.binary(max_size=30).filter(lambda text: b"\n" not in text), st.data())
def test_what_is_torn_is_told_from_what_lost_its_line_break(text: bytes, data: st.DataObject) -> None:
    line = seal(text)
    assert may_be_torn(line[: data.draw(st.integers(0, len(line)))])
    assert not may_be_torn(line[:-1] + b"x" + seal(b"{}"))
