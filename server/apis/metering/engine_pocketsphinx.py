"""Speech to text without any service, in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from .audio import InvalidAudio
from .engine import TranscriptionFailed
from .workers import WorkerDied

if TYPE_CHECKING:
    from .audio import Audio
    from .workers import Workers


class Pocketsphinx:
    """Without any service, and in English; with the model that comes with its package, whatever model is named."""

    def __init__(self, workers: Workers, timeout: int) -> None:
        """``timeout``: seconds."""
        self._workers = workers
        self._timeout = timeout

    def speaks(self, language: str) -> bool:
        return language.partition("-")[0].lower() == "en"

    async def transcribe(self, file: BinaryIO, audio: Audio, model: str, language: str) -> str:
        """As `Engine` has it."""
        try:
            found = await self._workers.run("recognize", file, seconds=self._timeout, cpu=self._timeout)
        except WorkerDied as died:
            raise TranscriptionFailed(f"pocketsphinx {died}") from died
        if error := found.get("error"):
            raise InvalidAudio(error)
        text: str = found["text"]
        return text

    async def close(self) -> None:
        """Nothing is open between two files."""
