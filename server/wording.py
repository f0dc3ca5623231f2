"""What a schema asks for, in words.

A schema may bring its own: its ``errorMessage`` (as in ajv-errors) stands for whatever does not hold in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..storage.documents import encode
from .errors import Problem, json_pointer

if TYPE_CHECKING:
    import jsonschema_rs

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


def explain_one(error: jsonschema_rs.ValidationError, schema: Any) -> Problem:
    """The problem that jsonschema_rs found, with the schema that its keyword stands in."""
    text = message(error.kind.name, error.kind.value, schema)
    return Problem(tuple(error.instance_path), text, error.kind.name, json_pointer(error.schema_path))


def message(keyword: str, value: Any, schema: Any) -> str:
    """What must hold, as one keyword of a schema says it, with its value there."""
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
    if keyword == "oneOf":
        return "must fit one of the alternatives, and no second one"
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
    if schema.get("format"):
        return describe({**schema, "format": None}) + f" in the format {schema['format']}"
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
