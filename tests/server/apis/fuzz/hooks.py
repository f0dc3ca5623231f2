"""What a schema cannot say of requests, and schemathesis has to know (loaded by it, not by pytest).

Keys and addresses come in the environment variable HOMEPORT_FUZZ, a JSON document that the test makes. Only requests
that are to be accepted are touched: those that are to be refused go out as schemathesis made them, but for their keys.
"""

from __future__ import annotations

import hmac
import json
import os
import time
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import requests
import schemathesis
from requests.auth import AuthBase

GIVEN: dict[str, Any] = json.loads(os.environ["HOMEPORT_FUZZ"])
_RECORDING = b"what a microphone has heard"
_numbers = count()


# Who calls


class Caller(AuthBase):
    """Whoever has the key that an operation takes."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        path = urlsplit(request.url or "").path
        name, value = next(header for prefix, *header in GIVEN["keys"] if path.startswith(prefix))
        request.headers[name] = value
        if isinstance(request.body, bytes) and _RECORDING in request.body:
            request.body = request.body.replace(_RECORDING, bytes.fromhex(GIVEN["recording"]))
            request.prepare_content_length(request.body)
        return request


class Signed(AuthBase):
    """A service that signs bodies: its headers go in the place of those that were made up, if all of them were."""

    def __init__(self, sign: Callable[[int, bytes], dict[str, str]]) -> None:
        self._sign = sign

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body: Any = request.body or b""
        signed = self._sign(int(time.time()), body if isinstance(body, bytes) else body.encode())
        if all(name in request.headers for name in signed):
            request.headers.update(signed)
        return request


def by_stripe(now: int, body: bytes) -> dict[str, str]:
    """docs.stripe.com/webhooks#verify-manually."""
    return {"Stripe-Signature": f"t={now},v1={_mac('webhook_secret', b'%d.%b' % (now, body))}"}


def by_slack(now: int, body: bytes) -> dict[str, str]:
    """docs.slack.dev/authentication/verifying-requests-from-slack."""
    signature = f"v0={_mac('signing_secret', b'v0:%d:%b' % (now, body))}"
    return {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(now)}


def _mac(secret: str, text: bytes) -> str:
    return hmac.new(GIVEN[secret].encode(), text, sha256).hexdigest()


STRIPE, SLACK = "/api/webhooks/stripe", "/slack/commands"
AUTH: Any = schemathesis.auth  # its types do not tell of what is on the function
AUTH.set_from_requests(Signed(by_stripe)).apply_to(path=STRIPE)
AUTH.set_from_requests(Signed(by_slack)).apply_to(path=SLACK)
AUTH.set_from_requests(Caller()).skip_for(path=[STRIPE, SLACK])


# What they send

NAMES = {"collection": ("note", "thing"), "username": (GIVEN["username"],)}
"""What there is by the names of the paths' parameters."""
LISTS = {
    "/api/notifications/{id}": "/api/notifications",
    "/api/projects/{id}": "/api/projects",
    "/api/sessions/{id}": "/api/sessions",
    "/api/tickets/{id}": "/api/projects/{id}/tickets",
}
"""What lists the ids of paths."""
Fit = Callable[[Any], None]
_fits: dict[str, Fit] = {}


def of(*labels: str) -> Callable[[Fit], Fit]:
    """Makes a function fit the requests of operations."""

    def add(fit: Fit) -> Fit:
        _fits.update(dict.fromkeys(labels, fit))
        return fit

    return add


@schemathesis.hook
def before_add_examples(context: Any, examples: list[Any]) -> None:
    for case in examples:
        map_case(context, case)


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    if case.meta is None or case.meta.generation.mode.is_positive:
        headers = case.headers or {}
        if "Idempotency-Key" in headers:
            headers["Idempotency-Key"] = str(uuid4())  # of another request it is refused, and rightly
        if "If-Match" in headers and next(_numbers) % 2:
            headers["If-Match"] = "*"
        for name, there in NAMES.items():
            if name in case.path_parameters and case.path_parameters[name] not in there:
                case.path_parameters[name] = there[next(_numbers) % len(there)]
        for path, listing in LISTS.items():
            if case.operation.path.startswith(path) and next(_numbers) % 4 and (ids := there_are(listing)):
                case.path_parameters["id"] = ids[next(_numbers) % len(ids)]
        if fit := _fits.get(case.operation.label):
            case.body = deepcopy(case.body)  # examples are shared
            fit(case)
    return case


def there_are(listing: str) -> list[str]:
    """The ids that a list has, or had a moment ago; the tickets are those of any project."""
    return _there_were(listing, int(time.monotonic() * 2))


@lru_cache(maxsize=8)
def _there_were(listing: str, moment: int) -> list[str]:
    of_each = listing.partition("{id}")
    lists = [listing] if not of_each[1] else [of_each[0] + id + of_each[2] for id in there_are("/api/projects")[:4]]
    found = []
    for path in lists:
        answer = requests.get(GIVEN["url"] + path, auth=Caller()).json()
        found += [one["id"] for one in (answer if isinstance(answer, list) else answer.get("data", ()))]
    return found


@of("POST /api/projects", "PATCH /api/projects/{id}")
def in_folders_that_exist(case: Any) -> None:
    """A repository is a folder on the server, and registered once; the others lie in it. tmux has rules for names."""
    body = case.body
    if isinstance(body, dict):
        for name in ("repoPath", "repo_path"):
            if name in body:
                folder = Path(GIVEN["folder"]) / f"repository-{next(_numbers)}"
                folder.mkdir()
                body[name] = str(folder)
        for name in ("ticketsPath", "tickets_path", "handoffPath", "handoff_path"):
            if name in body:
                body[name] = "docs/some.md"
        for name in ("tmuxSession", "tmux_session", "tmuxWindow", "tmux_window"):
            if body.get(name):
                body[name] = "fuzz"


@of("POST /api/sessions/{id}/keys")
def keys_that_tmux_knows(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body["keys"] = "C-l Down"


@of("POST /api/hooks/claude")
def an_event_of_a_session(case: Any) -> None:
    events = ("Notification", "Stop", "SessionStart")
    if isinstance(case.body, dict) and (ids := there_are("/api/sessions?status=running")):
        case.headers["X-Homeport-Session"] = ids[0]
        case.body |= {"hook_event_name": events[next(_numbers) % len(events)], "session_id": f"agent of {ids[0]}"}
        case.body.pop("notification_type", None)  # of which some tell nobody


@of("POST /slack/commands")
def the_command(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body |= {"command": "/apikey", "text": ""}


@of("POST /v1/sync")
def own_and_past(case: Any) -> None:
    """Entries are those of the key's user, and not in the future."""
    if isinstance(case.body, dict):
        for entry in case.body["entries"]:
            entry |= {"username": GIVEN["username"], "date": "2025-01-01"}


@of("POST /api/sync")
def a_past_report(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body["timestamp"] = "2025-06-01T10:30:00Z"


@of("GET /api/history/{user_key}", "GET /api/tokens/transactions")
def the_first_page(case: Any) -> None:
    """Cursors are opaque: links lead to the other pages."""
    for name in ("cursor", "after"):
        case.query.pop(name, None)


@of("GET /collections/{collection}")
def by_indexed_fields(case: Any) -> None:
    the_first_page(case)
    if "sort" in case.query:
        case.query["sort"] = "-id"


@of("POST /collections/{collection}/batch", "POST /collections/{collection}/sync")
def each_once(case: Any) -> None:
    """No two operations of a batch are on one record. Ids have bytes, and characters that they must not have."""
    if isinstance(case.body, dict):
        if "since" in case.body:
            case.body["since"] = 0
        for place, edit in enumerate(case.body["operations" if "operations" in case.body else "changes"]):
            edit["id"] = f"n{place}"


@of("GET /api/claude/console-usage")
def a_version_that_is_kept(case: Any) -> None:
    case.query.pop("timestamp", None)
    if "version" in case.query:
        case.query["version"] = "-1"


@of("GET /oauth2/authorize", "POST /oauth2/authorize")
def of_a_client_that_is_registered(case: Any) -> None:
    asked = case.query if case.method == "GET" else case.body
    if isinstance(asked, dict):
        asked |= GIVEN["authorize"]
        if "license_key" in asked:
            asked["license_key"] = GIVEN["license_key"]


@of("POST /oauth2/token")
def a_grant(case: Any) -> None:
    """Codes and refresh tokens are good once."""
    if isinstance(case.body, dict):
        form = GIVEN["authorize"] | {"license_key": GIVEN["license_key"]}
        answer = requests.post(f"{GIVEN['url']}/oauth2/authorize", data=form, allow_redirects=False)
        (code,) = parse_qs(urlsplit(answer.headers["Location"]).query)["code"]
        redeem = GIVEN["redeem"] | {"code": code}
        if case.body["grant_type"] == "refresh_token":
            tokens = requests.post(f"{GIVEN['url']}/oauth2/token", data=redeem).json()
            case.body |= {"client_id": redeem["client_id"], "refresh_token": tokens["refresh_token"]}
        else:
            case.body |= redeem


@of("POST /oauth2/revoke")
def by_the_client(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body["client_id"] = GIVEN["redeem"]["client_id"]


@of("POST /api/desktop/transcribe")
def a_recording(case: Any) -> None:
    """Its bytes are put in late: schemathesis takes none for what fits a schema."""
    if isinstance(case.body, dict):
        case.body["file"] = _RECORDING.decode()


@of("POST /api/license/validate")
def a_license(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body |= {"license_key": GIVEN["license_key"], "device_fingerprint": "0" * 64}
