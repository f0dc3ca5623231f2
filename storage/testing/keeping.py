"""What is kept, and how: documents to the byte, ids to the code point, the values of declared fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..base import Storage
from ..documents import MAX_DEPTH, MAX_DIGITS
from ..queries import Filter, Query
from ..writes import Check, Delete, Put
from .contract import Contract, all_changes, ids

DOCUMENTS = {
    "empty": b"{}",
    "64 bits": b'{"a":9223372036854775807,"b":-9223372036854775808}',
    "beyond 64 bits": b'{"a":9223372036854775808,"b":18446744073709551616,"c":-9223372036854775809}',
    "the longest integers": b'{"a":%b,"b":-%b}' % (b"9" * MAX_DIGITS, b"1" + b"0" * (MAX_DIGITS - 1)),
    "zeros": b'{"a":0,"b":-0,"c":0.0,"d":-0.0,"e":0e0,"f":-0.0E-7}',
    "doubles": b'{"a":1e308,"b":-1.7976931348623157e308,"c":5e-324,"d":2.2250738585072014E-308}',
    "more digits than a double": b'{"a":0.1000000000000000055511151231257827,"b":1.00,"c":1E+2,"d":1e-400}',
    "escapes": rb'{"a":"\u0000\u001f\u007f\"\\\/\b\f\n\r\t","b\u0000":"\ud83d\ude00\u00e9\uFFFF"}',
    "text": '{"a":"é e\u0301 \x7f \u2028\u2029 \ufeff \uffff 😀 \U0010ffff"}'.encode(),
    "quotes of others": b"""{"a":"' '' `; DROP TABLE items; -- %s %% ? :a $1 {} [x] \\u0000"}""",
    "1 MiB": b'{"a":"%b"}' % (b"x" * (1 << 20)),
    "1 MiB of emoji": b'{"a":"%b"}' % ("😀".encode() * (1 << 18)),
    "the deepest": b'{"a":%b%b}' % (b"[" * (MAX_DEPTH - 1), b"]" * (MAX_DEPTH - 1)),
    "order of names": b'{"z":1,"a":2,"m":{"2":0,"10":0,"1":0},"A":3}',
    "empty names": b'{"":1,"a":{"":{"":null}}}',
    "duplicate names": b'{"a":1,"a":2,"b":{"c":1,"c":{"d":1}}}',
    "white space": b' \t{ "a" :\t[ 1 ,2 ] } \t',
    "names of ours": b'{"id":"other","version":7,"document":"x","rowid":1,"value":null,"__proto__":{}}',
}

IDS = [
    *["a", "A", "b", "B", "aa", "Ä", "ä", "a\u0308", "ß", "SS", "\u0131", "İ"],  # no case is folded, nothing normalised
    *[".", "..", "...", "../..", "/", "//", "/etc/passwd", "a/b", "a//b", "a/", "~", "-", "--help"],
    *["con", "CON", "nul", "com1.txt", "a.json", "a:b", "a?b", "a*b", "a|b", "a<b>", "trailing.", "trailing "],
    *["'", '"', "`", "\\", "a\\b", "%", "%2F", "%00", "_", "a_b", "#", "&", ";", ",", "=", "[", "]", "{}", "$1", "?"],
    *[" ", "  ", "\t", "\n", "\r\n", "a\nb", "\x01", "\x1f", "\x7f", "\u0085", "\u2028", "\ufeff", "\uffff"],
    *["0", "00", "1", "10", "2", "-1", "1e3", "null", "true", "None"],
    *["😀", "👩‍👩‍👧", "\U0010ffff", "é" * 127, "x" * 255, "X" * 255, "x" * 256, "x" * 2048, "😀" * 512],
]
"""Of ids that are almost the same, both."""

NO_IDS = ["", "\0", "a\0", "a\0b", "\ud800", "a\udc00", "x" * 2049, "😀" * 513]
"""What no record can be called."""


class Keeping(Contract):
    @pytest.mark.parametrize("document", [pytest.param(text, id=name) for name, text in DOCUMENTS.items()])
    async def test_a_document_is_kept_to_the_byte(self, storage: Storage, document: bytes) -> None:
        await storage.commit([Put(self.notes, "a", document)])
        assert (await storage.get(self.notes, ["a"]))["a"].document == document
        assert (await storage.find(Query(self.notes))).records[0].document == document
        assert (await all_changes(storage, self.notes)).changes[0].document == document

    @pytest.mark.usefixtures("needs_durable")
    async def test_documents_are_the_same_after_reopening(self, storage: Storage, path: Path) -> None:
        await storage.commit([Put(self.notes, name, document) for name, document in DOCUMENTS.items()])
        async with self.reopened(storage, path) as again:
            records = await again.get(self.notes, list(DOCUMENTS))
        assert {record.id: record.document for record in records.values()} == DOCUMENTS

    async def test_line_breaks_between_tokens_become_blanks(self, storage: Storage) -> None:
        await storage.commit([Put(self.notes, "a", b'\n{\r\n"a\\n":\r"\\r\\n"\n}\n')])
        assert (await storage.get(self.notes, ["a"]))["a"].document == b' {  "a\\n": "\\r\\n" } '

    async def test_a_dict_is_a_document_too(self, storage: Storage) -> None:
        document = {"b": -0.0, "a": [10**MAX_DIGITS - 1, None, True], "": {"\0": "😀"}}
        await storage.commit([Put(self.notes, "a", document)])
        kept = (await storage.get(self.notes, ["a"]))["a"].decode()
        assert kept == document
        assert list(kept) == ["b", "a", ""]
        assert str(kept["b"]) == "-0.0"

    async def test_of_duplicate_names_the_last_is_found(self, storage: Storage) -> None:
        await storage.commit([Put(self.indexed, "a", b'{"n":1,"t":"x","n":2}')])
        assert await storage.count(Query(self.indexed, (Filter("n", "==", 1),))) == 0
        assert await storage.count(Query(self.indexed, (Filter("n", "==", 2),))) == 1

    async def test_what_is_not_indexed_may_be_any_text(self, storage: Storage) -> None:
        document = rb'{"t":"x","u":"\u0000","n":1,"m":1e308}'
        await storage.commit([Put(self.indexed, "a", document)])
        found = await storage.find(Query(self.indexed, (Filter("t", "==", "x"),)))
        assert [record.document for record in found.records] == [document]

    async def test_ids_are_kept_to_the_code_point(self, storage: Storage) -> None:
        await storage.commit([Put(self.notes, id, {"is": id}) for id in IDS])
        records = await storage.get(self.notes, IDS)
        assert {id: record.decode()["is"] for id, record in records.items()} == {id: id for id in IDS}
        assert all(record.id == id for id, record in records.items())
        assert ids((await storage.find(Query(self.notes))).records) == sorted(IDS)
        assert ids((await all_changes(storage, self.notes)).changes) == IDS

    async def test_each_id_is_found_changed_and_deleted_alone(self, storage: Storage) -> None:
        await storage.commit([Put(self.items, id, {}) for id in IDS])
        for count, id in enumerate(IDS, 1):
            page = await storage.find(Query(self.items, (Filter("id", "==", id),)))
            assert ids(page.records) == [id]
            version = page.records[0].version
            changed = await storage.commit([Put(self.items, id, {"t": "x"}, if_version=version)])
            await storage.commit([Delete(self.items, id, if_version=changed.version)])
            assert await storage.count(Query(self.items)) == len(IDS) - count
        deleted = await all_changes(storage, self.items)
        assert ids(deleted.changes) == IDS
        assert all(change.deleted for change in deleted.changes)

    @pytest.mark.usefixtures("needs_durable")
    async def test_ids_are_the_same_after_reopening(self, storage: Storage, path: Path) -> None:
        await storage.commit([Put(self.items, id, {"t": "x"}) for id in IDS])
        await storage.commit([Delete(self.items, id) for id in IDS[::2]])
        before = await all_changes(storage, self.items)
        async with self.reopened(storage, path) as again:
            assert await all_changes(again, self.items) == before
            assert ids((await again.find(Query(self.items))).records) == sorted(IDS[1::2])

    @pytest.mark.parametrize("id", [pytest.param(id, id=ascii(id)[:12]) for id in NO_IDS])
    async def test_an_id_that_cannot_be_is_absent(self, storage: Storage, id: str) -> None:
        await storage.commit([Put(self.items, near, {}) for near in ["a", "x" * 2048]])
        assert await storage.get(self.items, [id]) == {}
        assert list(await storage.get(self.items, [id, "a", id])) == ["a"]
        done = await storage.commit([Delete(self.items, id), Check(self.items, id, if_version=0)])
        assert (done.version, done.counts) == (2, (0, 0))

    async def test_an_id_is_a_collections_own(self, storage: Storage) -> None:
        await storage.commit([Put(self.notes, "a", {"in": "notes"}), Put(self.items, "a", {"in": "items"})])
        await storage.commit([Delete(self.notes, "a")])
        assert await storage.get(self.notes, ["a"]) == {}
        assert (await storage.get(self.items, ["a"]))["a"].decode() == {"in": "items"}

    async def test_get(self, storage: Storage) -> None:
        many = [f"{number:04}" for number in range(400)]
        await storage.commit([Put(self.notes, id, {"is": id}) for id in many])
        assert await storage.get(self.notes, []) == {}
        assert await storage.get(self.notes, ["none"]) == {}
        assert list(await storage.get(self.notes, ["0003", "none", "0003"])) == ["0003"]
        for asked in many[:33], many:
            found = await storage.get(self.notes, [*asked, "none"])
            assert {id: (record.version, record.decode()) for id, record in found.items()} == {
                id: (int(id) + 1, {"is": id}) for id in asked
            }
