"""Other people's JSON Schemas: read, checked, bounded, compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from ....storage.documents import MAX_DEPTH
from ...errors import MAX_PROBLEMS, Problem, json_pointer
from ...wording import explain_one
from .bounds import steps
from .references import Bundle, SchemaError

if TYPE_CHECKING:
    from pathlib import Path

    from ....storage.records import FieldType

HINTS = "x-homeport"
_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
}
_FEW_STEPS = 200
"""Whatever a document holds, it is not worth measuring."""
_MAX_WORK = 50_000_000
"""Steps on all values of a document: a few seconds, on a thread."""
_MAX_EXPLAINED = 20_000
"""Values in a document of which every error is told; of a larger one the first, as the validator finds all before it
tells any."""
_SCALARS: Mapping[str, FieldType] = {
    "string": "text",
    "integer": "integer",
    "number": "double",
    "boolean": "boolean",
}
_PATTERNS = jsonschema_rs.RegexOptions()
"""Matched in linear time."""


class CompiledSchema:
    """A schema file that documents are checked against. Raises `SchemaError`.

    ``folder``: what its references may not leave. ``fields``: the top-level members that it describes, with the type
    of those that are scalars of one type. ``indexes``, ``unique``: what it asks for itself. ``documents``: the
    contents of the files that it is made of.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        file, folder = file.resolve(), folder.resolve()
        bundle = Bundle(file, folder)
        for path, contents in bundle.files():
            _check_against_meta_schema(path, contents)
        self._steps = steps(bundle)
        self._registry = jsonschema_rs.Registry(list(bundle.documents.items()))
        try:
            self._compiled = jsonschema_rs.validator_for(
                bundle.root,
                registry=self._registry,
                base_uri=bundle.uri,
                pattern_options=_PATTERNS,
                validate_formats=True,
                offline=True,
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise _uncompilable(file, error) from None
        self.fields: Mapping[str, FieldType | None] = {
            name: _scalar(_types(schema, bundle)) for name, schema in _properties(bundle.root, bundle)
        }
        self.indexes, self.unique = _hints(file, bundle.root)
        self.documents: Mapping[str, Any] = bundle.documents

    def accepts(self, document: Any) -> bool:
        """Whether a document fits."""
        return self._refusal(document) is None and self._compiled.is_valid(document)

    def problems(self, document: Any) -> list[Problem]:
        """Why a document does not fit: none where it does, at most a hundred. For a thread."""
        if (refusal := self._refusal(document)) is not None:
            return [refusal]
        if self._compiled.is_valid(document):
            return []
        if _measure(document, _MAX_EXPLAINED)[1] < _MAX_EXPLAINED:
            errors = list(self._compiled.iter_errors(document))[:MAX_PROBLEMS]
        else:
            try:
                self._compiled.validate(document)
                errors = []
            except jsonschema_rs.ValidationError as error:
                errors = [error]
        found = {(p.path, p.message): p for error in errors for p in self._explained(error, document)}
        return list(found.values())[:MAX_PROBLEMS]

    def _refusal(self, document: Any) -> Problem | None:
        if self._steps[-1] <= _FEW_STEPS:
            return None
        depth, values = _measure(document)
        if self._steps[min(depth, MAX_DEPTH)] * values <= _MAX_WORK:
            return None
        return Problem((), "is too large, or nested too deeply, to be checked against this schema")

    def _explained(self, error: jsonschema_rs.ValidationError, document: Any) -> Iterator[Problem]:
        path, keyword, pointer = tuple(error.instance_path), error.kind.name, json_pointer(error.schema_path)
        match keyword:
            case "required":
                yield Problem((*path, error.kind.value), "is required", keyword, pointer)
            case "additionalProperties" | "unevaluatedProperties":
                for name in error.kind.value:
                    yield Problem((*path, name), "is not allowed", keyword, pointer)
            case "falseSchema" if members := _members_not_allowed(error, document):
                for name in members:
                    yield Problem((*path, name), "is not allowed", keyword, pointer)
            case "anyOf" | "oneOf" if branches := [branch for branch in _branches(error) if branch]:
                inside = [branch for branch in branches if any(len(e.instance_path) > len(path) for e in branch)]
                if inside:  # one that it has the shape of
                    for other in inside[0]:
                        yield from self._explained(other, document)
                else:
                    told = dict.fromkeys(self._in_words(branch[0]).message for branch in branches)
                    either = " or ".join(text.removeprefix("must be ") for text in told)
                    yield Problem(path, f"must be {either}", keyword, pointer)
            case _:
                yield self._in_words(error)

    def _in_words(self, error: jsonschema_rs.ValidationError) -> Problem:
        location = (error.absolute_keyword_location or "").rpartition("/")[0]
        try:
            schema = self._registry.resolver("").lookup(location).contents
        except jsonschema_rs.ReferencingError:  # one that the validator knows itself
            schema = {}
        return explain_one(error, schema)


def _members_not_allowed(error: jsonschema_rs.ValidationError, document: Any) -> list[str]:
    """Those of an object that may have none, which the validator does not name."""
    if list(error.schema_path)[-1:] != ["additionalProperties"]:
        return []
    for step in error.instance_path:
        document = document[step]
    return list(document) if isinstance(document, dict) else []


def _branches(error: jsonschema_rs.ValidationError) -> list[list[jsonschema_rs.ValidationError]]:
    """The errors of each alternative; none where several fit, which ``oneOf`` does not allow."""
    if isinstance(
        error.kind, jsonschema_rs.ValidationErrorKind.AnyOf | jsonschema_rs.ValidationErrorKind.OneOfNotValid
    ):
        return error.kind.context
    return []


def _check_against_meta_schema(file: Path, contents: Any) -> None:
    draft = contents.get("$schema", "") if isinstance(contents, dict) else ""
    if draft and (not isinstance(draft, str) or draft.rstrip("#") not in _DRAFTS):
        known = ", ".join(sorted(_DRAFTS))
        raise SchemaError(file, "/$schema", f"is none of {known}")
    try:
        jsonschema_rs.meta.validate(contents)
    except jsonschema_rs.ValidationError as error:
        raise _uncompilable(file, error) from None


def _uncompilable(file: Path, error: jsonschema_rs.ValidationError | jsonschema_rs.ReferencingError) -> SchemaError:
    if isinstance(error, jsonschema_rs.ReferencingError):
        return SchemaError(file, "", error.message)
    path = list(error.instance_path)
    if path and (path[-1] == "pattern" or "patternProperties" in path[-2:]):
        reason = "is no pattern that can be matched in linear time: no look-around, no back-references, not too large"
    elif path and path[-1] == "type":
        reason = "must be one of array, boolean, integer, null, number, object and string, or a list of them"
    else:
        reason = error.message
    return SchemaError(file, json_pointer(path), reason)


def _hints(file: Path, root: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What ``x-homeport`` says."""
    hints = root.get(HINTS, {}) if isinstance(root, dict) else {}
    if not isinstance(hints, dict):
        raise SchemaError(file, f"/{HINTS}", "must be an object")
    for key, names in hints.items():
        pointer = json_pointer((HINTS, key))
        if key not in ("indexes", "unique"):
            raise SchemaError(file, pointer, "unknown key; there are indexes and unique")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SchemaError(file, pointer, 'must be a list of fields such as ["title"]')
    return tuple(hints.get("indexes", ())), tuple(hints.get("unique", ()))


def _properties(schema: Any, bundle: Bundle, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """The top-level members that a schema describes, itself or in what it refers to."""
    if not isinstance(schema, dict) or id(schema) in seen:
        return
    for other in (*bundle.targets.get(id(schema), ()), *schema.get("allOf", ())):
        yield from _properties(other, bundle, seen | {id(schema)})
    yield from schema.get("properties", {}).items()


def _types(schema: Any, bundle: Bundle, seen: frozenset[int] = frozenset()) -> set[str] | None:
    """The JSON types that a value may have; None: any."""
    if not isinstance(schema, dict) or id(schema) in seen:
        return None
    seen |= {id(schema)}
    found: list[set[str] | None] = [_types(other, bundle, seen) for other in bundle.targets.get(id(schema), ())]
    found += [_types(other, bundle, seen) for other in schema.get("allOf", ())]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found.append(_union([_types(other, bundle, seen) for other in schema[key]]))
    if "type" in schema:
        found.append({schema["type"]} if isinstance(schema["type"], str) else set(schema["type"]))
    if "const" in schema:
        found.append({_type_of(schema["const"])})
    if "enum" in schema:
        found.append({_type_of(value) for value in schema["enum"]})
    known = [types for types in found if types is not None]
    return _narrowed(known) if known else None


def _union(options: Sequence[set[str] | None]) -> set[str] | None:
    known = [types for types in options if types is not None]
    return set().union(*known) if len(known) == len(options) else None


def _narrowed(all_of: Sequence[set[str]]) -> set[str]:
    """What fits each of some sets of types; an integer is a number."""
    wide = [types | ({"integer"} if "number" in types else set()) for types in all_of]
    return set.intersection(*wide)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
    return "object" if isinstance(value, dict) else "array"


def _scalar(types: set[str] | None) -> FieldType | None:
    """The type of a field whose values have one of these types; None where that is not one."""
    types = (types or set()) - {"null"}
    if types == {"integer", "number"}:
        return "double"
    return _SCALARS.get(next(iter(types))) if len(types) == 1 else None


def _measure(document: Any, enough: int | None = None) -> tuple[int, int]:
    """How deep a document is nested, and how many values it holds; stops counting at ``enough``."""
    depth, values, level = 0, 1, [document]
    while level := [
        child
        for parent in level
        if type(parent) is dict or type(parent) is list
        for child in (parent.values() if type(parent) is dict else parent)
    ]:
        depth, values = depth + 1, values + len(level)
        if enough is not None and values >= enough:
            break
    return depth, values
