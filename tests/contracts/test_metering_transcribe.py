"""contracts/metering.md, "POST /api/desktop/transcribe", sentence by sentence, on every back end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from homeport.server.apis.metering import uploads
from homeport.server.apis.metering.usage import USAGE
from homeport.storage import Query

from ..server.apis.conftest import Serve, on_memory, until
from ..server.apis.spoken import (
    FORMATS,
    SERVICE_KEY,
    WORDS,
    Service,
    Speaker,
    answering,
    converted,
    cut_off,
    open_speaker,
    speech,
    tone,
    waiting,
)

FAILED = {"success": False, "error": "Transcription failed"}
INVALID = {"success": False, "error": "Invalid audio file"}
TOO_LARGE = {"success": False, "error": "Audio file too large. Max size: 25 MB"}
START = 250_000


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service() as service:
        yield service


@pytest.fixture
async def speaker(serve: Serve, service: Service) -> Speaker:
    return await open_speaker(serve, service.settings)


async def usage(speaker: Speaker) -> list[dict[str, Any]]:
    page = await speaker.shop.server.storage.find(Query(USAGE))
    assert all(record.id.startswith(f"{speaker.user_id}/") for record in page.records)
    return [record.decode() for record in page.records]


async def test_the_example(speaker: Speaker, service: Service) -> None:
    file = tone(60.5)
    answer = await speaker.send(file)
    id = answer.json["transaction_id"]
    assert UUID(id).version == 7
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "text": "Transcribed text here",
            "duration_seconds": 60.5,
            "tokens_used": 375,
            "tokens_balance": 249625,
            "transaction_id": id,
        },
    )
    assert (await speaker.balance(), await speaker.ledger()) == (249625, [START, -375])
    assert await usage(speaker) == [
        {
            "event_type": "transcription",
            "tokens_used": 375,
            "duration_seconds": 60.5,
            "created_at": "2025-11-20T12:00:00.000Z",
        }
    ]
    (asked,) = service.asked
    assert (asked.authorization, asked.filename, asked.file) == (f"Bearer {SERVICE_KEY}", "audio.wav", file)
    assert asked.fields == {"model": "whisper-1", "language": "en", "response_format": "json"}


@on_memory
@pytest.mark.parametrize(
    ("seconds", "tokens", "shown"),
    [
        (0.3, 375, b"0.3,"),
        (60.5, 375, b"60.5,"),
        (89.99, 375, b"89.99,"),
        (90, 750, b"90,"),
        (120, 750, b"120,"),
        (150, 1125, b"150,"),
    ],
)
async def test_the_cost(speaker: Speaker, seconds: float, tokens: int, shown: bytes) -> None:
    answer = await speaker.send(tone(seconds, rate=1000))
    assert answer.json["tokens_used"] == tokens
    assert b'"duration_seconds":' + shown in answer.content
    assert await speaker.balance() == START - tokens


@on_memory
async def test_whole_seconds(serve: Serve, service: Service) -> None:
    settings = {"apis.metering.whole_seconds": True, "apis.metering.tokens_per_minute": 10}
    speaker = await open_speaker(serve, service.settings | settings)
    answer = await speaker.send(tone(89.01, rate=1000))
    assert b'"duration_seconds":90,' in answer.content
    assert answer.json["tokens_used"] == 10, "what is shown does not change what it costs"


@on_memory
@pytest.mark.parametrize("suffix", FORMATS)
async def test_formats(speaker: Speaker, service: Service, suffix: str) -> None:
    answer = await speaker.send(tone(2.5, suffix))
    assert (answer.status, answer.json["duration_seconds"]) == (200, 2.5)
    assert service.asked[0].filename == f"audio.{'ogg' if suffix == 'opus' else suffix}"


@on_memory
async def test_model_and_language_go_to_the_service(speaker: Speaker, service: Service) -> None:
    answer = await speaker.send(tone(1), model="whisper-large", language="pt-BR", other="dropped")
    assert answer.status == 200
    assert service.asked[0].fields == {"model": "whisper-large", "language": "pt-BR", "response_format": "json"}


@on_memory
async def test_a_service_that_asks_for_no_key(serve: Serve, service: Service) -> None:
    speaker = await open_speaker(
        serve,
        service.settings | {"apis.metering.transcription.api_key": "", "apis.metering.transcription.engine": "openai"},
    )
    assert (await speaker.send(tone(1))).status == 200
    assert service.asked[0].authorization == "Bearer none"


# What is refused


def bodies() -> dict[str, tuple[bytes | None, dict[str, Any]]]:
    return {
        "missing": (None, INVALID),
        "empty": (b"", INVALID),
        "text": (b"hello, world", INVALID),
        "zeros": (bytes(100_000), INVALID),
        "half a header": (tone(1)[:30], INVALID),
        "no samples": (tone(1)[:44], INVALID),
        "a playlist": (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", INVALID),
        "a list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", INVALID),
        "too large": (bytes(uploads.MAX_FILE + 1), TOO_LARGE),
        "much too large": (bytes(uploads.MAX_BODY + 1), TOO_LARGE),
    }


@on_memory
@pytest.mark.parametrize("what", bodies())
async def test_no_audio(speaker: Speaker, service: Service, what: str) -> None:
    file, refusal = bodies()[what]
    answer = await speaker.send(file, model="whisper-1")
    assert (answer.status, answer.json) == (400, refusal)
    assert (service.asked, await speaker.ledger(), await usage(speaker)) == ([], [START], [])


@on_memory
async def test_a_body_too_large_that_says_nothing_of_its_size(speaker: Speaker) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(27):
            yield bytes(1 << 20)

    answer = await speaker.post(endless(), {"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status, answer.json) == (400, TOO_LARGE)


@on_memory
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"model": ""}, "model must be 1 to 100 characters without spaces", id="no model"),
        pytest.param({"model": "m" * 101}, "model must be 1 to 100 characters without spaces", id="long model"),
        pytest.param({"model": "m" * 1025}, "model must have at most 1024 bytes", id="longer model"),
        pytest.param({"model": "a\0b"}, "model must be 1 to 100 characters without spaces", id="control character"),
        pytest.param({"language": "../en"}, "language must be a language's tag such as en", id="no language"),
    ],
)
async def test_wrong_fields(speaker: Speaker, service: Service, fields: dict[str, str], error: str) -> None:
    answer = await speaker.send(tone(1), None, **fields)
    assert (answer.status, answer.json) == (400, {"success": False, "error": error})
    assert service.asked == []


@on_memory
@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        pytest.param("application/json", b"{}", 415, id="JSON"),
        pytest.param("multipart/form-data", b"--b--\r\n", 400, id="no boundary"),
        pytest.param("multipart/form-data; boundary=b", b"", 400, id="nothing"),
        pytest.param("multipart/form-data; boundary=b", b"--c\r\n\r\n", 400, id="another boundary"),
        pytest.param("multipart/form-data; boundary=b", b"--b\r\n\r\n", 400, id="cut off"),
        pytest.param("multipart/form-data; boundary=b", b"--b--\r\n", 400, id="no part"),
        pytest.param("multipart/form-data; boundary=b", b"--b\r\nX\r\n\r\n1\r\n--b--\r\n", 400, id="no header"),
        pytest.param(
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n' * 30 + b"--b--\r\n",
            400,
            id="many parts",
        ),
        pytest.param(
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n' * 2 + b"--b--\r\n",
            400,
            id="two files",
        ),
        pytest.param(
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--b--\r\n',
            400,
            id="no UTF-8",
        ),
    ],
)
async def test_no_form(speaker: Speaker, content_type: str, body: bytes, status: int) -> None:
    answer = await speaker.post(body, {"Content-Type": content_type})
    assert (answer.status, answer.json["success"]) == (status, False)
    assert answer.json["error"]


@on_memory
async def test_without_a_license(speaker: Speaker) -> None:
    speaker.key = "AAAA-BBBB-CCCC-DDDD"
    answer = await speaker.send(tone(1))
    assert (answer.status, answer.json) == (401, {"success": False, "error": "Invalid or missing license key"})


async def test_too_few_tokens(serve: Serve, service: Service) -> None:
    speaker = await open_speaker(serve, {**service.settings, "apis.metering.tiers.free": 100})
    answer = await speaker.send(tone(1), {"Idempotency-Key": "k"})
    assert answer.status == 402
    assert answer.json == {
        "success": False,
        "error": "Insufficient tokens",
        "tokens_required": 375,
        "tokens_balance": 100,
        "tokens_shortfall": 275,
        "message": "Need 375 tokens, you have 100 tokens, shortfall: 275 tokens",
        "required_tokens": 375,
        "balance_tokens": 100,
    }
    assert (service.asked, await speaker.ledger()) == ([], [100])
    await speaker.shop.ledger.purchase(speaker.user_id, 1000, "bought")
    assert (await speaker.send(tone(1), {"Idempotency-Key": "k"})).json == answer.json, "a 402 is kept"
    assert (await speaker.send(tone(1))).status == 200


# Failures of the service


FAILURES: dict[str, Callable[[], Any]] = {
    "500": lambda: answering(500),
    "401": lambda: answering(401),
    "400": lambda: answering(400),
    "no JSON": lambda: answering(200, "<html>"),
    "no text": lambda: answering(200, '{"words": []}', **{"Content-Type": "application/json"}),
    "another text": lambda: answering(200, '{"text": 1}', **{"Content-Type": "application/json"}),
    "half a letter": lambda: answering(200, '{"text": "\\ud800"}', **{"Content-Type": "application/json"}),
    "endless": lambda: answering(200, " " * (5 << 20)),
    "cut off": lambda: cut_off,
}


@on_memory
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_fails(speaker: Speaker, service: Service, failure: str) -> None:
    service.acts.append(FAILURES[failure]())
    answer = await speaker.send(tone(1), {"Idempotency-Key": "again"})
    assert (answer.status, answer.json) == (500, FAILED)
    assert (await speaker.ledger(), await usage(speaker)) == ([START, -375, 375], [])
    assert (await speaker.send(tone(1), {"Idempotency-Key": "again"})).status == 200, "a failure is not kept"
    assert await speaker.balance() == START - 375


@on_memory
async def test_a_service_that_stalls(serve: Serve, service: Service) -> None:
    speaker = await open_speaker(serve, {**service.settings, "apis.metering.transcription.timeout": 1})
    stalled = asyncio.Event()
    service.acts.append(waiting(stalled))
    answer = await speaker.send(tone(1))
    stalled.set()
    assert (answer.status, answer.json, await speaker.balance()) == (500, FAILED, START)


@on_memory
async def test_a_service_that_is_away(serve: Serve, service: Service) -> None:
    nobody = {**service.settings, "apis.metering.transcription.base_url": "http://127.0.0.1:1/v1"}
    speaker = await open_speaker(serve, nobody | {"apis.metering.transcription.timeout": 1})
    answer = await speaker.send(tone(1))
    assert (answer.status, answer.json, await speaker.balance()) == (500, FAILED, START)


@on_memory
async def test_a_service_that_is_busy_is_asked_again(speaker: Speaker, service: Service) -> None:
    service.acts.append(answering(503, **{"x-should-retry": "true", "retry-after-ms": "1"}))
    answer = await speaker.send(tone(3))
    assert (answer.status, answer.json["text"]) == (200, service.text)
    assert [asked.file for asked in service.asked] == [tone(3)] * 2, "the whole file, both times"


# Many at a time


@on_memory
async def test_beyond_max_concurrent(serve: Serve, service: Service) -> None:
    speaker = await open_speaker(serve, {**service.settings, "apis.metering.transcription.max_concurrent": 2})
    stalled = asyncio.Event()
    service.acts += [waiting(stalled)] * 2
    async with asyncio.TaskGroup() as group:
        first = [group.create_task(speaker.send(tone(1))) for _ in range(2)]
        await until(lambda: asked_for(service, 2))
        head = {"Content-Type": "multipart/form-data; boundary=b", "Expect": "100-continue"}
        refused = await speaker.post(b"not even read", head)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert refused.json == {"success": False, "error": "Too many transcriptions at a time; try again"}
        stalled.set()
    assert [task.result().json["text"] for task in first] == ["late"] * 2
    assert (await speaker.send(tone(1))).status == 200


async def asked_for(service: Service, times: int) -> bool:
    return len(service.asked) == times


# Sent again


async def test_idempotency(speaker: Speaker, service: Service) -> None:
    key = {"Idempotency-Key": "once"}
    first = await speaker.send(tone(1), key, model="a")
    again = await speaker.send(tone(1), key, model="a", other="dropped")
    assert (first.status, again.status, again.content) == (200, 200, first.content)
    assert (len(service.asked), await speaker.ledger()) == (1, [START, -375])
    for file, model in [(tone(2), "a"), (tone(1), "b")]:
        assert (await speaker.send(file, key, model=model)).status == 422
    stalled = asyncio.Event()
    service.acts.append(waiting(stalled))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(speaker.send(tone(1), {"Idempotency-Key": "running"}))
        await until(lambda: asked_for(service, 2))
        second = await speaker.send(tone(1), {"Idempotency-Key": "running"})
        assert (second.status, "Retry-After" in second.headers) == (409, True)
        stalled.set()
    assert running.result().status == 200


# Who goes away


@on_memory
async def test_a_client_that_goes_away_while_it_sends(speaker: Speaker, service: Service) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + tone(1)
        raise ConnectionResetError

    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await speaker.post(half(), {"Content-Type": "multipart/form-data; boundary=b"})
    assert (await speaker.send(tone(1))).status == 200
    assert (len(service.asked), await speaker.ledger()) == (1, [START, -375])


@on_memory
async def test_a_handler_that_is_cancelled_gives_back(speaker: Speaker, service: Service) -> None:
    stalled = asyncio.Event()
    service.acts.append(waiting(stalled))
    sending = asyncio.create_task(speaker.send(tone(1)))
    await until(lambda: asked_for(service, 1))
    sending.cancel()  # the tests' servers cancel the handler then, as applications that embed this one may

    async def given_back() -> bool:
        return await speaker.ledger() == [START, -375, 375]

    await until(given_back)
    stalled.set()
    assert await usage(speaker) == []


# The offline engine


OFFLINE = {"apis.metering.transcription.engine": "pocketsphinx"}


async def test_offline(serve: Serve) -> None:
    speaker = await open_speaker(serve)
    answer = await speaker.send(speech())
    assert answer.status == 200
    assert set(WORDS) <= set(answer.json["text"].split())
    assert (answer.json["tokens_used"], await speaker.balance()) == (375, START - 375)


@on_memory
async def test_offline_in_another_format(serve: Serve) -> None:
    speaker = await open_speaker(serve, OFFLINE)
    answer = await speaker.send(converted(speech(), "webm"), language="en-GB")
    assert set(WORDS) <= set(answer.json["text"].split())


@on_memory
async def test_offline_in_another_language(serve: Serve) -> None:
    speaker = await open_speaker(serve, OFFLINE)
    answer = await speaker.send(tone(1), language="de")
    error = "language must be en: this server knows no other"
    assert (answer.status, answer.json) == (400, {"success": False, "error": error})


@on_memory
async def test_offline_in_time(serve: Serve) -> None:
    speaker = await open_speaker(serve, OFFLINE | {"apis.metering.transcription.timeout": 1})
    answer = await speaker.send(tone(600, "flac"))
    assert (answer.status, answer.json, await speaker.balance()) == (500, FAILED, START)


@on_memory
async def test_without_an_engine(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.server.apis.metering.engines.find_spec", lambda name: None)
    speaker = await open_speaker(serve)
    answer = await speaker.send(tone(1))
    assert (answer.status, answer.json) == (503, {"success": False, "error": "Transcription is not configured"})
