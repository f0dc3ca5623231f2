"""Audio files that nobody trusts, and the processes that decode them."""

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import pytest

from homeport.server.apis.metering.audio import Audio, InvalidAudio, measure
from homeport.server.apis.metering.workers import WorkerDied, Workers

from .conftest import until
from .spoken import FORMATS, speech, tone

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.close()


@contextmanager
def stored(content: bytes) -> Iterator[BinaryIO]:
    with TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file


async def measured(workers: Workers, content: bytes) -> Audio:
    with stored(content) as file:
        return await measure(workers, file)


def wav(
    rate: int = 8000, channels: int = 1, bits: int = 16, data: bytes = bytes(16_000), says: int | None = None
) -> bytes:
    """A WAV file; ``says``: how long the data are, if that is not true."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    size = len(data) if says is None else says
    return b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", size) + data


# How long a file plays


@pytest.mark.parametrize(
    ("hundredths", "seconds", "whole", "minutes"),
    [
        (1, 0.01, 1, 1),
        (100, 1, 1, 1),
        (6050, 60.5, 61, 1),
        (8999, 89.99, 90, 1),
        (9000, 90, 90, 2),
        (12000, 120, 120, 2),
        (15000, 150, 150, 3),
        (8_640_000, 86400, 86400, 1440),
    ],
)
def test_what_it_costs(hundredths: int, seconds: float, whole: int, minutes: int) -> None:
    audio = Audio(hundredths, "wav")
    assert [audio.seconds(whole=False), audio.seconds(whole=True)] == [seconds, whole]
    assert isinstance(audio.seconds(whole=False), int) == (hundredths % 100 == 0)
    assert audio.cost(375) == 375 * minutes


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
async def test_every_format_is_as_long_as_what_was_put_in(workers: Workers, suffix: str) -> None:
    assert (await measured(workers, tone(60.5, suffix))).hundredths == 6050


@pytest.mark.parametrize(
    ("content", "hundredths"),
    [
        pytest.param(wav(says=0xFFFFFFF0), 100, id="says that it is endless"),
        pytest.param(wav(says=100), 1, id="says that it is short"),
        pytest.param(wav(channels=255, data=bytes(51_000)), 1, id="255 channels"),
        pytest.param(wav(rate=1, bits=8, data=bytes(600)), 60_000, id="a sample a second"),
        pytest.param(tone(2, "mp3")[:-200], 198, id="an end that is missing"),
        pytest.param(tone(1, "mp3") + b"\xff" * 10_000, 102, id="an end that is no audio"),
    ],
)
async def test_what_is_there_counts(workers: Workers, content: bytes, hundredths: int) -> None:
    assert abs((await measured(workers, content)).hundredths - hundredths) <= 10


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0", id="a byte"),
        pytest.param(wav(data=b""), id="no samples"),
        pytest.param(wav(rate=0), id="no rate"),
        pytest.param(wav(channels=0), id="no channels"),
        pytest.param(wav(rate=1, bits=8, data=bytes(86_401)), id="more than a day"),
        pytest.param(tone(1, "m4a")[:500], id="the beginning of an m4a"),
        pytest.param(b"OggS" + bytes(10_000), id="no pages"),
        pytest.param(b"\x1a\x45\xdf\xa3" * 1000, id="EBML in EBML"),
        pytest.param(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", id="a playlist"),
        pytest.param(b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\0\0\0\0\0;", id="a picture"),
    ],
)
async def test_what_is_no_audio(workers: Workers, content: bytes) -> None:
    with pytest.raises(InvalidAudio):
        await measured(workers, content)


# Processes


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def workers_of(pid: int) -> list[int]:
    """The ids of a process's workers that run."""
    children = [int(pid) for file in Path(f"/proc/{pid}/task").glob("*/children") for pid in file.read_text().split()]
    return [child for child in children if b"audio_worker.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def a_worker_of(pid: int) -> int:
    """The id of one, once it runs."""

    async def there() -> bool:
        return bool(workers_of(pid))

    await until(there)
    return workers_of(pid)[0]


async def gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def long_speech() -> bytes:
    """What takes pocketsphinx more than a minute."""
    head = speech()[:44]
    return head[:40] + struct.pack("<I", 0x7FFFFFF0) + speech()[44:] * 300


async def test_a_worker_that_is_killed(workers: Workers) -> None:
    with stored(long_speech()) as file:
        work = asyncio.create_task(workers.run("recognize", file, seconds=60, cpu=60))
        os.kill(await a_worker_of(os.getpid()), signal.SIGKILL)
        with pytest.raises(WorkerDied) as died:
            await work
        assert died.value.status == -signal.SIGKILL
        assert (await measure(workers, file)).hundredths > 10_000, "the next works"


async def test_a_worker_whose_time_is_over(workers: Workers) -> None:
    with stored(long_speech()) as file:
        with pytest.raises(TimeoutError):
            await workers.run("recognize", file, seconds=1, cpu=60)
        assert workers_of(os.getpid()) == []


async def test_a_worker_that_takes_too_much_of_the_processor(workers: Workers) -> None:
    with stored(long_speech()) as file, pytest.raises(WorkerDied) as died:
        await workers.run("recognize", file, seconds=60, cpu=1)
    assert died.value.status in (-signal.SIGXCPU, -signal.SIGKILL)


async def test_work_that_is_cancelled(workers: Workers) -> None:
    with stored(long_speech()) as file:
        work = asyncio.create_task(workers.run("recognize", file, seconds=60, cpu=60))
        worker = await a_worker_of(os.getpid())
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await gone(worker)


async def test_nothing_is_left_of_workers(workers: Workers) -> None:
    await measured(workers, tone(1))
    before = open_files()
    await asyncio.gather(*(measured(workers, tone(1)) for _ in range(6)))
    assert open_files() == before
    assert workers_of(os.getpid()) == []


async def test_a_worker_has_no_secret(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("HOMEPORT_SERVER__ADMIN_KEY", "hunter2")
    with stored(long_speech()) as file:
        work = asyncio.create_task(workers.run("recognize", file, seconds=60, cpu=60))
        environment = Path(f"/proc/{await a_worker_of(os.getpid())}/environ").read_text()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert "PATH=" in environment
    assert "sk-1" not in environment
    assert "hunter2" not in environment


_SERVER = """
import asyncio, sys
from homeport.server.apis.metering.workers import Workers
with open(sys.argv[1], "rb") as file:
    asyncio.run(Workers(1).run("recognize", file, seconds=600, cpu=600))
"""


async def test_a_worker_ends_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(long_speech())
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", _SERVER, str(tmp_path / "long.wav"))
    worker = await a_worker_of(server.pid)
    server.kill()
    await server.wait()
    await until(lambda: gone(worker))
