"""Instants, as integer microseconds since 1970-01-01T00:00:00Z (contracts/README.md, "Time")."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LONGEST_REMEMBERED = 40
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]((?:[01][0-9]|2[0-3]):[0-9]{2}:)([0-9]{2})(?:\.([0-9]+))?"
    r"([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)


def parse_time(text: str) -> int:
    """The instant of an RFC 3339 date-time; one without an offset means UTC.

    Digits beyond the microsecond are dropped. A leap second (``23:59:60Z``) is the second after it.
    Raises ValueError for anything else and for instants outside the years 1 to 9999.
    """
    # A request's time is read when it is checked and when it is used.
    return _remembered(text) if len(text) <= _LONGEST_REMEMBERED else _parse(text)


def _parse(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z")
    day, minutes, seconds, fraction, offset = match.groups()
    leap = seconds == "60"
    if not offset or offset in "Zz":
        offset = "+00:00"
    try:
        local = datetime.fromisoformat(f"{day}T{minutes}{'59' if leap else seconds}{offset}")
        instant = local.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a date and time that exist") from error
    if leap and (instant.hour, instant.minute) != (23, 59):
        raise ValueError("must be a date and time that exist")
    micros = (instant - _EPOCH) // _MICROSECOND
    if fraction:
        micros += int(fraction[:6].ljust(6, "0"))
    if leap:
        micros += SECOND
    if micros > _LAST:
        raise ValueError("must be a date and time that exist")
    return micros


_remembered = lru_cache(maxsize=1024)(_parse)


def format_time(micros: int) -> str:
    """ISO 8601 in UTC with milliseconds: ``2025-12-30T18:00:00.000Z``."""
    return f"{format_instant(micros)[:23]}Z"


def format_instant(micros: int) -> str:
    """The same with microseconds, ``2025-12-30T18:00:00.000000Z``: as texts these sort as the instants do."""
    day, rest = divmod(micros, DAY)
    second, micros = divmod(rest, SECOND)
    return f"{_day(day)}T{_second(second)}.{micros:06}Z"


@lru_cache(maxsize=1024)
def _second(number: int) -> str:
    """The time of a second of a day."""
    return f"{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}"


@lru_cache(maxsize=1024)
def _day(number: int) -> str:
    """The date of a day, counted from 1970-01-01."""
    return (_EPOCH + timedelta(days=number)).date().isoformat()
