"""What sessions print: as plain text, kept in files of bounded size, and as it comes."""

import asyncio
import fcntl
import os
import re
import subprocess
import sys
import termios
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import uuid7

from homeport.server.apis.sessions.running.active import ActiveSessions
from homeport.server.apis.sessions.tmux import capture, following, output
from homeport.server.apis.sessions.tmux.following import Follower, Readers, Tail, load, make_folder
from homeport.server.apis.sessions.tmux.output import Output
from homeport.server.apis.sessions.tmux.plain_text import PlainText
from homeport.storage.times import SECOND, parse_time

from .conftest import NOW, on_memory
from .sessions_kit import Desk, until

# Plain text

TEXTS = [
    pytest.param(b"plain\r\n\ttext\n", "plain\n\ttext\n", id="none"),
    pytest.param(b"\x1b[1;31mred\x1b[0m \x1b[38;2;1;2;3mtrue\x1b[m", "red true", id="colours"),
    pytest.param(b"\x1b[?25l\x1b[>c\x1b[ q\x1b[!pa", "a", id="private and intermediate bytes"),
    pytest.param(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink", id="titles and links"),
    pytest.param(b"\x1bPq#0;2\x1b\\a\x1b_Gdata\x1b\\b\x1b^x\x1b\\c\x1bXs\x1b\\d", "abcd", id="control strings"),
    pytest.param(b"\x1b(B\x1b)0\x1b#8\x1b=\x1b>\x1b7\x1b8\x1bca", "a", id="character sets and other escapes"),
    pytest.param(b"a\x00\x07\x0e\x0f\x7f\x05b", "ab", id="control characters"),
    pytest.param("a\x85\x9bb".encode(), "ab", id="C1"),
    pytest.param("größe 日本 🙂".encode(), "größe 日本 🙂", id="UTF-8"),
    pytest.param(b"a\xff\xc3(b", "a\ufffd\ufffd(b", id="no UTF-8"),
    pytest.param(b"two\x1b[1Cwords\x1b[3Chere", "two words   here", id="blanks that are skipped"),
    pytest.param(b"a\x1b[999999999999Cb", "a b", id="too many blanks"),
    pytest.param(b"\x1b[2J\x1b[Htop\x1b[5;1Hfifth\x1b[1Aup", "top\nfifth\nup", id="other lines"),
    pytest.param(b"line\n\x1b[2Kline", "line\nline", id="a line erased"),
    pytest.param(b"\x1b[" + b"1" * 300 + b"mx", "1" * 45 + "mx", id="a sequence that is too long"),
    pytest.param(b"10%\r20%\x1b[Gdone\r\r\n", "10%\r20%\rdone\n", id="a line printed over"),
    pytest.param(b"\x1b[31\nx", "\nx", id="a sequence broken off"),
    pytest.param(b"\x1b]0;no end\x18x", "x", id="a string broken off"),
    pytest.param(b"\x1b\x1b[1ma", "a", id="escape twice"),
]


@pytest.mark.parametrize(("printed", "text"), TEXTS)
def test_plain_text(printed: bytes, text: str) -> None:
    assert PlainText().feed(printed) == text


PIECES: list[Any] = [case.values[0] for case in TEXTS]
PIECES += [b"\x1b", b"[", b"\r", b"\n", b"H", b"\xf0\x9f", b"]", b"m"]
PRINTED = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4)).map(b"".join)


@given(PRINTED, st.lists(st.integers(0, 600)))
def test_text_does_not_depend_on_the_pieces(printed: bytes, cuts: list[int]) -> None:
    whole, pieces = PlainText(), PlainText()
    places = sorted({0, len(printed), *(cut for cut in cuts if cut < len(printed))})
    text = "".join(pieces.feed(printed[a:b]) for a, b in pairwise(places))
    end = b"\x18\x1b\\."  # whatever waits for its rest
    assert text + pieces.feed(end) == whole.feed(printed) + whole.feed(end)
    assert not set(text) & set("\x1b\x07\x00\v")


def test_a_string_without_an_end_ends() -> None:
    text = PlainText()
    assert text.feed(b"\x1b]0;") == ""
    said = [text.feed(b"x" * 65_536) for _ in range(20)]
    assert said[0] == ""
    assert said[-1] == "x" * 65_536


# The last lines


def printed(*pieces: str) -> Output:
    kept = Output()
    for piece in pieces:
        kept.feed(piece.encode())
    return kept


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        (["one\ntwo"], ["one", "two"]),
        (["on", "e\n", "\n", "two\n"], ["one", "", "two"]),
        (["10%", "\r20%", "\r30%\nnext"], ["30%", "next"]),
        (["pass\b\bt\b \b\n"], ["pa"]),
        (["\b\bx\n"], ["x"]),
        (["a\r"], ["a"]),
        (["a\r", "\nb"], ["a", "b"]),
    ],
)
def test_lines(pieces: list[str], lines: list[str]) -> None:
    kept = printed(*pieces)
    assert kept.lines() == lines
    assert kept.lines(1) == lines[-1:]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = printed(*(f"line {number}\n" for number in range(10_005)))
    assert (kept.lines()[0], len(kept.lines())) == ("line 5", 10_000)
    monkeypatch.setattr(output, "MAX_CHARACTERS", 1000)
    assert len(printed(*["x" * 99 + "\n"] * 50).lines()) == 10
    monkeypatch.setattr(output, "MAX_LINE", 10)
    assert printed("x" * 25 + "\nend").lines() == ["x" * 10, "x" * 10, "x" * 5, "end"]
    assert printed(*"x" * 25).lines() == ["x" * 10, "x" * 10, "x" * 5]


@given(st.lists(st.text("ab\n", max_size=5)), st.integers(0, 20))
def test_who_attaches_misses_nothing(pieces: list[str], at: int) -> None:
    kept = printed(*pieces[:at])
    heard: list[str] = []
    before = kept.attach(heard.append)
    for piece in pieces[at:]:
        kept.feed(piece.encode())
    assert before + "".join(heard) == "".join(pieces)
    kept.detach(heard.append)
    kept.feed(b"more")
    assert "more" not in heard


# The files


KEEP = """
import resource, sys
sys.path.append(sys.argv[2])
import capture
{}
capture.main(sys.argv[1])
"""


def keep(folder: Path, change: str = "", stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Begins to keep what is written to its standard input, after a change to the program."""
    make_folder(folder)
    command = (sys.executable, "-I", "-S", "-c", KEEP.format(change), str(folder), str(Path(capture.__file__).parent))
    return subprocess.Popen(command, stdin=stdin)


def test_what_waits_is_read_at_once(tmp_path: Path) -> None:
    """tmux would keep it in memory, all of it."""
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(writing, b"x" * size)
    os.close(writing)
    process = keep(tmp_path / "session", "capture._GATHER_SECONDS = 3600", stdin=reading)
    os.close(reading)
    assert process.wait(30) == 0
    (start,) = capture.segments(str(tmp_path / "session"))
    assert (start, Path(capture.segment_path(str(tmp_path / "session"), start)).stat().st_size) == (0, size)


async def test_what_tmux_writes_at_a_time_is_read_at_once(tmp_path: Path) -> None:
    """It does so as long as it has more."""
    process = keep(tmp_path / "session", "capture._GATHER_SECONDS = 3600")
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    for _ in range(20):
        os.write(pipe, b"x" * 16384)

        async def read() -> bool:
            return not int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)

        await until(read)
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_disk_that_hangs(tmp_path: Path) -> None:
    """What is printed meanwhile waits, up to a bound, and not in tmux; what is beyond is missing, and told."""
    folder = tmp_path / "session"
    make_folder(folder)
    hanging = os.open(folder, os.O_RDONLY)
    fcntl.flock(hanging, fcntl.LOCK_EX)
    process = keep(folder)
    assert process.stdin is not None
    await asyncio.to_thread(process.stdin.write, b"x" * (64 << 20))
    memory = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert memory is not None
    assert int(memory[1]) < 40_000
    os.close(hanging)

    async def written() -> bool:
        return sum(path.stat().st_size for path in folder.glob("0*")) >= 4 << 20

    await until(written)
    await asyncio.to_thread(process.communicate, b"after\n", timeout=20)
    tail = Tail(folder)
    kept = b"".join(iter(tail.read, b""))
    tail.close()
    told = re.fullmatch(rb"(x+)\r\n\[([0-9]+) bytes of output were not kept\]\r\nafter\n", kept)
    assert told is not None
    assert len(told[1]) + int(told[2]) == 64 << 20
    assert 4 << 20 <= len(told[1]) < 5 << 20


async def test_one_that_cannot_write_ends(tmp_path: Path) -> None:
    """tmux then tells that nobody keeps what the pane prints."""
    with keep(tmp_path / "session", "import shutil\nshutil.rmtree(sys.argv[1])") as process:
        assert await asyncio.to_thread(process.wait, 30) == 1


async def test_files_are_bounded_and_nothing_is_lost_to_who_keeps_up(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    ended = asyncio.Event()
    heard: list[str] = []
    follower = Follower(folder, Readers(), ended.set)
    process = keep(folder, "capture.SEGMENT_BYTES = 200_000")
    assert process.stdin is not None
    await follower.open()
    follower.output.attach(heard.append)
    lines = [f"{number:079}\n" for number in range(20_000)]
    for at in range(0, len(lines), 800):
        await asyncio.to_thread(process.stdin.write, "".join(lines[at : at + 800]).encode())
        while len("".join(heard)) < (at - 800) * 80:
            await asyncio.sleep(0.005)
    process.stdin.close()
    async with asyncio.timeout(30):
        await ended.wait()
    follower.close()
    assert await asyncio.to_thread(process.wait) == 0
    assert "".join(heard) == "".join(lines)
    sizes = [(folder / f"{start:020}").stat().st_size for start in capture.segments(str(folder))]
    assert len(sizes) == 2
    assert sum(sizes) < 3 * 200_000
    kept, tail = await asyncio.to_thread(load, folder)
    tail.close()
    found = kept.lines()
    assert found == [line.rstrip() for line in lines[-len(found) :]]


def test_who_does_not_keep_up_is_told(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    (tmp_path / f"{0:020}").write_bytes(b"first\n")
    assert tail.read() == b"first\n"
    (tmp_path / f"{1000:020}").write_bytes(b"later\n")
    (tmp_path / f"{0:020}").unlink()
    told = b""
    while piece := tail.read():
        told += piece
    tail.close()
    assert told == b"\r\n[994 bytes of output were not kept]\r\nlater\n"


async def test_what_is_printed_is_read_where_nobody_waits_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What began to read it was a request, which ended with its client."""
    reached, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path) -> tuple[Output, Tail]:
        reached.set()
        go_on.wait(30)
        return load(folder)

    monkeypatch.setattr(following, "load", slowly)
    active = ActiveSessions(tmp_path, lambda id: None)
    make_folder(active.folder("one"))
    segment = active.folder("one") / f"{0:020}"
    segment.write_bytes(b"first\n")
    active.add("one")
    beginning = asyncio.create_task(active.follow("one"))
    await asyncio.to_thread(reached.wait, 30)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    go_on.set()
    kept = await active.output("one")
    assert kept.lines() == ["first"]
    with segment.open("ab") as file:
        file.write(b"second\n")
    with (active.folder("one") / capture.WAKE).open("wb", 0) as wake:
        wake.write(b".")

    async def read() -> bool:
        return kept.lines() == ["first", "second"]

    await until(read)
    active.release("one")


def test_what_cannot_be_read_is_not_kept_open(tmp_path: Path) -> None:
    segment = tmp_path / f"{0:020}"
    segment.mkdir()
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    assert str(segment) not in [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]


def test_one_that_begins_again_goes_on_after_the_one_before(tmp_path: Path) -> None:
    for words in (b"one\n", b"two\n", b"", b"three\n", b"four\n"):
        process = keep(tmp_path)
        process.communicate(words, timeout=20)
    kept, tail = load(tmp_path)
    tail.close()
    assert kept.lines() == ["one", "two", "three", "four"]


def test_a_disk_that_is_full_at_times(tmp_path: Path) -> None:
    """What it does not take is missing, and told; what it has taken stays."""
    folder = tmp_path / "session"
    lines = [f"{number:079}\n" for number in range(3000)]
    process = keep(folder, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    process.communicate("".join(lines).encode(), timeout=20)
    kept, tail = load(folder)
    tail.close()
    found = kept.lines()
    assert found[:1250] == [line.rstrip() for line in lines[:1250]]
    assert any(re.fullmatch(r"\[[0-9]+ bytes of output were not kept\]", line) for line in found)
    assert sum(len(line) == 79 for line in found) > 1250


# As it comes


@on_memory
async def test_a_line_comes_at_once(desk: Desk) -> None:
    session = await desk.start()
    late: list[float] = []
    async with desk.server.session.ws_connect(f"{desk.server.url}/ws") as socket:
        await socket.send_json({"type": "subscribe", "sessionId": session["id"]})
        text = ""
        for _ in range(15):
            await desk.type(session["id"], "now")
            while not (told := re.search(r"got ([0-9.]+)\n", text)):
                message = await socket.receive_json(timeout=20)
                text += message["output"] if message["type"] == "session:output" else ""
            late.append(time.time() - float(told[1]))
            text = ""
    assert median(late) < 0.1


@on_memory
async def test_colours_and_titles_do_not_come(desk: Desk) -> None:
    session = await desk.start()
    await desk.type(session["id"], "colours")
    assert "red text" in await desk.printed(session["id"], "red")


@on_memory
async def test_the_last_ten_thousand_lines(desk: Desk) -> None:
    session = await desk.start()
    await desk.type(session["id"], "count 12000")
    await desk.printed(session["id"], "got 12000")  # else the terminal shows what is typed among the lines
    await desk.type(session["id"], "exit 0")
    await desk.ended(session["id"])
    expected = [f"line {number}" for number in range(12_000)]

    async def complete() -> bool:
        return [line for line in await desk.lines(session["id"]) if line.startswith("line")][-5:] == expected[-5:]

    await until(complete)
    counted = [line for line in await desk.lines(session["id"]) if line.startswith("line")]
    assert counted == expected[-len(counted) :]
    assert len(counted) > 9_990
    assert len(await desk.lines(session["id"], 7)) == 7


@on_memory
@pytest.mark.parametrize("lines", ["0", "10001", "x", "-1"])
async def test_how_many_lines(desk: Desk, lines: str) -> None:
    session = await desk.start()
    answer = await desk.call("GET", f"/sessions/{session['id']}/output?lines={lines}", 400)
    assert answer["error"] == "Validation error"


# How long


@on_memory
async def test_output_is_kept_for_30_days(desk: Desk) -> None:
    """Since it was written; that of a session that is active for ever, and what is no session's, too."""
    active = (await desk.start())["id"]
    root = desk.folder / "output"
    old, empty, recent, other = str(uuid7()), str(uuid7()), str(uuid7()), "notes"
    for name in (old, recent, other):
        make_folder(root / name)
        (root / name / f"{0:020}").write_bytes(b"printed")
    (root / empty).mkdir()
    for path in (*root.glob("*/*"), *root.iterdir()):
        written = parse_time("2025-06-04T12:00:00Z" if recent in path.parts else NOW) / SECOND
        os.utime(path, (written, written))
    desk.server.move_to("2025-07-04T05:00:00Z")  # 30 days and 17 hours later, or 29

    async def left() -> bool:
        return {path.name for path in root.iterdir()} == {active, recent, other}

    await until(left)
    assert len(list((root / active).iterdir())) > 1
