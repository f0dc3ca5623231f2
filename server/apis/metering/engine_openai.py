"""Speech to text by a service that speaks OpenAI's ``/audio/transcriptions``, with OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, BinaryIO

from ....storage.documents import InvalidDocument, decode
from .engine import TranscriptionFailed

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from ...config import TranscriptionConfig
    from .audio import Audio

_MAX_ANSWER = 4 << 20
"""Bytes; nine hours of speech are half a million letters."""
_RETRIES = 2
"""As often as a service is busy or does not answer; the pauses are the client's, a second or two."""
_NO_KEY = "none"
"""For a service that asks for none; the client insists on one."""


class OpenAI:
    """A service by its ``base_url``."""

    def __init__(self, config: TranscriptionConfig) -> None:
        self._config = config
        self._opening = asyncio.Lock()
        self._client: AsyncOpenAI | None = None

    def speaks(self, language: str) -> bool:
        """The service says which."""
        return True

    async def transcribe(self, file: BinaryIO, audio: Audio, model: str, language: str) -> str:
        """As `Engine` has it. The file goes out as it is read."""
        client = await self._open()
        try:
            async with client.audio.transcriptions.with_streaming_response.create(
                file=(f"audio.{audio.format}", file), model=model, language=language, response_format="json"
            ) as response:
                body = bytearray()
                async for part in response.iter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER:
                        raise TranscriptionFailed(f"the service answered more than {_MAX_ANSWER:,} bytes")
        except TranscriptionFailed:
            raise
        except Exception as error:
            status = getattr(error, "status_code", None)
            what = type(error).__name__ if status is None else f"it answered {status}"
            raise TranscriptionFailed(f"the service failed: {what}") from error
        return _text(bytes(body))

    async def close(self) -> None:
        """Closes the connections that are kept."""
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(_make, self._config)
        return self._client


def _make(config: TranscriptionConfig) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        base_url=config.base_url,
        api_key=_NO_KEY if config.api_key is None else config.api_key.reveal(),
        timeout=config.timeout,
        max_retries=_RETRIES,
    )


def _text(body: bytes) -> str:
    try:
        document: Any = decode(body)
    except InvalidDocument:
        document = None
    match document:
        case {"text": str(text)}:
            return text
    raise TranscriptionFailed("the service answered something that is no transcription")
