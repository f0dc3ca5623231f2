"""storage/times.py: instants as microseconds (contracts/README.md, "Time")."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.storage.times import DAY, HOUR, MINUTE, SECOND, format_time, parse_time

FIRST = -62_135_596_800 * SECOND
LAST = 253_402_300_800 * SECOND - 1

TAKEN = [
    pytest.param("1970-01-01T00:00:00Z", 0, id="the epoch"),
    pytest.param("1970-01-02T01:01:01Z", DAY + HOUR + MINUTE + SECOND, id="units"),
    pytest.param("1970-01-01T00:00:00", 0, id="no offset is UTC"),
    pytest.param("1970-01-01t00:00:00z", 0, id="lower case"),
    pytest.param("1970-01-01 00:00:00Z", 0, id="a blank between"),
    pytest.param("1970-01-01T02:00:00+02:00", 0, id="an offset"),
    pytest.param("1969-12-31T14:30:00-09:30", 0, id="an offset to the west"),
    pytest.param("1970-01-01T00:00:00-00:00", 0, id="an unknown offset"),
    pytest.param("1970-01-01T23:59:00+23:59", 0, id="the greatest offset"),
    pytest.param("1969-12-31T23:59:59.999999Z", -1, id="a microsecond before"),
    pytest.param("1970-01-01T00:00:00.5Z", 500_000, id="a tenth"),
    pytest.param("1970-01-01T00:00:00.000001Z", 1, id="a microsecond"),
    pytest.param("1970-01-01T00:00:00.0000019999999999999999999Z", 1, id="what is less is dropped"),
    pytest.param("1969-12-31T23:59:59.9999999Z", -1, id="and not rounded, before the epoch too"),
    pytest.param("2024-02-29T00:00:00Z", 1_709_164_800 * SECOND, id="leap day"),
    pytest.param("2016-12-31T23:59:60Z", 1_483_228_800 * SECOND, id="leap second"),
    pytest.param("2016-12-31T23:59:60.25Z", 1_483_228_800 * SECOND + 250_000, id="within a leap second"),
    pytest.param("2016-12-31T15:59:60-08:00", 1_483_228_800 * SECOND, id="leap second elsewhere"),
    pytest.param("0001-01-01T00:00:00Z", FIRST, id="the first"),
    pytest.param("9999-12-31T23:59:59.999999Z", LAST, id="the last"),
]

NO_FORM = "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"
NO_TIME = "must be a date and time that exist"

REFUSED = [
    *[
        pytest.param(text, NO_FORM, id=ascii(text))
        for text in [
            "",
            "now",
            "2025-06-03",
            "2025-06-03T10:30Z",
            "2025-06-03T10:30:00 Z",
            "2025-06-03T10:30:00+1000",
            "2025-06-03T10:30:00+10",
            "2025-06-03T10:30:00+10:00:30",
            "2025-06-03T10:30:00+24:00",
            "2025-06-03T10:30:00+10:60",
            "2025-06-03T10:30:00.Z",
            "2025-06-03T10:30:00,5Z",
            "2025-06-03T24:00:00Z",
            "2025-6-3T10:30:00Z",
            "20250603T103000Z",
            "+2025-06-03T10:30:00Z",
            "12025-06-03T10:30:00Z",
            "2025-W23-2T10:30:00Z",
            "2025-06-03_10:30:00Z",
            "2025-06-03T10:30:00Z\n",
            " 2025-06-03T10:30:00Z",
            "\uff12025-06-03T10:30:00Z",
            "2025-06-03T10:30:00\u0660Z",
        ]
    ],
    *[
        pytest.param(text, NO_TIME, id=text)
        for text in [
            "2025-02-29T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-00-01T00:00:00Z",
            "2025-06-31T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2025-06-03T10:60:00Z",
            "2025-06-03T10:30:61Z",
            "2025-06-03T10:30:60Z",
            "2016-12-31T23:59:60-08:00",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:60Z",
        ]
    ],
]


@pytest.mark.parametrize(("text", "micros"), TAKEN)
def test_instants(text: str, micros: int) -> None:
    assert parse_time(text) == micros


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_no_instant(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_time(text)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        pytest.param(0, "1970-01-01T00:00:00.000Z", id="the epoch"),
        pytest.param(999, "1970-01-01T00:00:00.000Z", id="less than a millisecond"),
        pytest.param(1_999, "1970-01-01T00:00:00.001Z", id="is dropped"),
        pytest.param(-1, "1969-12-31T23:59:59.999Z", id="before the epoch"),
        pytest.param(FIRST, "0001-01-01T00:00:00.000Z", id="the first"),
        pytest.param(LAST, "9999-12-31T23:59:59.999Z", id="the last"),
    ],
)
def test_format(micros: int, text: str) -> None:
    assert format_time(micros) == text


@given(st.integers(FIRST, LAST))
def test_what_is_formatted_is_read_to_the_millisecond(micros: int) -> None:
    assert parse_time(format_time(micros)) == micros // 1000 * 1000


OFFSETS = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=OFFSETS))  # noqa: DTZ001 - hypothesis adds the zone
def test_the_standard_library_reads_the_same(moment: datetime) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_time(moment.isoformat()) == (moment - epoch) // timedelta(microseconds=1)
