"""Engines: what turns speech to text (contracts/metering.md, "Engines")."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

from .audio import InvalidAudio
from .workers import WorkerDied

if TYPE_CHECKING:
    from ...config import TranscriptionConfig
    from .audio import Audio
    from .workers import Workers

_NEEDS = {"openai": ("av", "openai"), "pocketsphinx": ("av", "pocketsphinx")}


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


def chosen(config: TranscriptionConfig) -> Literal["openai", "pocketsphinx"] | None:
    """The engine that a configuration asks for; None where what it needs is not installed."""
    name = config.engine
    if name == "auto":
        name = "pocketsphinx" if config.api_key is None else "openai"
    return name if all(map(find_spec, _NEEDS[name])) else None


def make(config: TranscriptionConfig, workers: Workers) -> Engine | None:
    """The engine that is `chosen`."""
    match chosen(config):
        case "openai":
            from .engine_openai import OpenAI

            return OpenAI(config)
        case "pocketsphinx":
            return Pocketsphinx(workers, config.timeout)
    return None


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
