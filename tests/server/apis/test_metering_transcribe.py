"""Transcription among what goes wrong around it: files, disks, workers, clients and servers."""

import asyncio
import io
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.metering import uploads
from homeport.server.cli.credentials import credentials
from homeport.server.config import load_config

from .conftest import Answer, Launch, Process, Serve, on_memory, until
from .licensed import bearer
from .spoken import SERVICE_KEY, Service, Speaker, open_speaker, speech, tone, waiting
from .test_metering_audio import a_worker_of, gone, long_speech

FAILED = {"success": False, "error": "Transcription failed"}
INVALID = {"success": False, "error": "Invalid audio file"}
START = 250_000
OFFLINE = {"apis.metering.transcription.engine": "pocketsphinx"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service() as service:
        yield service


@pytest.fixture
async def speaker(serve: Serve, service: Service) -> Speaker:
    return await open_speaker(serve, service.settings)


# Files

edits = st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)
starts = st.sampled_from([44, 45, 60, 2000, None])


@on_memory
@pytest.mark.parametrize("examples", [2, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_broken_file_is_no_failure_of_ours(speaker: Speaker, examples: int) -> None:
    sound = {suffix: tone(0.2, suffix) for suffix in ("wav", "mp3", "m4a", "flac", "opus", "webm")}
    damages = st.tuples(st.sampled_from(sorted(sound)), edits, starts)
    batches: list[list[bytes]] = []

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(damages, min_size=4, max_size=4))
    def collect(batch: list[Any]) -> None:
        files = []
        for suffix, changes, end in batch:
            file = bytearray(sound[suffix])
            for at, data in changes:
                file[at % len(file) : at % len(file) + len(data)] = data
            files.append(bytes(file[:end]))
        batches.append(files)

    collect()
    for batch in batches:
        for answer in await asyncio.gather(*map(speaker.send, batch)):
            assert answer.status in (200, 400, 402), answer.content
            assert answer.status != 400 or answer.json == INVALID


# Disks


@on_memory
async def test_a_full_disk(speaker: Speaker, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "TemporaryFile", partial(Path("/dev/full").open, "r+b", buffering=0))
        answer = await speaker.send(tone(1))
        assert (answer.status, answer.json) == (507, {"success": False, "error": "Internal server error"})
    assert (await speaker.ledger(), service.asked) == ([START], [])
    assert (await speaker.send(tone(1))).status == 200


FORM = {"Content-Type": "multipart/form-data; boundary=b"}


async def slow(file: bytes, done: asyncio.Event) -> AsyncIterator[bytes]:
    """A form whose end comes when it may."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="/etc/passwd"\r\n\r\n'
    yield file
    await done.wait()
    yield b"\r\n--b--\r\n"


def uploads_in(folder: Path) -> int:
    """How many files there are open and without a name in a folder."""
    files = [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return sum(folder in file.readlink().parents for file in files)


@on_memory
async def test_an_upload_has_no_name(speaker: Speaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = asyncio.Event()
    sending = asyncio.create_task(speaker.post(slow(tone(20), done), FORM))

    async def stored() -> bool:
        return uploads_in(tmp_path) == 1

    await until(stored)
    assert list(tmp_path.iterdir()) == []
    done.set()
    assert (await sending).status == 200
    assert (uploads_in(tmp_path), list(tmp_path.iterdir())) == (0, [])


@on_memory
async def test_slow_senders_keep_others_from_nothing(
    serve: Serve, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    speaker = await open_speaker(serve, {**service.settings, "apis.metering.transcription.max_concurrent": 1})
    done = asyncio.Event()
    sending: list[asyncio.Task[Answer]] = []

    async def stored() -> bool:
        return uploads_in(tmp_path) == len(sending)

    def send_slowly() -> None:
        sending.append(asyncio.create_task(speaker.post(slow(b"no audio", done), FORM)))

    for _ in range(3):
        send_slowly()
    await until(stored)
    assert (await speaker.send(tone(1))).status == 200
    send_slowly()
    await until(stored)
    answer = await speaker.send(tone(1))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), "what waits to be sent is bounded too"
    _, key = await speaker.shop.license("bob@example.com")
    assert (await Speaker(speaker.shop, key, "").send(tone(1))).status == 200, "and so is how much of it is one's"
    done.set()
    refused = [(answer.status, answer.json) for answer in await asyncio.gather(*sending)]
    assert (400, INVALID) in refused
    assert {status for status, _ in refused} <= {400, 503}
    assert await speaker.ledger() == [START, -375]


# Workers


@on_memory
async def test_a_worker_that_dies(serve: Serve) -> None:
    speaker = await open_speaker(serve, OFFLINE)
    sending = asyncio.create_task(speaker.send(long_speech()))

    async def reserved() -> bool:
        return len(await speaker.ledger()) == 2

    await until(reserved)
    os.kill(await a_worker_of(os.getpid()), signal.SIGKILL)
    answer = await sending
    assert (answer.status, answer.json, await speaker.balance()) == (500, FAILED, START)
    assert (await speaker.send(speech())).status == 200, "the next works"


# Servers


NO_LIMIT = {"HOMEPORT_APIS__METERING__RATE_LIMIT": "1000000/minute"}


async def licensed(url: str) -> str:
    """The key of a new license in a store that no server has open."""
    command = (sys.executable, "-m", "homeport", "licenses", "create", "--email", "a@example.com", "--storage", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().split()[-1]


async def send(server: Process, key: str, file: bytes, **headers: str) -> Answer:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("file", io.BytesIO(file), filename="a.wav")
    return await server("POST", "/api/desktop/transcribe", data=form, headers={**bearer(key), **headers})


async def ledger(server: Process, key: str) -> list[int]:
    answer = await server.get("/api/tokens/transactions", headers=bearer(key))
    return [entry["tokens_amount"] for entry in reversed(answer.json["transactions"])]


async def test_a_server_that_is_killed_gives_back(launch: Launch, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/h.db"
    key = await licensed(url)
    server = await launch("--port", "0", "--storage", url, **NO_LIMIT)
    await server.ready()
    sending = asyncio.create_task(send(server, key, long_speech(), **{"Idempotency-Key": "k"}))

    async def reserved() -> bool:
        return len(await ledger(server, key)) == 2

    await until(reserved, every=1)
    worker = await a_worker_of(server.process.pid)
    await server.kill()
    with pytest.raises(aiohttp.ClientError):
        await sending
    await until(lambda: gone(worker))
    server = await launch("--port", "0", "--storage", url, **NO_LIMIT)
    await server.ready()
    before, tokens, after = await ledger(server, key)
    assert (before, tokens + after) == (START, 0)
    answer = await send(server, key, speech(), **{"Idempotency-Key": "k"})
    assert (answer.status, answer.json["tokens_balance"]) == (200, START - 375), "the key is as good as new"


@pytest.mark.slow
async def test_a_client_that_goes_away_is_charged_and_may_ask_again(
    launch: Launch, tmp_path: Path, service: Service
) -> None:
    url = f"sqlite:{tmp_path}/h.db"
    key = await licensed(url)
    server = await launch("--port", "0", "--storage", url, **NO_LIMIT, **service.environment)
    await server.ready()
    stalled = asyncio.Event()
    service.acts.append(waiting(stalled))
    sending = asyncio.create_task(send(server, key, tone(1), **{"Idempotency-Key": "k"}))

    async def asked() -> bool:
        return len(service.asked) == 1

    await until(asked)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (await send(server, key, tone(1), **{"Idempotency-Key": "k"})).status == 409
    stalled.set()
    while (answer := await send(server, key, tone(1), **{"Idempotency-Key": "k"})).status == 409:
        await asyncio.sleep(1)
    assert (answer.status, answer.json["text"], len(service.asked)) == (200, "late", 1)
    assert await ledger(server, key) == [START, -375]
    assert await server.stop() == 0
    assert SERVICE_KEY not in server.log


@pytest.mark.slow
async def test_an_upload_is_never_whole_in_memory(launch: Launch, tmp_path: Path, service: Service) -> None:
    url = f"sqlite:{tmp_path}/h.db"
    key = await licensed(url)
    server = await launch("--port", "0", "--storage", url, **NO_LIMIT, **service.environment)
    await server.ready()
    assert (await send(server, key, tone(1))).status == 200  # whatever is imported on first use is there now
    before = peak_memory(server.process.pid)
    file = tone(760)
    assert uploads.MAX_FILE * 0.9 < len(file) <= uploads.MAX_FILE
    assert (await send(server, key, file)).status == 200
    assert peak_memory(server.process.pid) - before < 12 << 20


def peak_memory(pid: int) -> int:
    """Bytes that a process has had at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


# What is said at start


@pytest.mark.parametrize(
    ("given", "installed", "finding"),
    [
        pytest.param({}, True, "on; transcription is pocketsphinx's", id="offline"),
        pytest.param({"api_key": "sk"}, True, "on; transcription is openai's", id="with a key"),
        pytest.param(
            {"engine": "pocketsphinx", "api_key": "sk"}, True, "on; transcription is pocketsphinx's", id="set"
        ),
        pytest.param({}, False, "on; transcription is off: its engine is not installed", id="none"),
    ],
)
def test_the_finding(given: dict[str, str], installed: bool, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr("homeport.server.apis.metering.engines.find_spec", lambda _: None)
    overrides = {f"apis.metering.transcription.{name}": value for name, value in given.items()}
    (said,) = [each for each in credentials(load_config(environ={}, overrides=overrides)) if each.subject == "metering"]
    assert said.message.startswith(f"{finding}; ")
    assert (said.level, "homeport[pocketsphinx]" in said.cure) == (("ok", False) if installed else ("note", True))
