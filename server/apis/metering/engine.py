"""What an engine is: it turns speech to text (contracts/metering.md, "Engines")."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from .audio import Audio


class TranscriptionFailed(Exception):
    """Why, for the log: no word of it is a service's, or goes to a client."""


class Engine(Protocol):
    """Turns speech to text, within a time that is the caller's matter."""

    def speaks(self, language: str) -> bool:
        """Whether it knows a language, by its tag (BCP 47)."""
        ...

    async def transcribe(self, file: BinaryIO, audio: Audio, model: str, language: str) -> str:
        """The words of a file, which it reads from the beginning. Raises `TranscriptionFailed`, and `InvalidAudio`
        where that is the file's fault."""
        ...

    async def close(self) -> None: ...
