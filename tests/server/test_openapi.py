"""The server's description of itself: valid, whole, and true of what the other tests see (`tests/declared.py`)."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from click.testing import CliRunner, Result
from openapi_spec_validator import validate
from pytest_aiohttp import AiohttpClient

from homeport import create_app, load_config
from homeport.server.cli import cli
from homeport.server.keys import OPENAPI

METHODS = {"get", "put", "post", "delete", "patch"}


def described(**settings: object) -> dict[str, Any]:
    document: dict[str, Any] = create_app(load_config(environ={}, overrides=settings))[OPENAPI]()
    return document


DOCUMENT = described()


def resolved(response: dict[str, Any]) -> dict[str, Any]:
    """A response that may stand among the components."""
    found: dict[str, Any] = DOCUMENT
    for step in response.get("$ref", "#").split("/")[1:]:
        found = found[step]
    return found if "$ref" in response else response


OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def test_it_is_openapi() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"


def test_every_route_is_there() -> None:
    app = create_app(load_config(environ={}))
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method.lower() in METHODS
    }
    by_place = {f"{operation.partition(' ')[0]} {_by_place(operation.partition(' ')[2])}" for operation in OPERATIONS}
    assert routes == by_place


def _by_place(path: str) -> str:
    names = [segment for segment in path.split("/") if segment.startswith("{")]
    for place, name in enumerate(names):
        path = path.replace(name, f"{{p{place}}}")
    return path


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_described_whole(name: str) -> None:
    operation = OPERATIONS[name]
    assert len(operation["summary"]) > 5
    assert {"421", "429", "500", "503", "507"} <= operation["responses"].keys()
    assert any(int(status) < 400 for status in operation["responses"])
    parameters = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
    assert [f"{{{parameter}}}" for parameter in parameters] == [
        segment for segment in name.split("/") if segment.startswith("{")
    ]
    for status, response in operation["responses"].items():
        response = resolved(response)
        json_schemas = [content["schema"] for kind, content in response.get("content", {}).items() if "json" in kind]
        assert status.startswith("2") or status == "404" or all("$ref" in schema for schema in json_schemas)


def test_ids_are_unique() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids))


BY_ID = {operation["operationId"]: operation for operation in OPERATIONS.values()}


def parameters(operation: dict[str, Any], *places: str) -> set[str]:
    return {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] in places}


def links(operation: dict[str, Any]) -> dict[str, Any]:
    return {name: link for answer in operation["responses"].values() for name, link in answer.get("links", {}).items()}


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if links(operation)])
def test_links_lead_to_operations(name: str) -> None:
    for link in links(OPERATIONS[name]).values():
        target = BY_ID[link["operationId"]]
        assert parameters(target, "path") <= link["parameters"].keys() <= parameters(target, "path", "query", "header")
        own = {text.rpartition(".")[2] for text in link["parameters"].values() if text.startswith("$request.path.")}
        assert own <= parameters(OPERATIONS[name], "path")


@pytest.mark.parametrize(
    ("operation", "target", "told"),
    [
        pytest.param(
            "collections.create",
            "collections.patch",
            {"collection": "$request.path.collection", "id": "$response.body#/_meta/id"},
            id="what it made",
        ),
        pytest.param("sessions.create_project", "sessions.list_tickets", {"id": "$response.body#/id"}, id="below that"),
        pytest.param(
            "sessions.register_device",
            "sessions.unregister_device",
            {"user_key": "$request.body#/token"},
            id="by the name that another API gave",
        ),
        pytest.param(
            "device_usage.history",
            "device_usage.history",
            {"user_key": "$request.path.user_key", "cursor": "$response.body#/data/next"},
            id="the next page",
        ),
        pytest.param(
            "sessions.start_session",
            "sessions.claude_hook",
            {"X-Homeport-Session": "$response.body#/id"},
            id="in a header",
        ),
    ],
)
def test_where_answers_lead(operation: str, target: str, told: dict[str, str]) -> None:
    assert links(BY_ID[operation])[target] == {"operationId": target, "parameters": told}


@pytest.mark.parametrize(
    ("operation", "headers"),
    [
        ("collections.create", {"Idempotency-Key"}),
        ("collections.put", {"If-Match", "If-None-Match"}),
        ("collections.changes", {"Last-Event-ID"}),
        ("metering.consume", {"Idempotency-Key"}),
        ("metering.stripe_webhook", {"Stripe-Signature"}),
        ("sessions.put_content", {"If-Match"}),
        ("sessions.claude_hook", {"X-Homeport-Session"}),
        ("console_usage.read", {"If-None-Match", "If-Modified-Since"}),
        ("device_usage.sync", set()),
    ],
)
def test_headers_of_requests(operation: str, headers: set[str]) -> None:
    assert parameters(BY_ID[operation], "header") == headers


@pytest.mark.parametrize(
    ("operation", "status", "headers"),
    [
        ("collections.create", "201", {"ETag": True, "Location": True}),
        ("collections.list_records", "200", {"Link": False}),
        ("sessions.show_content", "200", {"ETag": True}),
        (
            "leaderboard.sync",
            "200",
            {"X-RateLimit-Limit": False, "X-RateLimit-Remaining": False, "X-RateLimit-Reset": False},
        ),
        ("metering.authorize", "303", {"Location": True}),
        ("metering.balance", "401", {"WWW-Authenticate": False}),
        ("metering.balance", "429", {"Retry-After": True}),
        ("metering.balance", "503", {"Retry-After": False}),
        ("metering.balance", "404", None),
    ],
)
def test_headers_of_answers(operation: str, status: str, headers: dict[str, bool] | None) -> None:
    """And whether they are always there."""
    answer = BY_ID[operation]["responses"].get(status)
    found = answer and {name: header["required"] for name, header in resolved(answer)["headers"].items()}
    assert found == headers


def test_two_apis_share_a_path() -> None:
    (item,) = [item for path, item in DOCUMENT["paths"].items() if path.startswith("/api/devices/")]
    assert {method: operation["tags"] for method, operation in item.items()} == {
        "get": ["device_usage"],
        "post": ["sessions"],
        "delete": ["sessions"],
    }


SCHEMAS = DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if "examples" in schema])
def test_examples_fit_their_schemas(name: str) -> None:
    registry = jsonschema_rs.Registry([("urn:all", DOCUMENT)])
    validator = jsonschema_rs.Draft202012Validator({"$ref": f"urn:all#/components/schemas/{name}"}, registry=registry)
    for example in SCHEMAS[name]["examples"]:
        validator.validate(example)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_sent_and_answered_has_examples(name: str) -> None:
    operation = OPERATIONS[name]
    answers = [resolved(answer) for status, answer in operation["responses"].items()]
    contents = [body.get("content", {}) for body in (operation.get("requestBody", {}), *answers)]
    schemas = [
        content["schema"] for kinds in contents for kind, content in kinds.items() if not kind.startswith("text/")
    ]
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas]
    assert [name for name in names if not SCHEMAS[name].get("examples")] == []


def test_nothing_of_ours_alone_is_in_it() -> None:
    """Formats and references of the schema files."""
    text = json.dumps(DOCUMENT)
    assert [word for word in ("homeport:", "$defs", '"instant"', '"plain-text"') if word in text] == []


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        pytest.param(
            {"apis.enabled": []}, {"/admin", "/api", "/docs", "/health", "/metrics", "/openapi.json"}, id="no API"
        ),
        pytest.param(
            {"apis.enabled": ["collections"]},
            {"/admin", "/api", "/docs", "/changes", "/collections", "/health", "/metrics", "/openapi.json"},
            id="one",
        ),
    ],
)
def test_it_has_what_is_served(settings: dict[str, object], paths: set[str]) -> None:
    assert {f"/{path.split('/')[1]}" for path in described(**settings)["paths"]} == paths


def test_where_the_server_is() -> None:
    assert DOCUMENT["servers"] == [{"url": "/"}]
    assert described(**{"server.base_path": "/sync"})["servers"] == [{"url": "/sync"}]


async def test_it_is_served(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(load_config(environ={}, overrides={"storage.url": "memory:"})))
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert await answer.json() == json.loads(json.dumps(DOCUMENT))


# The command


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, ["openapi", *arguments], prog_name="homeport", env=environ)


def test_the_command_prints_it() -> None:
    result = run()
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(json.dumps(DOCUMENT))


def test_the_command_writes_it(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "openapi.json"))
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads((tmp_path / "openapi.json").read_text()) == json.loads(json.dumps(DOCUMENT))


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "error"),
    [
        pytest.param(
            ("--out", "no/folder.json"), {}, 1, "homeport: cannot write no/folder.json: No such file", id="no folder"
        ),
        pytest.param((), {"PORT": "x"}, 2, "PORT: ", id="bad configuration"),
        pytest.param((), {"HOMEPORT_SERVER__HOST": "0.0.0.0"}, 2, "apis.sessions.api_key: ", id="it would not start"),
    ],
)
def test_the_command_fails(arguments: tuple[str, ...], environ: dict[str, str], code: int, error: str) -> None:
    result = run(*arguments, **environ)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(error)
