"""Slack's slash command ``/apikey``: gives a key to who asks, and a new one to who asks again
(contracts/leaderboard.md, "Slack")."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aiohttp import web

from ....storage import ABSENT, Collection, Conflict, Field, Filter, Put, Query
from ....storage.times import MINUTE, SECOND, format_time
from ...api_keys import API_KEYS, InvalidUsername, UsernameTaken
from ...errors import ApiError, InvalidBody, Problem
from ...request import Answer, ApiRequest
from .api import api

if TYPE_CHECKING:
    from slack_sdk.signature import SignatureVerifier

    from ....storage import Storage
    from ...clock import Clock
    from ...config import Secret

_COMMAND = "/apikey"
_MAX_BODY = 64 << 10
_REMEMBERED_FOR = 5 * MINUTE + SECOND
"""After its timestamp: a little longer than the verifier takes a request."""
REQUESTS = Collection("slack_requests", (Field("too_old", "time", indexed=True),))
"""By their signatures, those that were answered; ``too_old``: from when on the verifier refuses them anyway."""
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"v0=[0-9a-f]{64}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]")

_HELP = (
    f"`{_COMMAND}` gives you a key with which your client uploads your usage. If you have one already, it is replaced: "
    "the old one stops working. Only you see the answer."
)


class SlackRequests:
    """Tells requests that Slack signed from others, and takes each of them once, whichever server it comes to."""

    def __init__(self, secret: Secret, storage: Storage, clock: Clock) -> None:
        """``secret``: the signing secret."""
        self._secret = secret
        self._storage = storage
        self._clock = clock
        self._verifier: SignatureVerifier | None = None

    async def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Raises `ApiError` 401 for all that is not genuine, fresh and new.

        That is no failed authentication that counts: whoever makes a Slack app can have Slack send requests with
        another signature, and must not get Slack's addresses locked out.
        """
        if self._verifier is None:
            self._verifier = await asyncio.to_thread(_verifier, self._secret, self._clock)
        timestamp, signature = headers.get("X-Slack-Request-Timestamp", ""), headers.get("X-Slack-Signature", "")
        genuine = _is_genuine(self._verifier, timestamp, signature, body)
        if not genuine or not await self._is_new(signature, int(timestamp)):
            headers = {"WWW-Authenticate": "Slack-Signature"}
            raise ApiError("Invalid or missing Slack signature", status=401, headers=headers)

    async def _is_new(self, signature: str, timestamp: int) -> bool:
        """Whether a genuine request comes for the first time; from now on it does not."""
        too_old = format_time(timestamp * SECOND + _REMEMBERED_FOR)
        await self._storage.purge(Query(REQUESTS, (Filter("too_old", "<", self._clock.now()),)))
        try:
            await self._storage.commit([Put(REQUESTS, signature, {"too_old": too_old}, ABSENT)])
        except Conflict:
            return False
        return True


SLACK = web.AppKey("slack", SlackRequests)
"""Set when the application starts, if there is a signing secret."""


def _verifier(secret: Secret, clock: Clock) -> SignatureVerifier:
    from slack_sdk.signature import Clock as SlackClock
    from slack_sdk.signature import SignatureVerifier

    class OurClock(SlackClock):
        def now(self) -> float:
            return clock.now() / SECOND

    return SignatureVerifier(secret.reveal(), OurClock())


def _is_genuine(verifier: SignatureVerifier, timestamp: str, signature: str, body: bytes) -> bool:
    # The verifier raises on timestamps that are no numbers and signatures that are not ASCII.
    if not _TIMESTAMP.fullmatch(timestamp) or not _SIGNATURE.fullmatch(signature):
        return False
    try:
        return verifier.is_valid(body, timestamp, signature)
    except UnicodeDecodeError:
        return False


@api.post(
    "/slack/commands",
    content_types=("application/x-www-form-urlencoded",),
    max_body=_MAX_BODY,
    reads={"headers": "headers#/$defs/SlackSigned", "body": "leaderboard#/$defs/SlackCommand"},
    returns={200: "leaderboard#/$defs/SlackAnswer"},
    errors=(401,),
    when=lambda config: config.apis.leaderboard.slack_signing_secret is not None,
)
async def slack_command(request: ApiRequest) -> Answer:
    """A key for who asks in Slack, or a word on why there is none."""
    await request.app[SLACK].check(request.raw.headers, request.body)
    form = dict(parse_qsl(request.body.decode()))
    missing = [name for name in ("command", "team_id", "user_id", "user_name") if name not in form]
    if missing:
        raise InvalidBody(problems=[Problem((name,), "is required") for name in missing])
    return Answer(
        {"response_type": "ephemeral", "text": await _reply(request, form)}, headers={"Cache-Control": "no-store"}
    )


async def _reply(request: ApiRequest, form: Mapping[str, Any]) -> str:
    if form["command"] != _COMMAND or form.get("text", "").strip():
        return _HELP
    username = _FOREIGN.sub("_", form["user_name"])
    identity = f"slack/{form['team_id']}/{form['user_id']}"
    try:
        key, text, rotated = await request.app[API_KEYS].issue(username, identity)
    except InvalidUsername as error:
        return f"There is no key for `{username}`: {error.message}. Ask who runs the server for a key of another name."
    except UsernameTaken:
        return f"The username `{username}` is somebody else's. Ask who runs the server for a key of another name."
    request.username = key.username
    url = request.config.server.public_url
    return (
        f"Your {'new ' if rotated else ''}API key for `{key.username}`:\n```{text}```\n"
        f"{'The old one has stopped working. ' if rotated else ''}"
        f"Give it to your client{f', with the server {url}' if url else ''}: it is sent as `Authorization: Bearer …`. "
        f"It is shown this once; `{_COMMAND}` again replaces it."
    )
