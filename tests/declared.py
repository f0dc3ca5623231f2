"""Every answer of the suite is one that its operation declares: `as_declared` fails the test of another."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import jsonschema_rs
import pytest
from aiohttp import web

from homeport.server.endpoint import Endpoint
from homeport.server.keys import OPENAPI
from homeport.server.request import Answer, ApiRequest
from homeport.storage.documents import encode

_described: WeakKeyDictionary[web.Application, dict[str, Any]] = WeakKeyDictionary()
"""Of each application, what its OpenAPI document says of every operation, by their ids."""
_by_routes: dict[frozenset[tuple[str, str]], dict[str, Any]] = {}
"""The same by methods and paths: the document takes as long to make as the application."""
_schemas: dict[str, Any] = {}


def _descriptions(app: web.Application) -> dict[str, Any]:
    if app not in _described:
        routes = frozenset((route.method, route.resource.canonical) for route in app.router.routes() if route.resource)
        if routes not in _by_routes:
            _by_routes[routes] = _read(app[OPENAPI]())
        _described[app] = _by_routes[routes]
    return _described[app]


def _read(document: dict[str, Any]) -> dict[str, Any]:
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    refusals = document["components"]["responses"]
    for operation in operations:
        for status, response in operation["responses"].items():
            if "$ref" in response:
                operation["responses"][status] = refusals[response["$ref"].rpartition("/")[2]]
    _schemas.update(document["components"]["schemas"])
    return {operation["operationId"]: operation for operation in operations}


@cache
def _validator(reference: str) -> jsonschema_rs.Draft202012Validator:
    registry = jsonschema_rs.Registry([("urn:all", {"components": {"schemas": _schemas}})])
    return jsonschema_rs.Draft202012Validator({"$ref": f"urn:all{reference}"}, registry=registry)


def _complaint(
    operation: dict[str, Any], answer: web.StreamResponse, media_type: str, body: bytes | None
) -> str | None:
    """What is wrong with an answer."""
    status = answer.status
    response = operation["responses"].get(str(status))
    if response is None:
        return f"{status} is not declared"
    headers = response.get("headers", {})
    if missing := [name for name, header in headers.items() if header["required"] and name not in answer.headers]:
        return f"{status} lacks {', '.join(missing)}"
    content = response.get("content", {})
    if not body:
        return None
    if media_type not in content:
        return f"{status} with {media_type} is not declared"
    reference = content[media_type]["schema"].get("$ref")
    if reference is None or "json" not in media_type:
        return None
    errors = [error.message for error in _validator(reference).iter_errors(json.loads(body))]
    return f"{status}: {errors[0]}" if errors else None


@pytest.fixture(autouse=True)
def as_declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    respond = Endpoint._respond
    complaints = []

    def watched(self: Endpoint, request: ApiRequest, answer: Any) -> web.StreamResponse:
        response = respond(self, request, answer)
        operation = self._operation
        ours = type(self) is Endpoint and operation.handler.__module__.startswith("homeport.")
        described = _descriptions(request.app).get(operation.name) if ours else None
        if described and not isinstance(answer, web.StreamResponse):
            body, _, _, content_type = answer if isinstance(answer, Answer) else Answer(answer)
            body = body if body is None or isinstance(body, bytes) else encode(body)
            media_type = content_type.partition(";")[0]
            if complaint := _complaint(described, response, media_type, body):
                complaints.append(f"{operation.name}: {complaint}")
        return response

    monkeypatch.setattr(Endpoint, "_respond", watched)
    yield
    if complaints:
        pytest.fail("answers that their operations do not declare, in returns or errors:\n" + "\n".join(complaints))
