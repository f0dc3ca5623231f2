"""The server's description of itself: an OpenAPI 3.1 document, made of the operations and the schema files alone."""

from __future__ import annotations

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

_PROBLEM = "problem#/$defs/Problem"
_SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer, and the key."},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ANY_OPERATION = (403, 421, 429, 500, 503, 507)
"""What every operation may answer: to a foreign Host or Origin, above a limit, and when something of ours is broken."""
_WITH_BODY = (400, 408, 413, 415)
_FORMATS: Mapping[str, Json] = {
    "instant": {"format": "date-time"},
    "hex": {"pattern": "^[0-9A-Fa-f]*$"},
    "plain-text": {"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"},
}
"""Our formats in words that everybody knows. An instant may also come without an offset, which means UTC."""
_TEXT: Json = {"type": "string"}
_RETRY_AFTER: Json = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 0}}
}


def openapi(apis: Sequence[Api], schemas: Schemas, config: Config) -> Json:
    """The document of a server that has these APIs."""
    from .. import __version__

    components = _Components(schemas)
    errors = {api.name: _error_of(api) for api in apis}
    paths: Json = {}
    for path, operations in sorted(operations_by_path(apis, config).items()):
        for operation in sorted(operations, key=lambda operation: operation.websocket):
            media_type, schema = errors.get(owner(operation.method, path) or "", ("application/problem+json", _PROBLEM))
            error = {media_type: {"schema": components.reference(operation.error or schema)}}
            described = _operation(operation, path, error, components)
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
        "servers": [{"url": config.server.public_url or config.server.base_path or "/"}],
        "tags": [{"name": api.name, "description": api.title} for api in apis if api.operations],
        "paths": paths,
        "components": {"schemas": components.schemas, "securitySchemes": _SECURITY},
    }


def _error_of(api: Api) -> tuple[str, str]:
    """The media type and the schema of an API's errors."""
    if api.envelope is problem_details:
        return "application/problem+json", _PROBLEM
    return "application/json", api.error


def _operation(operation: Operation, path: str, error: Json, components: _Components) -> Json:
    summary, _, description = cleandoc(operation.handler.__doc__ or "").partition("\n\n")
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.api],
        "summary": " ".join(summary.split()),
        "description": description,
        "parameters": [*_path_parameters(operation, path, components), *_query_parameters(operation, components)],
    }
    if operation.content_types:
        schema = components.reference(operation.body) if operation.body else {}
        content = {media_type: {"schema": schema} for media_type in operation.content_types}
        described["requestBody"] = {"required": not operation.optional_body, "content": content}
    guard = operation.auth
    if guard is not None and guard.schemes:
        described["security"] = [*([{}] if guard.optional else []), *({scheme: []} for scheme in guard.schemes)]
    described["responses"] = _responses(operation, error, components)
    return {name: value for name, value in described.items() if value not in ("", [])}


def _responses(operation: Operation, error: Json, components: _Components) -> Json:
    responses: Json = {}
    for status, name in operation.returns.items():
        response: Json = {"description": _phrase(status)}
        responses[str(status)] = response
        if status >= 200 and status not in (204, 304):
            response["content"] = {
                media_type: {"schema": components.reference(name) if name and "json" in media_type else _TEXT}
                for media_type in operation.produces
            }
    for status in sorted({*_refusals(operation)} - operation.returns.keys()):
        headers = {"headers": _RETRY_AFTER} if status in (429, 503) else {}
        responses[str(status)] = {"description": _phrase(status), **headers, "content": error}
    return dict(sorted(responses.items()))


def _phrase(status: int) -> str:
    return f"{HTTPStatus(status).phrase}."


def _refusals(operation: Operation) -> Iterator[int]:
    """The statuses that an operation refuses requests with."""
    yield from _ANY_OPERATION
    yield from operation.errors
    if operation.websocket:
        yield 426
    if operation.content_types:
        yield from _WITH_BODY
    if operation.params or operation.query:
        yield 400
    if operation.auth is not None and operation.auth.schemes:
        yield 401


def _path_parameters(operation: Operation, path: str, components: _Components) -> Iterator[Json]:
    """By the names in ``path``, which an operation of another API may have chosen."""
    properties = components.properties(operation.params) if operation.params else {}
    for name, own in zip(parameter_names(path), parameter_names(operation.path), strict=True):
        yield _parameter(name, "path", properties.get(own, {"type": "string"}), required=True)


def _query_parameters(operation: Operation, components: _Components) -> Iterator[Json]:
    if operation.query:
        required = components.required(operation.query)
        for name, schema in components.properties(operation.query).items():
            yield _parameter(name, "query", schema, required=name in required)


def _parameter(name: str, place: str, schema: Json, *, required: bool) -> Json:
    schema = dict(schema)
    description = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": place, "required": required, **description, "schema": schema}


class _Components:
    """The schemas that a document refers to, each under ``<api>.<name>``."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self.schemas: Json = {}

    def reference(self, name: str) -> Json:
        """For a name such as ``leaderboard#/$defs/SyncRequest``."""
        key = ".".join(re.findall(r"\w+", name.replace("/$defs", "")))
        if key not in self.schemas:
            self.schemas[key] = {}  # it may refer to itself
            self.schemas[key] = self._translated(self._lookup(name), name)
        return {"$ref": f"#/components/schemas/{key}"}

    def properties(self, name: str) -> Json:
        """The members of an object of that schema."""
        return self._members(self._lookup(name).get("properties", {}), name)

    def required(self, name: str) -> Sequence[str]:
        required: Sequence[str] = self._lookup(name).get("required", ())
        return required

    def _lookup(self, name: str) -> Json:
        schema: Json = self._schemas.checker(name).lookup(f"homeport:{name}")
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
