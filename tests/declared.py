"""Every answer of the suite is one that its operation declares: `as_declared` fails the test of another."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web

from homeport.server.endpoint import Endpoint
from homeport.server.keys import OPENAPI
from homeport.server.request import Answer, ApiRequest
from homeport.storage.documents import encode

_described: dict[str, dict[str, Any] | None] = {}
"""What the OpenAPI document says of an operation, by its id; None of one that it leaves out. It says the same whatever
the settings are, and it takes long to write: once for all applications."""
_schemas: dict[str, Any] = {}


def _description(app: web.Application, name: str) -> dict[str, Any] | None:
    if name not in _described:
        document = app[OPENAPI]()
        refusals = document["components"]["responses"]
        for operation in (operation for item in document["paths"].values() for operation in item.values()):
            for status, response in operation["responses"].items():
                if "$ref" in response:
                    operation["responses"][status] = refusals[response["$ref"].rpartition("/")[2]]
            _described[operation["operationId"]] = operation
        _schemas.update(document["components"]["schemas"])
        _described.setdefault(name, None)
    return _described[name]


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
        described = _description(request.app, operation.name) if ours else None
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
