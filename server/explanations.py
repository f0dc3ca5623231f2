"""Why a value does not fit a schema, in words: `jsonschema`'s errors become `Problem`s.

A schema may bring its own words: its ``errorMessage`` (as in ajv-errors) stands for whatever does not hold in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from ..storage.documents import encode
from .errors import MAX_PROBLEMS, Problem, json_pointer
from .validation import FORMATS

if TYPE_CHECKING:
    import jsonschema_rs

_LONGEST_SEARCH = 0.5
"""Seconds after which no further problem is looked for: a megabyte can hold seconds of work before the first."""
_FORMATS = {
    "instant": "an RFC 3339 date-time such as 2025-06-03T10:30:00Z",
    "date": "a date such as 2025-06-03",
}
_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_SIZES = {
    "number": ("minimum", "maximum", ""),
    "integer": ("minimum", "maximum", ""),
    "string": ("minLength", "maxLength", "character"),
    "array": ("minItems", "maxItems", "item"),
    "object": ("minProperties", "maxProperties", "member"),
}
_DESCRIBED = {"type", "format", "enum", "const", "exclusiveMinimum", "exclusiveMaximum"}.union(
    *(sizes[:2] for sizes in _SIZES.values())
)
"""The keywords that `describe` puts into words, all of a schema's together."""


class _OutOfTime(Exception):
    pass


def explain(uri: str, documents: Mapping[str, Any], value: Any) -> list[Problem]:
    """The first hundred problems, as far as half a second goes."""
    found: dict[tuple[Any, ...], Problem] = {}
    with suppress(_OutOfTime):
        for error in _validator(uri, documents).iter_errors(value):
            for problem in _problems(error):
                found.setdefault((problem.path, problem.message), problem)
            if len(found) >= MAX_PROBLEMS:
                break
    return list(found.values())[:MAX_PROBLEMS]


def explain_one(error: jsonschema_rs.ValidationError, schema: Any) -> Problem:
    """The problem that jsonschema_rs found, with the schema that its keyword stands in."""
    message = _message(error.kind.name, error.kind.value, schema)
    return Problem(tuple(error.instance_path), message, error.kind.name, json_pointer(error.schema_path))


def _validator(uri: str, documents: Mapping[str, Any]) -> Draft202012Validator:
    """A validator that gives up when its time is over, which it looks at wherever a schema says ``type``."""
    end = time.monotonic() + _LONGEST_SEARCH
    check_type = Draft202012Validator.VALIDATORS["type"]

    def check_time_and_type(validator: Any, types: Any, value: Any, schema: Any) -> Any:
        if time.monotonic() > end:
            raise _OutOfTime
        return check_type(validator, types, value, schema)

    formats = FormatChecker(formats=())
    for name, check in FORMATS.items():
        formats.checks(name)(check)
    registry: Registry[Any] = Registry().with_resources(
        [(name, DRAFT202012.create_resource(contents)) for name, contents in documents.items()]
    )
    timed: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]  # its stub says nothing
        Draft202012Validator, {"type": check_time_and_type}
    )
    return timed({"$ref": uri}, registry=registry, format_checker=formats)


def _problems(error: ValidationError) -> Iterator[Problem]:
    path = tuple(error.absolute_path)
    keyword, value, instance = str(error.validator), cast("Any", error.validator_value), cast("Any", error.instance)
    pointer = json_pointer(step for step in error.absolute_schema_path if step != "$ref")
    schema = error.schema if isinstance(error.schema, dict) else {}
    match keyword:
        case "required":
            for name in value:
                if name not in instance:
                    yield Problem((*path, name), "is required", keyword, pointer)
        case "additionalProperties" | "unevaluatedProperties" if value is False:
            for name in instance:
                if name not in schema.get("properties", ()):
                    yield Problem((*path, name), "is not allowed", keyword, pointer)
        case "anyOf" | "oneOf" if error.context and "errorMessage" not in schema:
            best = best_match(iter([error]))
            told = dict.fromkeys(_message(str(e.validator), e.validator_value, e.schema) for e in error.context)
            if best is not None and len(best.absolute_path) > len(path):
                yield from _problems(best)
            else:
                either = " or ".join(message.removeprefix("must be ") for message in told)
                yield Problem(path, f"must be {either}", keyword, pointer)
        case _:
            yield Problem(path, _message(keyword, value, schema), keyword, pointer)


def _message(keyword: str, value: Any, schema: Any) -> str:
    if isinstance(schema, dict) and "errorMessage" in schema:
        return str(schema["errorMessage"])
    if keyword in _DESCRIBED:
        return f"must be {describe(schema)}"
    match keyword:
        case "pattern":
            return f"must match the pattern {value}"
        case "multipleOf":
            return f"must be a multiple of {value}"
        case "uniqueItems":
            return "must not hold the same item twice"
        case "additionalProperties" | "unevaluatedProperties" | "falseSchema" | "not":
            return "is not allowed"
        case "required":
            return f"must have {value}" if isinstance(value, str) else f"must have {', '.join(value)}"
        case "dependentRequired":
            return "lacks members that others of its members need: " + encode(value).decode()
    return f"does not fit the schema's {keyword}"


def describe(schema: Mapping[str, Any]) -> str:
    """What a value must be, in words: ``an integer of at least 0``."""
    if "const" in schema:
        return encode(schema["const"]).decode()
    if "enum" in schema:
        return "one of " + ", ".join(encode(option).decode() for option in schema["enum"])
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    if schema.get("format") == "plain-text":
        return describe({**schema, "format": None}) + " without control characters"
    if schema.get("format") == "hex":
        return describe({**schema, "format": None}).replace("character", "hexadecimal digit")
    types = schema.get("type", "value")
    if isinstance(types, list):
        return " or ".join(describe({**schema, "type": one}) for one in types)
    return _TYPES.get(types, "a value") + _size(types, schema)


def _size(type_: str, schema: Mapping[str, Any]) -> str:
    if type_ not in _SIZES:
        return ""
    at_least, at_most, unit = _SIZES[type_]
    low, high = schema.get(at_least), schema.get(at_most)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    unit = f" {unit}{'' if (low if high is None else high) == 1 else 's'}" if unit else ""
    if above is not None or below is not None:
        bounds = [f"above {above}" if above is not None else "", f"below {below}" if below is not None else ""]
        return " " + " and ".join(bound for bound in bounds if bound)
    if low is not None and low == high:
        return f" of exactly {low}{unit}"
    if low is not None and high is not None:
        return f" {'of' if unit else 'from'} {low} to {high}{unit}"
    if low is not None:
        return f" of at least {low}{unit}"
    if high is not None:
        return f" of at most {high}{unit}"
    return ""
