"""What an audio file plays and what that costs (contracts/metering.md, "Cost")."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .workers import WorkerDied

if TYPE_CHECKING:
    from .workers import Workers

_SECONDS = 120
_CPU_SECONDS = 60
"""25 MB of the lowest rates that are in use, nine hours of speech, take half of it."""
_MINUTE = 60 * 100


class InvalidAudio(Exception):
    """The file is no audio that can be decoded."""


class Audio(NamedTuple):
    """What is known of a file. ``hundredths``: of a second, that it plays. ``format``: as file names end on it."""

    hundredths: int
    format: str

    def seconds(self, *, whole: bool) -> int | float:
        """How long it plays: with two decimals at most, or rounded up to ``whole`` seconds."""
        if whole:
            return -(-self.hundredths // 100)
        return self.hundredths / 100 if self.hundredths % 100 else self.hundredths // 100

    def cost(self, tokens_per_minute: int) -> int:
        """Tokens: of whole minutes, to the nearest, half up, at least one."""
        return tokens_per_minute * max(1, (self.hundredths + _MINUTE // 2) // _MINUTE)


async def measure(workers: Workers, file: BinaryIO) -> Audio:
    """Decodes a file to its end: what it says of its length may be wrong. Raises `InvalidAudio`."""
    try:
        found = await workers.run("measure", file, seconds=_SECONDS, cpu=_CPU_SECONDS)
    except WorkerDied as died:
        if died.status > 0:
            raise  # it did not come to the file
        raise InvalidAudio(f"the decoder died of signal {-died.status}") from died
    if error := found.get("error"):
        raise InvalidAudio(error)
    return Audio(found["hundredths"], found["format"])
