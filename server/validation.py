"""JSON Schema: a value in, a list of problems out.

`jsonschema_rs` decides, in microseconds. Where it says no, `explanations` asks `jsonschema` why, which goes through a
value lazily: a million errors cost no more than the first hundred. Both assert `FORMATS`, and neither ever fetches a
reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from ..storage.documents import InvalidDocument, decode
from ..storage.times import parse_time
from .errors import Problem
from .wording import explain_one

SCHEMAS = Path(__file__).parent.parent / "schemas"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,30})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEX = re.compile(r"[0-9A-Fa-f]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LONGER_THAN_A_DAY = len("2025-12-21") + 1


def _is_instant(value: object) -> bool:
    """An RFC 3339 date-time, or the same without an offset, which means UTC."""
    try:
        return not isinstance(value, str) or parse_time(value) is not None
    except ValueError:
        return False


def _is_date(value: object) -> bool:
    """A day that exists: ``2025-12-21``."""
    return not isinstance(value, str) or _is_day(value[:_LONGER_THAN_A_DAY])


@lru_cache(maxsize=4096)
def _is_day(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text) and date.fromisoformat(text))
    except ValueError:
        return False


def _is_plain_text(value: object) -> bool:
    """A text without control characters."""
    # Nearly all texts are printable, which is known at once; a control character is not.
    return not isinstance(value, str) or value.isprintable() or _CONTROL.search(value) is None


def _is_hex(value: object) -> bool:
    """Hexadecimal digits of either case."""
    return not isinstance(value, str) or _HEX.fullmatch(value) is not None


FORMATS: Mapping[str, Callable[[object], bool]] = {
    "instant": _is_instant,
    "date": _is_date,
    "plain-text": _is_plain_text,
    "hex": _is_hex,
}
"""What ``format`` may be in our schemas. The validators' own formats differ from each other; these do not."""


class Schemas:
    """Our schemas and those of further folders, each known as ``homeport:<file name without .json>``; compiled when
    asked for."""

    def __init__(self, *folders: Path) -> None:
        files = [file for folder in (SCHEMAS, *folders) for file in sorted(folder.glob("*.json"))]
        self._files = {f"homeport:{file.stem}": file for file in files}
        self.registry = jsonschema_rs.Registry(list(self._read().items()))
        """For `jsonschema_rs`; it loses the order of members."""
        self._checkers: dict[str, Checker] = {}

    @cached_property
    def documents(self) -> dict[str, Any]:
        """The files' contents by URI, read again for the first refusal or description; in the files' order, unless
        those are gone or have changed since, as where another version was installed over a server that runs."""
        resolver = self.registry.resolver("")
        compiled = {uri: resolver.lookup(uri).contents for uri in self._files}
        try:
            documents = self._read()
        except (OSError, InvalidDocument):
            return compiled
        return documents if documents == compiled else compiled

    def _read(self) -> dict[str, Any]:
        return {uri: decode(file.read_bytes()) for uri, file in self._files.items()}

    def checker(self, name: str) -> Checker:
        """For a name such as ``device_usage#/$defs/SyncRequest``. Raises ValueError for one that is not there."""
        if name not in self._checkers:
            self._checkers[name] = Checker(f"homeport:{name}", self)
        return self._checkers[name]


class Checker:
    """A compiled schema."""

    def __init__(self, uri: str, schemas: Schemas) -> None:
        self.uri = uri
        self._schemas = schemas
        self._compiled = jsonschema_rs.Draft202012Validator(
            {"$ref": uri},
            registry=schemas.registry,
            formats=dict(FORMATS),
            validate_formats=True,
            ignore_unknown_formats=False,
            offline=True,
        )
        self.is_valid: Callable[[Any], bool] = self._compiled.is_valid
        """Whether a value fits: microseconds for a small one."""

    def problems(self, value: Any) -> list[Problem]:
        """Why a value does not fit: at least one reason, at most a hundred. Takes up to half a second: for a thread."""
        from .explanations import explain  # jsonschema is imported when it is first needed

        problems = explain(self.uri, self._schemas.documents, FORMATS, value)
        if not problems:
            try:
                self._compiled.validate(value)
            except jsonschema_rs.ValidationError as error:
                location = (error.absolute_keyword_location or "").rpartition("/")[0]
                problems = [explain_one(error, self.lookup(location))]
        return problems

    def lookup(self, uri: str) -> Any:
        """The schema at an absolute URI."""
        return self._schemas.registry.resolver("").lookup(uri).contents

    @cached_property
    def parameters(self) -> Parameters:
        """How the members of an object of this schema are read from a query or a path."""
        return Parameters(self)


class Parameters:
    """Reads the texts of a query or a path as the types that a schema says, and fills in its defaults."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        base = checker.uri.partition("#")[0]
        self._readers: dict[str, Callable[[str], Any]] = {}
        self._defaults: dict[str, Any] = {}
        for name, schema in checker.lookup(checker.uri).get("properties", {}).items():
            while "$ref" in schema:
                reference = schema["$ref"]
                schema = checker.lookup(base + reference if reference.startswith("#") else reference)
            self._readers[name] = _READERS.get(schema.get("type"), str)
            if "default" in schema:
                self._defaults[name] = schema["default"]

    def read(self, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """What was given, not yet checked: of a repeated name the last counts; unknown and empty ones are dropped."""
        values = dict(self._defaults)
        for name, text in texts:
            reader = self._readers.get(name)
            if reader is not None and text:
                values[name] = reader(text)
        return values


def _integer(text: str) -> int | str:
    """What is no integer stays a text, which the schema then refuses."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _number(text: str) -> float | str:
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


_READERS: Mapping[Any, Callable[[str], Any]] = {"integer": _integer, "number": _number, "boolean": _boolean}
