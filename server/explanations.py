"""Why a value does not fit a schema: `jsonschema`'s errors become `Problem`s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from .errors import MAX_PROBLEMS, Problem, json_pointer
from .wording import message

Formats = Mapping[str, Callable[[object], bool]]
"""What asserts each ``format``."""

_LONGEST_SEARCH = 0.5
"""Seconds after which no further problem is looked for: a megabyte can hold seconds of work before the first."""


class _OutOfTime(Exception):
    pass


def explain(uri: str, documents: Mapping[str, Any], formats: Formats, value: Any) -> list[Problem]:
    """The first hundred problems, as far as half a second goes."""
    found: dict[tuple[Any, ...], Problem] = {}
    with suppress(_OutOfTime):
        for error in _validator(uri, documents, formats).iter_errors(value):
            for problem in _problems(error):
                found.setdefault((problem.path, problem.message), problem)
            if len(found) >= MAX_PROBLEMS:
                break
    return list(found.values())[:MAX_PROBLEMS]


def _validator(uri: str, documents: Mapping[str, Any], formats: Formats) -> Draft202012Validator:
    """A validator that gives up when its time is over, which it looks at wherever a schema says ``type``."""
    end = time.monotonic() + _LONGEST_SEARCH
    check_type = Draft202012Validator.VALIDATORS["type"]

    def check_time_and_type(validator: Any, types: Any, value: Any, schema: Any) -> Any:
        if time.monotonic() > end:
            raise _OutOfTime
        return check_type(validator, types, value, schema)

    checker = FormatChecker(formats=())
    for name, check in formats.items():
        checker.checks(name)(check)
    registry: Registry[Any] = Registry().with_resources(
        [(name, DRAFT202012.create_resource(contents)) for name, contents in documents.items()]
    )
    timed: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]  # its stub says nothing
        Draft202012Validator, {"type": check_time_and_type}
    )
    return timed({"$ref": uri}, registry=registry, format_checker=checker)


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
            told = dict.fromkeys(message(str(e.validator), e.validator_value, e.schema) for e in error.context)
            if best is not None and len(best.absolute_path) > len(path):
                yield from _problems(best)
            else:
                either = " or ".join(text.removeprefix("must be ") for text in told)
                yield Problem(path, f"must be {either}", keyword, pointer)
        case _:
            yield Problem(path, message(keyword, value, schema), keyword, pointer)
