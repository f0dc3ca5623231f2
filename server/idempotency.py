"""``Idempotency-Key``: a request that is sent again is done once, and has the first answer again for 24 hours.

What is remembered of an answer is written in the commit of its effect: either both are there or neither, also when the
server is killed between the two. Clients are told the versions that their writes took, which nobody knows before the
commit; they are consecutive, so that an answer counts them from the version of what remembers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aiohttp import web

from ..storage import Collection, Conflict, Field, Filter, Put, Query
from ..storage.documents import encode
from ..storage.times import DAY, format_time
from .errors import ApiError, BadRequest
from .request import Answer

if TYPE_CHECKING:
    from ..storage import Storage, Write
    from .clock import Clock
    from .request import ApiRequest

ANSWERS = Collection("idempotent_answers", (Field("until", "time", indexed=True),))
"""By a hash of the caller and the key: ``request`` (a hash), ``status``, ``headers``, ``body``, ``content_type``, and
``until`` when."""
MAX_KEY = 255
"""Characters."""
KEPT_FOR = DAY
_RETRY_SECONDS = 1

_T = TypeVar("_T")
Text = Sequence[str | int]
"""Parts of a text; a number n stands for the version of a commit's n-th write, of those that took one, from 1 on."""


class Draft(NamedTuple):
    """An answer, before the versions in it are known. ``headers``, ``body``: see `Text`."""

    status: int
    headers: Mapping[str, Text]
    body: Text
    content_type: str = "application/json"

    def answer(self, before: int) -> Answer:
        """The answer, where the writes took the versions after ``before``."""

        def filled(text: Text) -> str:
            return "".join([part if isinstance(part, str) else str(before + part) for part in text])

        headers = {name: filled(text) for name, text in self.headers.items()}
        return Answer(filled(self.body).encode(), self.status, headers, self.content_type)


class Once:
    """One request that may have a key."""

    def __init__(self, storage: Storage, now: int, id: str | None = None, request: str = "") -> None:
        self._storage = storage
        self._now = now
        self._id = id
        self._request = request
        self._committing: asyncio.Task[Any] | None = None

    async def commit(self, draft: Draft, writes: Sequence[Write]) -> Answer:
        """Does the writes, in one commit with what remembers the answer, and gives that. Raises `Conflict`."""
        if self._id is None:
            commit = await self._storage.commit(writes)
            first = next((version for version in commit.versions if version), commit.version + 1)
            return draft.answer(first - 1)
        try:
            commit = await self.finish(self._storage.commit([self._kept(self._id, draft), *writes]))
        except Conflict as conflict:
            conflict.index -= 1  # as the caller counts
            raise
        return draft.answer(commit.versions[0])

    def remember(self, answer: Answer) -> list[Write]:
        """What remembers an answer without versions in it, to be written in the commit of its effect, which is to
        `finish`; nothing, where the request has no key."""
        if self._id is None:
            return []
        body = answer.body if isinstance(answer.body, bytes) else encode(answer.body)
        headers = {name: [value] for name, value in (answer.headers or {}).items()}
        return [self._kept(self._id, Draft(answer.status, headers, [body.decode()], answer.content_type))]

    async def keep(self, answer: Answer) -> None:
        """Remembers an answer whose effect is elsewhere, or that has none."""
        if writes := self.remember(answer):
            await self.finish(self._storage.commit(writes))

    async def finish(self, committing: Coroutine[Any, Any, _T]) -> _T:
        """What a commit comes to. It is finished where nobody waits for it any more, as it may be in any case; until
        then, the key is one that is running."""
        if self._id is None:
            return await committing
        self._committing = asyncio.create_task(committing, name="idempotent commit")
        return await asyncio.shield(self._committing)

    def when_finished(self, call: Callable[[], None]) -> None:
        """Calls when no commit is under way any more: now, unless who waited for it was cancelled."""

        def finished(task: asyncio.Task[Any]) -> None:
            if not task.cancelled():
                task.exception()  # nobody is there to take it
            call()

        if self._committing is None or self._committing.done():
            call()
        else:
            self._committing.add_done_callback(finished)

    def _kept(self, id: str, draft: Draft) -> Put:
        until = format_time(self._now + KEPT_FOR)
        return Put(ANSWERS, id, {"request": self._request, "until": until, **draft._asdict()})


class Idempotency:
    """The keys on a store; a server has one of these."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._running: set[str] = set()

    async def run(
        self,
        request: ApiRequest,
        content: bytes,
        act: Callable[[Once], Awaitable[Answer]],
        caller: str | None = None,
    ) -> Answer:
        """What ``act`` answers to a request or, where it was answered under its key, that answer.

        ``act`` commits with `Once.commit` or `Once.remember` if its answer is to be remembered. ``content``: what else
        makes two requests the same than method and path. ``caller``: whose the keys are, where it is not the holder of
        a key or address. Raises `BadRequest`, and `ApiError`: 409 while the first is running, 422 where it was another
        request.
        """
        key = request.raw.headers.get("Idempotency-Key")
        if key is None:
            return await act(Once(self._storage, request.now))
        if not 1 <= len(key) <= MAX_KEY:
            raise BadRequest(f"Idempotency-Key must be 1 to {MAX_KEY} characters")
        if caller is None:
            caller = f"key {request.caller_id}" if request.caller_id else f"address {request.client.network}"
        id = _hash(caller.encode(), key.encode("utf-8", "surrogatepass"))
        if id in self._running:
            raise ApiError(
                "A request with this Idempotency-Key is running",
                status=HTTPStatus.CONFLICT,
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        same = _hash(request.raw.method.encode(), request.raw.rel_url.raw_path.encode(), content)
        once = Once(self._storage, request.now, id, same)
        self._running.add(id)
        try:
            return await self._answered(id, same) or await act(once)
        finally:
            once.when_finished(lambda: self._running.discard(id))

    async def _answered(self, id: str, request: str) -> Answer | None:
        record = (await self._storage.get(ANSWERS, [id])).get(id)
        if record is None:
            return None
        kept = record.decode()
        if kept["until"] <= format_time(self._clock.now()):
            return None
        if kept["request"] != request:
            raise ApiError("This Idempotency-Key was used with another request", status=HTTPStatus.UNPROCESSABLE_ENTITY)
        draft = Draft(kept["status"], kept["headers"], kept["body"], kept["content_type"])
        return draft.answer(record.version)

    async def forget_old(self) -> int:
        """Removes what is no longer remembered; returns how many."""
        return await self._storage.purge(Query(ANSWERS, (Filter("until", "<=", self._clock.now()),)))


IDEMPOTENCY = web.AppKey("idempotency", Idempotency)
"""Set when the application starts."""


def _hash(*parts: bytes) -> str:
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()[:40]
