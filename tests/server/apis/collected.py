"""What the tests of collections share: a folder of schemas, and a server that serves it."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from .conftest import JSON, Answer, Serve, Served

NOTE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "count": {"type": "integer"},
        "price": {"type": "number"},
        "done": {"type": ["boolean", "null"]},
        "slug": {"type": "string"},
        "author": {"$ref": "person.schema.json"},
    },
    "required": ["title"],
    "x-homeport": {"unique": ["slug"]},
}
PERSON: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass
class Collections:
    """A server of the collections ``note``, ``person`` and ``thing``, which holds whatever comes."""

    server: Served
    folder: Path

    async def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """A request below /collections; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        content = BytesIO(data) if data and len(data) > 2**20 else data
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.server(method, f"/collections/{path}", data=content, headers=(JSON if data else {}) | named)

    async def put(self, path: str, body: object, **headers: str) -> int:
        """The version that a record took."""
        answer = await self("PUT", path, body, **headers)
        assert answer.status in (200, 201), answer.content
        version: int = answer.json["_meta"]["version"]
        return version

    async def ids(self, query: str, collection: str = "note") -> list[str]:
        """Of all records of a list, page after page."""
        found: list[str] = []
        path = f"{collection}?{query}"
        while True:
            answer = await self("GET", path)
            assert answer.status == 200, answer.content
            found += [record["_meta"]["id"] for record in answer.json["records"]]
            if answer.json["next"] is None:
                return found
            path = f"{collection}?{query}&cursor={answer.json['next']}"


def write_schemas(folder: Path, **schemas: object) -> Path:
    """A folder of schemas, by the name of the collection."""
    folder.mkdir(exist_ok=True)
    for name, schema in schemas.items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema))
    return folder


async def serve_collections(serve: Serve, folder: Path, **settings: Any) -> Collections:
    write_schemas(folder, note=NOTE, person=PERSON, thing=ANYTHING)
    given = {"apis.enabled": ["collections"], "apis.collections.schemas": str(folder), **settings}
    return Collections(await serve(given), folder)


def problems(answer: Answer) -> dict[str, str]:
    """What a refusal says is wrong, by JSON pointer."""
    assert answer.status == 400, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"
    return {error["pointer"]: error["message"] for error in answer.json["errors"]}
