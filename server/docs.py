"""The API as a page for people, made of the OpenAPI document."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Json = Mapping[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
_BODIES = {
    "application/x-www-form-urlencoded": "--data-urlencode",
    "multipart/form-data": "-F",
}
"""How curl is given the fields of a form."""
_BOUNDS = {
    "minimum": "from {:,}",
    "maximum": "up to {:,}",
    "minLength": "length from {:,}",
    "maxLength": "length up to {:,}",
    "minItems": "from {:,} items",
    "maxItems": "up to {:,} items",
    "pattern": "matches {}",
    "default": "{} by default",
}


class Part(NamedTuple):
    """A piece of a text; ``schema``: the name of the one that it leads to."""

    text: str
    schema: str | None = None


class Member(NamedTuple):
    """Of an object, or a parameter. ``place``: of a parameter, where it stands."""

    name: str
    kind: list[Part]
    required: bool
    text: str
    place: str = ""


class Content(NamedTuple):
    """What is sent or answered. ``title``: the status, or nothing."""

    title: str
    media_types: str
    kind: list[Part]
    headers: list[Member]
    example: str


class Errors(NamedTuple):
    """Refusals of one shape."""

    titles: list[str]
    kind: list[Part]


class Operation(NamedTuple):
    """An operation. ``keys``: how callers may present one; none where nobody has to."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    keys: str
    parameters: list[Member]
    sent: list[Content]
    answers: list[Content]
    errors: list[Errors]
    curl: str


class Group(NamedTuple):
    """The operations of an API."""

    name: str
    title: str
    operations: list[Operation]


class Shape(NamedTuple):
    """A schema that others, or operations, refer to."""

    name: str
    text: str
    kind: list[Part]
    members: list[Member]
    examples: list[str]


def docs(document: Json, url: str) -> dict[str, Any]:
    """What the page shows. ``url``: where the server is, for the lines to copy."""
    paths = document["paths"].items()
    groups = []
    for tag in document["tags"]:
        operations = [
            _operation(document, method, path, item[method], url)
            for path, item in paths
            for method in _METHODS
            if method in item and tag["name"] in item[method]["tags"]
        ]
        groups.append(Group(tag["name"], tag["description"], operations))
    shapes = [_shape(document, name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return {"info": document["info"], "groups": groups, "shapes": shapes, "url": url}


def _operation(document: Json, method: str, path: str, operation: Json, url: str) -> Operation:
    responses = {status: _resolved(document, response) for status, response in operation["responses"].items()}
    body = operation.get("requestBody", {}).get("content", {})
    return Operation(
        operation["operationId"],
        method.upper(),
        path,
        operation["summary"],
        operation.get("description", ""),
        _keys(document, operation.get("security", ())),
        [_parameter(document, parameter) for parameter in operation.get("parameters", ())],
        list(_contents(document, "", {"content": body})) if body else [],
        [
            answer
            for status, response in responses.items()
            if status < "400"
            for answer in _contents(document, _title(status, response), response)
        ],
        _errors(responses),
        _curl(document, method, path, operation, url),
    )


def _referred(document: Json, thing: Json) -> Iterator[Json]:
    """A thing, then what it refers to, then what that refers to."""
    yield thing
    while "$ref" in thing:
        reference, thing = thing["$ref"], document
        for step in reference.split("/")[1:]:
            thing = thing[step]
        yield thing


def _resolved(document: Json, thing: Json) -> Json:
    *_, found = _referred(document, thing)
    return found


def _title(status: str, response: Json) -> str:
    return f"{status} {response['description'].rstrip('.')}"


def _keys(document: Json, security: Sequence[Json]) -> str:
    schemes = document["components"]["securitySchemes"]
    ways = [schemes[name] for requirement in security for name in requirement]
    texts = ["Authorization: Bearer" if way["type"] == "http" else way["name"] for way in ways]
    return " or ".join(texts) + (", where the server asks for a key" if {} in security else "") if texts else ""


def _parameter(document: Json, parameter: Json) -> Member:
    text = _described(document, {**parameter["schema"], **parameter})
    return Member(parameter["name"], _kind(parameter["schema"]), parameter["required"], text, parameter["in"])


def _contents(document: Json, title: str, response: Json) -> Iterator[Content]:
    """One for all media types of a schema."""
    headers = [
        Member(name, _kind(header["schema"]), header["required"], _described(document, {**header["schema"], **header}))
        for name, header in response.get("headers", {}).items()
    ]
    content = response.get("content", {})
    by_schema: dict[str, list[str]] = {}
    for media_type, described in content.items():
        by_schema.setdefault(json.dumps(described["schema"]), []).append(media_type)
    for text, media_types in by_schema.items():
        schema = json.loads(text)
        example = _example(document, schema) if "json" in media_types[0] else None
        shown = "" if example is None else _pretty(example)
        yield Content(title, " or ".join(media_types), _kind(schema), headers, shown)
    if not content:
        yield Content(title, "", [], headers, "")


def _errors(responses: Mapping[str, Json]) -> list[Errors]:
    by_schema: dict[str, list[str]] = {}
    for status, response in responses.items():
        if status >= "400":
            (content,) = response["content"].values()
            by_schema.setdefault(json.dumps(content["schema"]), []).append(_title(status, response))
    return [Errors(titles, _kind(json.loads(text))) for text, titles in by_schema.items()]


def _shape(document: Json, name: str, schema: Json) -> Shape:
    examples = [_pretty(example) for example in schema.get("examples", ())]
    text = _described(document, {**schema, "description": schema.get("description", "")})
    return Shape(name, text, _kind(schema), list(_members(document, schema)), examples)


def _members(document: Json, schema: Json, prefix: str = "") -> Iterator[Member]:
    """Those of an object, and of the objects in it that have no name; ``a.b`` for a member of one, ``a[].b`` for one of
    each in a list."""
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        if isinstance(member, dict):
            yield Member(f"{prefix}{name}", _kind(member), name in required, _described(document, member))
            yield from _members(document, member, f"{prefix}{name}.")
            if isinstance(member.get("items"), dict):
                yield from _members(document, member["items"], f"{prefix}{name}[].")
    for keyword in ("allOf", "anyOf", "oneOf"):
        for other in schema.get(keyword, ()):
            yield from _members(document, other, prefix)


def _kind(schema: Json) -> list[Part]:
    """What a value is, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [Part(name.rpartition(".")[2], name)]
    if "const" in schema:
        return [Part(json.dumps(schema["const"]))]
    if "enum" in schema:
        return [Part(" | ".join(json.dumps(value) for value in schema["enum"]))]
    for keyword in ("anyOf", "oneOf"):
        kinds = [kind for choice in schema.get(keyword, ()) if (kind := _kind(choice))]
        if kinds:
            return [part for place, kind in enumerate(kinds) for part in ([Part(" or ")] if place else []) + kind]
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    if "array" in types:
        of = _kind(schema["items"]) if isinstance(schema.get("items"), dict) else []
        return [Part("list of "), *of] if of else [Part("list")]
    return [Part(" or ".join([*types, *([schema["format"]] if "format" in schema else [])]))] if types else []


def _described(document: Json, schema: Json) -> str:
    """The description and the bounds, of a reference too where nothing is said beside it."""
    said: dict[str, Any] = {}
    for named in _referred(document, schema):
        said = {**named, **said}
    bounds = []
    for keyword, words in _BOUNDS.items():
        if keyword in said:
            value = said[keyword]
            bounds.append(words.format(f"`{_plain(value)}`" if keyword in ("pattern", "default") else value))
    return " ".join(filter(None, [said.get("description"), f"({', '.join(bounds)})" if bounds else ""]))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _example(document: Json, schema: Json) -> Any:
    return next((named["examples"][0] for named in _referred(document, schema) if "examples" in named), None)


def _pretty(value: Any) -> str:
    """JSON in lines of which a short list or object takes one."""
    return _laid_out(value, 0)


def _laid_out(value: Any, indent: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(line) + indent <= 72:
        return line
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return line
    if isinstance(value, dict):
        inside = [f"{json.dumps(name)}: {_laid_out(member, indent + 2)}" for name, member in value.items()]
    else:
        inside = [_laid_out(item, indent + 2) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = ",\n".join(f"{' ' * (indent + 2)}{item}" for item in inside)
    return f"{opening}\n{lines}\n{' ' * indent}{closing}"


def _curl(document: Json, method: str, path: str, operation: Json, url: str) -> str:
    """A line for a shell, whose variables stand for what only the reader knows."""
    verb = "" if method == "get" else f"-X {method.upper()} "
    place = re.sub(r"\{(\w+)\}", lambda found: f"${found[1].upper()}", path)
    words = [f'curl {verb}"{url}{place}"']
    if security := operation.get("security"):
        schemes = {name for requirement in security for name in requirement}
        words.append('-H "Authorization: Bearer $KEY"' if "bearer" in schemes else '-H "X-API-Key: $KEY"')
    for media_type, content in list(operation.get("requestBody", {}).get("content", {}).items())[:1]:
        example = _example(document, content["schema"])
        if media_type in _BODIES:
            fields = [f"{name}={value}" for name, value in (example or {}).items()]
            if media_type == "multipart/form-data":
                fields = [re.sub("^file=.*", "file=@recording.wav", field) for field in fields]
            words += [f"{_BODIES[media_type]} {shlex.quote(field)}" for field in fields]
        else:
            words.append(f"-H 'Content-Type: {media_type}'")
            words.append(f"-d {shlex.quote(json.dumps(example, ensure_ascii=False))}")
    return " \\\n  ".join(words)
