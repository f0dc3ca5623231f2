"""What the tests of transcription share: speech, audio files of every format, and who sends them."""

import asyncio
import io
import math
import shutil
import subprocess
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
import av
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from .conftest import Answer, Serve
from .licensed import Shop, bearer, open_shop

WORDS = ("two", "three", "four", "five", "six")
"""Of what `speech` says, those that pocketsphinx recognizes."""
FORMATS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "mp3": ("mp3", "libmp3lame", 16_000),
    "m4a": ("ipod", "aac", 16_000),
    "flac": ("flac", "flac", 16_000),
    "ogg": ("ogg", "flac", 16_000),
    "opus": ("opus", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
}
"""By the contract's names: FFmpeg's of container and codec, and the rate."""


@cache
def speech() -> bytes:
    """A WAV file of two seconds in which somebody counts from one to six."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    command = ("espeak-ng", "-v", "en-us", "--stdout", "one two three four five six")
    return subprocess.run(command, check=True, capture_output=True).stdout


@cache
def tone(seconds: float, suffix: str = "wav", rate: int | None = None) -> bytes:
    """A file of so many seconds."""
    container, codec, own_rate = FORMATS[suffix]
    rate = rate or own_rate
    second = array("h", [int(8000 * math.sin(2 * math.pi * 440 * place / rate)) for place in range(rate)]).tobytes()
    whole, part = divmod(round(seconds * rate), rate)
    return _encoded([second] * whole + [second[: part * 2]], container, codec, rate)


def converted(wav: bytes, suffix: str) -> bytes:
    """A file in another format."""
    container, codec, rate = FORMATS[suffix]
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    with av.open(io.BytesIO(wav), "r") as source:
        frames = [out for frame in [*source.decode(audio=0), None] for out in resampler.resample(frame)]
    return _encoded([bytes(frame.planes[0])[: frame.samples * 2] for frame in frames], container, codec, rate)


def _encoded(parts: list[bytes], container: str, codec: str, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        at = 0
        for part in filter(None, parts):
            frame = av.AudioFrame(format="s16", layout="mono", samples=len(part) // 2)
            frame.planes[0].update(part.ljust(frame.planes[0].buffer_size, b"\0"))
            frame.rate, frame.pts = rate, at
            at += frame.samples
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


# Who sends them

SERVICE_KEY = "sk-of-the-service"


class Speaker:
    """Somebody with a license."""

    def __init__(self, shop: Shop, key: str, user_id: str) -> None:
        self.shop = shop
        self.key = key
        self.user_id = user_id

    async def send(self, file: bytes | None, headers: dict[str, str] | None = None, **fields: str) -> Answer:
        """Posts a form with a file, if there is one, and fields."""
        form = aiohttp.FormData(fields, default_to_multipart=True)
        if file is not None:
            form.add_field("file", io.BytesIO(file), filename="../../etc/passwd", content_type="text/html")
        return await self.post(form, headers)

    async def post(self, data: Any, headers: dict[str, str] | None = None) -> Answer:
        given = {**bearer(self.key), **(headers or {})}
        return await self.shop.server("POST", "/api/desktop/transcribe", data=data, headers=given)

    async def balance(self) -> int:
        tokens: int = (await self.shop.balance(self.key)).json["tokens_balance"]
        return tokens

    async def ledger(self) -> list[int]:
        """What the balance grew by, the oldest first."""
        answer = await self.shop.get("/api/tokens/transactions", self.key)
        return [entry["tokens_amount"] for entry in reversed(answer.json["transactions"])]


async def open_speaker(serve: Serve, settings: dict[str, Any] | None = None) -> Speaker:
    shop = await open_shop(serve, settings)
    owned, key = await shop.license()
    return Speaker(shop, key, owned.user_id)


# What the server asks


@dataclass
class Asked:
    """A request for a transcription, as it came to a `Service`."""

    authorization: str | None
    fields: dict[str, str]
    filename: str | None
    file: bytes


Act = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Service:
    """A stand-in of OpenAI's ``/v1/audio/transcriptions`` on this machine."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.acts: list[Act] = []
        """What happens to the next requests; after them, they are answered."""
        self.text = "Transcribed text here"
        self._server = TestServer(self._app())

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=30 << 20)
        app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        return app

    async def __aenter__(self) -> "Service":
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    @property
    def settings(self) -> dict[str, Any]:
        """A configuration that uses it."""
        return {
            "apis.metering.transcription.base_url": str(self._server.make_url("/v1")),
            "apis.metering.transcription.api_key": SERVICE_KEY,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same, for `homeport serve`."""
        base_url = self.settings["apis.metering.transcription.base_url"]
        return {"HOMEPORT_APIS__METERING__TRANSCRIPTION__BASE_URL": base_url, "OPENAI_API_KEY": SERVICE_KEY}

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        with file.file:
            content = file.file.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        self.asked.append(Asked(request.headers.get("Authorization"), fields, file.filename, content))
        if self.acts:
            return await self.acts.pop(0)(request)
        return web.json_response({"text": self.text})


def answering(status: int, body: str = "the key sk-123 of /srv is wrong", **headers: str) -> Act:
    """An act: answers so, and asks for no second try."""

    async def act(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"x-should-retry": "false", **headers})

    return act


async def cut_off(request: web.Request) -> web.StreamResponse:
    """An act: breaks off in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"text": "Transcr')
    assert request.transport is not None
    request.transport.close()
    return response


def waiting(event: asyncio.Event) -> Act:
    """An act: answers when it may."""

    async def act(_: web.Request) -> web.Response:
        await event.wait()
        return web.json_response({"text": "late"})

    return act
