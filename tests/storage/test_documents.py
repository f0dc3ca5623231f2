"""storage/documents.py: JSON as contracts/README.md has it."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeport.storage.documents import MAX_DEPTH, MAX_DIGITS, InvalidDocument, decode, encode


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


TAKEN = [
    pytest.param(b"null", None, id="null"),
    pytest.param(b" \t\r\n[ 1 ,\n2 ] \n", [1, 2], id="white space"),
    pytest.param(b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}, id="the last of duplicate names"),
    pytest.param(b'{"":{"":0}}', {"": {"": 0}}, id="empty names"),
    pytest.param(rb'"\u0000\/\"\\\b\f\n\r\t"', '\0/"\\\b\f\n\r\t', id="escapes"),
    pytest.param(rb'"\ud83d\ude00 \uD83D\uDE00"', "😀 😀", id="surrogate pairs"),
    pytest.param(rb'"\\ud800"', "\\ud800", id="no surrogate"),
    pytest.param('"é\x7f\u2028\uffff😀\U0010ffff"'.encode(), "é\x7f\u2028\uffff😀\U0010ffff", id="UTF-8"),
    pytest.param(b"-9223372036854775809", -(2**63) - 1, id="below 64 bits"),
    pytest.param(b"18446744073709551616", 2**64, id="above 64 bits"),
    pytest.param(b"9" * MAX_DIGITS, 10**MAX_DIGITS - 1, id="the longest integer"),
    pytest.param(b"-" + b"9" * MAX_DIGITS, 1 - 10**MAX_DIGITS, id="the longest negative integer"),
    pytest.param(b"0." + b"1" * 5000, 1 / 9, id="more digits than an integer may have"),
    pytest.param(b'"%b"' % (b"1" * 5000), "1" * 5000, id="digits in a string"),
    pytest.param(b"1e-400", 0.0, id="underflow"),
    pytest.param(b"1.7976931348623157e308", 1.7976931348623157e308, id="the greatest double"),
    pytest.param(b"5e-324", 5e-324, id="the least double"),
    pytest.param(b"100000000000000000000.0", 1e20, id="an integer with a point"),
]

REFUSED = [
    pytest.param(b"", "is not JSON", id="nothing"),
    pytest.param(b" \n", "is not JSON", id="white space alone"),
    pytest.param(b'{"a":1', "is not JSON", id="cut off"),
    pytest.param(b'{"a":1}x', "is not JSON: trailing characters", id="more than one"),
    pytest.param(b"{} {}", "is not JSON: trailing characters", id="two"),
    pytest.param(b'{"a":1,}', "is not JSON: trailing comma", id="trailing comma"),
    pytest.param(b"{a:1}", "is not JSON: object keys must be strings", id="bare name"),
    pytest.param(b"{1:1}", "is not JSON: object keys must be strings", id="number as name"),
    pytest.param(b"{'a':1}", "is not JSON", id="single quotes"),
    pytest.param(b"// x\n1", "is not JSON", id="comment"),
    pytest.param(b"\xef\xbb\xbf{}", "is not JSON", id="byte order mark"),
    pytest.param("{}".encode("utf-16"), "is not JSON", id="UTF-16"),
    pytest.param(b"\xa0{}", "is not JSON", id="no-break space"),
    pytest.param(b"\0{}", "is not JSON", id="U+0000 before"),
    pytest.param(b'"a\0b"', "is not JSON", id="bare U+0000"),
    pytest.param(b'"a\nb"', "is not JSON", id="bare line feed"),
    pytest.param(b'"a\tb"', "is not JSON", id="bare tab"),
    pytest.param(rb'"\x41"', "is not JSON", id="no escape of JSON's"),
    pytest.param(rb'"\u12"', "is not JSON", id="short escape"),
    pytest.param(b"01", "is not JSON", id="leading zero"),
    pytest.param(b"+1", "is not JSON", id="plus"),
    pytest.param(b".5", "is not JSON", id="no integer part"),
    pytest.param(b"1.", "is not JSON", id="no fraction"),
    pytest.param(b"0x10", "is not JSON", id="hexadecimal"),
    pytest.param(b"True", "is not JSON", id="Python"),
    *[pytest.param(text, "is not JSON", id=text.decode()) for text in (b"NaN", b"Infinity", b"-Infinity")],
    pytest.param(b'"\xff"', "is not UTF-8: byte 0 of a string", id="not UTF-8"),
    pytest.param(b'{"ab\xc0\x80":1}', "is not UTF-8: byte 2 of a string", id="overlong, in a name"),
    pytest.param(b'"\xed\xa0\x80"', "is not UTF-8", id="a surrogate in UTF-8"),
    pytest.param(b'"\xf4\x90\x80\x80"', "is not UTF-8", id="beyond Unicode"),
    pytest.param(rb'"\ud800"', "half of a surrogate pair", id="first half alone"),
    pytest.param(rb'"\udc00"', "half of a surrogate pair", id="second half alone"),
    pytest.param(rb'"\ude00\ud83d"', "half of a surrogate pair", id="halves exchanged"),
    pytest.param(rb'{"\ud83d\u0041":1}', "half of a surrogate pair", id="half in a name"),
    pytest.param(b"1e309", "holds a number out of range", id="overflow"),
    pytest.param(b"-1e400", "holds a number out of range", id="negative overflow"),
    pytest.param(b"1" + b"0" * 400 + b".5", "holds a number out of range", id="overflow without an exponent"),
    pytest.param(b"[1%b]" % (b"0" * MAX_DIGITS), "integer of more than 4000 digits", id="one digit too many"),
    pytest.param(b'{"a":[-1%b]}' % (b"0" * MAX_DIGITS), "integer of more than 4000 digits", id="and negative"),
    pytest.param(b"9" * 5000, "holds a number out of range", id="many digits too many"),
    pytest.param(nested(MAX_DEPTH + 1), "nested deeper than 128 levels", id="one level too many"),
    pytest.param(b"[[],%b]" % nested(MAX_DEPTH), "nested deeper than 128 levels", id="one level too many, beside"),
    pytest.param(nested(MAX_DEPTH + 1, b'{"":', b"}").replace(b":}", b":1}"), "nested deeper", id="objects"),
    *[
        pytest.param(
            (b"[%b," % before) * (MAX_DEPTH + 1) + b"1" + (b",%b]" % after) * (MAX_DEPTH + 1),
            "nested deeper",
            id=f"hidden by {name}",
        )
        for name, before, after in [
            ("brackets in strings", b'"]"', b'"["'),
            ("strings that end with one", b'"a]"', b'"[b"'),
            ("escaped quotes", rb'"\"]"', rb'"\"["'),
            ("brackets in two strings", b'"]","]"', b'"[","["'),
            ("escaped brackets", rb'"\u005d"', rb'"\u005b"'),
        ]
    ],
    pytest.param(nested(100_000), "nested deeper than 128 levels", id="far too deep"),
    pytest.param(b"[" * 100_000, "nested deeper than 128 levels", id="far too deep and cut off"),
]


@pytest.mark.parametrize(("text", "value"), TAKEN)
def test_what_is_json(text: bytes, value: object) -> None:
    assert decode(text) == value
    assert type(decode(text)) is type(value)


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_not(text: bytes, message: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        decode(text)
    assert message in str(caught.value)
    assert caught.value.field is None
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("text", [b"-0.0", b"-0e5", b"-1e-400"])
def test_zero_keeps_its_sign(text: bytes) -> None:
    assert math.copysign(1, decode(text)) == -1
    assert encode(decode(text)) == b"-0.0"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(nested(MAX_DEPTH), id="lists"),
        pytest.param(nested(MAX_DEPTH, b'{"":', b"}").replace(b":}", b":1}"), id="objects"),
        pytest.param(b"[%b]" % b",".join([nested(MAX_DEPTH - 1)] * 10), id="many, side by side"),
        pytest.param(b'["%b"]' % nested(1000), id="in a string"),
    ],
)
def test_the_deepest(text: bytes) -> None:
    decode(text)


def depth(text: str) -> int:
    """How deep a JSON text is nested, by its letters."""
    deepest = level = 0
    in_string = escaped = False
    for letter in text:
        if in_string:
            in_string = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            in_string = True
        elif letter in "[{":
            level += 1
            deepest = max(deepest, level)
        elif letter in "]}":
            level -= 1
    return deepest


BRACKETS = st.text('[]{}"\\a,', max_size=6)


@given(
    st.integers(MAX_DEPTH - 3, MAX_DEPTH + 3),
    st.lists(st.tuples(st.sampled_from(["list", "object", "beside"]), BRACKETS, BRACKETS), min_size=1, max_size=8),
    st.sampled_from([0, 5000]),
)
def test_how_deep_is_too_deep(levels: int, layers: list[tuple[str, str, str]], padding: int) -> None:
    """Whatever strings there are, in texts that are short and long."""
    text = "1"
    for number in range(levels):
        kind, one, other = layers[number % len(layers)]
        before, after = json.dumps(f"{one}1"), json.dumps(f"{other}2")  # of the same names only the last would count
        match kind:
            case "list":
                text = f"[{json.dumps(one)},{text},{json.dumps(other)}]"
            case "object":
                text = f"{{{before}:{text},{after}:[{before}]}}"
            case _:
                text = f"[[{before}],[],{{{after}:[]}},{text}]"
    text += " " * padding
    if depth(text) <= MAX_DEPTH:
        decode(text.encode())
    else:
        with pytest.raises(InvalidDocument, match="nested deeper"):
            decode(text.encode())


def test_long_digits_take_no_long_time() -> None:
    numbers = b"[%b]" % b",".join([b"9" * MAX_DIGITS] * 250)
    string = b'["%b"]' % (b"1" * (1 << 20))
    began = time.process_time()
    decode(numbers)
    decode(string)
    assert time.process_time() - began < 5


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
JSON = st.recursive(
    SCALARS,
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children),
)


def same(a: object, b: object) -> bool:
    """Equal, with types, signs of zero and the order of names."""
    return repr(a) == repr(b)


@given(JSON)
def test_what_is_encoded_is_decoded_the_same(value: object) -> None:
    assert same(decode(encode(value)), value)


@given(JSON, st.booleans(), st.sampled_from([None, 0, 2, "\t"]))
def test_the_standard_library_reads_the_same(value: object, ascii_only: bool, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert same(decode(text.encode()), value)
    assert same(json.loads(encode(value)), value)


@given(
    JSON, st.integers(0, 200), st.sampled_from(list(b'{}[],:"\\0123456789.eE+-truefalsn \n\x00\x80\xff')), st.booleans()
)
@example([1], 1, ord("-"), False)
def test_what_is_taken_of_broken_texts_others_take_too(value: object, place: int, byte: int, instead: bool) -> None:
    text = bytearray(encode(value))
    place %= len(text)
    text[place : place + instead] = bytes([byte])
    try:
        taken = decode(bytes(text))
    except InvalidDocument:
        return
    assert same(taken, json.loads(bytes(text).decode()))
