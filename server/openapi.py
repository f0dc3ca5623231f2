"""The server's description of itself: an OpenAPI 3.1 document, made of the operations and the schema files alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from .errors import problem_details
from .operation import Api, Operation
from .owners import owner
from .routes import operations_by_path, parameter_names

if TYPE_CHECKING:
    from .config import Config
    from .validation import Schemas

Json = dict[str, Any]

_PROBLEM_TYPE = "application/problem+json"
_PROBLEM = "problem#/$defs/Problem"
_SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer, and the key."},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ANY_OPERATION = (403, 421, 429, 500, 503, 507)
"""What every operation may answer: to a foreign Host or Origin, above a limit, and when something of ours is broken."""
_TOO_LONG = 431
"""To a line of the head that is too long, before anybody knows which operation is meant."""
_WITH_BODY = (400, 408, 413, 415)
_FORMATS: Mapping[str, Json] = {
    "instant": {"format": "date-time"},
    "hex": {"pattern": "^[0-9A-Fa-f]*$"},
    "plain-text": {"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"},
}
"""Our formats in words that everybody knows. An instant may also come without an offset, which means UTC."""
_TEXT: Json = {"type": "string"}
_REFUSED = {
    401: "headers#/$defs/Challenged",
    429: "headers#/$defs/Limited",
    503: "headers#/$defs/Away",
}
"""The headers of refusals."""


def openapi(apis: Sequence[Api], schemas: Schemas, config: Config) -> Json:
    """The document of a server that has these APIs."""
    from .. import __version__

    components = _Components(schemas)
    by_path = operations_by_path(apis, config)
    errors = {api.name: _error_of(api) for api in apis}
    paths: Json = {}
    for path, operations in sorted(by_path.items()):
        for operation in sorted(operations, key=lambda operation: operation.websocket):
            media_type, schema = errors.get(owner(operation.method, path) or "", (_PROBLEM_TYPE, _PROBLEM))
            described = _operation(operation, path, media_type, operation.error or schema, components)
            if operation.links:
                links = _links(operation, path, by_path, components)
                for status, response in described["responses"].items():
                    if status in ("200", "201"):
                        response["links"] = links
            item = paths.setdefault(path, {})
            if operation.websocket and "get" in item:
                item["get"]["responses"] |= {"101": described["responses"]["101"]}
            else:
                item[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Homeport",
            "version": __version__,
            "summary": "A self-hosted sync server.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "externalDocs": {
            "description": "The same as a page.",
            "url": f"{(config.server.public_url or config.server.base_path).rstrip('/')}/docs",
        },
        "servers": [{"url": config.server.public_url or config.server.base_path or "/"}],
        "tags": [{"name": api.name, "description": api.title} for api in apis if api.operations],
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "responses": components.responses,
            "securitySchemes": _SECURITY,
        },
    }


def _error_of(api: Api) -> tuple[str, str]:
    """The media type and the schema of an API's errors."""
    if api.envelope is problem_details:
        return _PROBLEM_TYPE, _PROBLEM
    return "application/json", api.error


def _operation(operation: Operation, path: str, media_type: str, error: str, components: _Components) -> Json:
    """``media_type`` and ``error``, the name of a schema, of its refusals."""
    summary, _, description = cleandoc(operation.handler.__doc__ or "").partition("\n\n")
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.api],
        "summary": " ".join(summary.split()),
        "description": description,
        "parameters": [
            *_path_parameters(operation, path, components),
            *_other_parameters(operation, components),
        ],
    }
    if operation.content_types:
        body = operation.body or operation.reads.get("body")
        content = {kind: {"schema": components.reference(body) if body else {}} for kind in operation.content_types}
        described["requestBody"] = {"required": not operation.optional_body, "content": content}
    guard = operation.auth
    if guard is not None and guard.schemes:
        described["security"] = [*([{}] if guard.optional else []), *({scheme: []} for scheme in guard.schemes)]
    refusals = {*_refusals(operation)} - operation.returns.keys()
    responses = {str(status): _answer(operation, status, components) for status in operation.returns}
    responses |= {str(status): components.refusal(status, media_type, error) for status in refusals}
    responses[str(_TOO_LONG)] = components.refusal(_TOO_LONG, _PROBLEM_TYPE, _PROBLEM)
    described["responses"] = dict(sorted(responses.items()))
    return {name: value for name, value in described.items() if value not in ("", [])}


def _answer(operation: Operation, status: int, components: _Components) -> Json:
    """An answer of the handler's own."""
    response: Json = {"description": _phrase(status)}
    headers = [operation.gives[status]] if status in operation.gives else []
    if any(limit.headers for limit in operation.limits):
        headers.append("headers#/$defs/Counted")
    if headers:
        response["headers"] = {name: header for schema in headers for name, header in components.headers(schema)}
    schema = operation.returns[status]
    content = {
        kind: {"schema": components.reference(schema) if schema and "json" in kind else _TEXT}
        for kind in operation.produces
        if schema or "json" not in kind
    }
    if content and status >= 200 and status != 204 and not 300 <= status < 400:
        response["content"] = content
    return response


def _links(
    operation: Operation, path: str, by_path: Mapping[str, Sequence[Operation]], components: _Components
) -> Json:
    """What may be called next with what an answer tells."""
    shared = dict(zip(parameter_names(operation.path), parameter_names(path), strict=True))
    links: Json = {}
    for target_path, targets in by_path.items():
        for target, (prefix, told) in itertools.product(targets, operation.links.items()):
            if target.websocket or not f"{target.path}/".startswith(f"{prefix}/"):
                continue
            others = {parameter["name"] for parameter in _other_parameters(target, components)}
            own = parameter_names(target.path)
            if told.keys() - {*own} <= others and {*own} <= told.keys() | shared.keys():
                names = dict(zip(own, parameter_names(target_path), strict=True))
                parameters = {names[name]: f"$request.path.{shared[name]}" for name in own if name not in told}
                parameters |= {names.get(name, name): expression for name, expression in told.items()}
                links[target.name] = {"operationId": target.name, "parameters": parameters}
    return links


def _phrase(status: int) -> str:
    return f"{HTTPStatus(status).phrase}."


def _refusals(operation: Operation) -> Iterator[int]:
    """The statuses that an operation refuses requests with."""
    yield from _ANY_OPERATION
    yield from operation.errors
    if operation.websocket:
        yield from (400, 426)
    if operation.content_types:
        yield from _WITH_BODY
    if operation.params or operation.query:
        yield 400
    if operation.auth is not None and operation.auth.schemes:
        yield 401


def _path_parameters(operation: Operation, path: str, components: _Components) -> Iterator[Json]:
    """By the names in ``path``, which an operation of another API may have chosen."""
    schema = operation.params or operation.reads.get("params")
    properties = components.properties(schema) if schema else {}
    for name, own in zip(parameter_names(path), parameter_names(operation.path), strict=True):
        yield {"name": name, "in": "path", "required": True, **_described(properties.get(own, _TEXT))}


def _other_parameters(operation: Operation, components: _Components) -> Iterator[Json]:
    """Those that are not in the path."""
    yield from _parameters(operation.query or operation.reads.get("query"), "query", components)
    yield from _parameters(operation.reads.get("headers"), "header", components)


def _parameters(schema: str | None, place: str, components: _Components) -> Iterator[Json]:
    """In the query, one that is empty is as good as none."""
    if schema:
        required = components.required(schema)
        for name, member in components.properties(schema).items():
            empty = {"allowEmptyValue": True} if place == "query" and name not in required else {}
            yield {"name": name, "in": place, "required": name in required, **empty, **_described(member)}


def _described(schema: Json) -> Json:
    """The members of a parameter or header that say what it is."""
    schema = dict(schema)
    description = {"description": schema.pop("description")} if "description" in schema else {}
    return {**description, "schema": schema}


class _Components:
    """What a document refers to: schemas, each under ``<api>.<name>``, and refusals, under that of their schema and
    their status."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self.schemas: Json = {}
        self.responses: Json = {}

    def reference(self, name: str) -> Json:
        """For a name such as ``leaderboard#/$defs/SyncRequest``."""
        key = _key(name)
        if key not in self.schemas:
            self.schemas[key] = {}  # it may refer to itself
            self.schemas[key] = self._translated(self._lookup(name), name)
        return {"$ref": f"#/components/schemas/{key}"}

    def refusal(self, status: int, media_type: str, error: str) -> Json:
        """For a status, and the name of the schema of its body."""
        key = f"{_key(error)}.{status}"
        if key not in self.responses:
            response: Json = {"description": _phrase(status)}
            if status in _REFUSED:
                response["headers"] = dict(self.headers(_REFUSED[status]))
            self.responses[key] = {**response, "content": {media_type: {"schema": self.reference(error)}}}
        return {"$ref": f"#/components/responses/{key}"}

    def headers(self, name: str) -> Iterator[tuple[str, Json]]:
        """The headers of an answer that are the members of that schema."""
        required = self.required(name)
        for header, schema in self.properties(name).items():
            yield header, {"required": header in required, **_described(schema)}

    def properties(self, name: str) -> Json:
        """The members of an object of that schema."""
        return self._members(self._lookup(name).get("properties", {}), name)

    def required(self, name: str) -> Sequence[str]:
        required: Sequence[str] = self._lookup(name).get("required", ())
        return required

    def _lookup(self, name: str) -> Json:
        """The schema as its file has it, in that order."""
        file, _, pointer = name.partition("#")
        schema: Json = self._schemas.documents[f"homeport:{file}"]
        for step in pointer.split("/")[1:]:
            schema = schema[step]
        return schema

    def _translated(self, schema: Any, name: str) -> Any:
        """A schema of the file that a name is of, its references and formats as OpenAPI documents have them."""
        if isinstance(schema, list):
            return [self._translated(inner, name) for inner in schema]
        if not isinstance(schema, dict):
            return schema
        translated: Json = {}
        for keyword, value in schema.items():
            match keyword:
                case "$ref":
                    file = name.partition("#")[0] if value.startswith("#") else ""
                    translated |= self.reference(file + value.removeprefix("homeport:"))
                case "format":
                    translated |= _FORMATS.get(value, {"format": value})
                case "properties" | "patternProperties":
                    translated[keyword] = self._members(value, name)
                case "examples" | "const" | "default" | "enum":
                    translated[keyword] = value
                case _:
                    translated[keyword] = self._translated(value, name)
        return translated

    def _members(self, schemas: Json, name: str) -> Json:
        return {member: self._translated(schema, name) for member, schema in schemas.items()}


def _key(name: str) -> str:
    """``leaderboard.SyncRequest`` for ``leaderboard#/$defs/SyncRequest``."""
    return ".".join(re.findall(r"\w+", name.replace("/$defs", "")))
