"""storage/file/names.py: ids that no file system mixes up."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeport.storage.file.names import document_id, file_name, folder_name

IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80)


@pytest.mark.parametrize(
    ("id", "name"),
    [
        pytest.param("2026-01-31_claude.max", "2026-01-31_claude.max.json", id="as it is"),
        pytest.param("user/time/host", "user%2ftime%2fhost.json", id="a slash"),
        pytest.param("A", "%41.json", id="a capital"),
        pytest.param(".", "%2e.json", id="a dot"),
        pytest.param("..", "%2e..json", id="two dots"),
        pytest.param(".hidden", "%2ehidden.json", id="a leading dot"),
        pytest.param("end. ", "end.%20.json", id="a trailing blank"),
        pytest.param("100%", "100%25.json", id="the escape itself"),
        pytest.param("~", "%7e.json", id="the mark of a hash"),
        pytest.param("con", "%63on.json", id="a device"),
        pytest.param("lpt1.txt", "%6cpt1.txt.json", id="a device with an ending"),
        pytest.param("console", "console.json", id="no device"),
        pytest.param("é", "%c3%a9.json", id="composed"),
        pytest.param("e\u0301", "e%cc%81.json", id="decomposed"),
        pytest.param("🧪", "%f0%9f%a7%aa.json", id="an emoji"),
        pytest.param("a\nb", "a%0ab.json", id="a control character"),
    ],
)
def test_short_ids_can_be_read_back(id: str, name: str) -> None:
    assert file_name(id) == name
    assert document_id(name) == id


@pytest.mark.parametrize(
    "id",
    [
        pytest.param("x" * 2048, id="2,048 letters"),
        pytest.param("🧪" * 512, id="2,048 bytes of emoji"),
        pytest.param("X" * 61, id="183 bytes escaped"),
    ],
)
def test_long_ids_are_hashed(tmp_path: Path, id: str) -> None:
    name = file_name(id)
    assert re.fullmatch(r"[a-z0-9%]{80}~[0-9a-f]{32}\.json", name)
    assert document_id(name) is None
    assert file_name(id[:-1] + "!") != name
    (tmp_path / name).touch()


@given(IDS, IDS)
@example("a" * 180, "a" * 181)
@example("con", "%63on")
def test_two_ids_never_share_a_name(one: str, other: str) -> None:
    assert (file_name(one).casefold() == file_name(other).casefold()) == (one == other)


@given(IDS)
def test_names_are_plain(id: str) -> None:
    name = file_name(id)
    assert re.fullmatch(r"[a-z0-9_%-][a-z0-9_.%~-]{0,184}", name)
    assert document_id(name) == (None if "~" in name else id)


@pytest.mark.parametrize(
    "name",
    ["A.json", "a b.json", ".a.json", "con.json", "%FF.json", "%61.json", "a", "a.txt", "%", "~", ".json"],
)
def test_other_names_tell_no_id(name: str) -> None:
    assert document_id(name) is None


def test_a_folder_is_no_other_collections_file() -> None:
    assert folder_name("console_snapshots") == "console_snapshots"
    assert folder_name("notes.jsonl") == "notes%2ejsonl"
