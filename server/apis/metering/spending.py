"""Who changes one profile at a time queues, and what has gathered is committed together.

A profile's version lets one commit pass at a time, which takes as long as the disk does: 50 spenders of one balance
would wait for 50 of them, one after the other. While one commit is under way, the next gathers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Protocol, TypeVar

from ...errors import ApiError, ServiceUnavailable
from .account import Account

_T = TypeVar("_T")
Turn = Callable[[Account], _T]
"""What somebody does to a profile. Where it raises an `ApiError`, it has not done it."""


class Change(Protocol):
    """Does something to a profile and commits it. It may do so again, where others did something in between."""

    def __call__(self, user_id: str, turn: Turn[_T], /) -> Awaitable[_T]: ...


MAX_TOGETHER = 256
MAX_WAITING = 4096
"""Of one profile."""
_RETRY_SECONDS = 1


class _Waiting:
    """Somebody who waits for a turn, and for its commit."""

    __slots__ = ("future", "turn")

    def __init__(self, turn: Turn[Any]) -> None:
        self.turn = turn
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def tell(self, outcome: object) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Spending:
    """The queues of all profiles."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._queues: dict[str, deque[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, user_id: str, turn: Turn[_T]) -> _T:
        """What a turn at a profile comes to, once that is durable. Turns are taken in the order in which they came.

        One that is cancelled while it waits does not take place; one that is cancelled later may. Raises what the turn
        or its commit raises, and `ServiceUnavailable` where too many wait.
        """
        queue = self._queues.get(user_id)
        if queue is None:
            return await self._alone(user_id, turn)
        if len(queue) >= MAX_WAITING:
            raise ServiceUnavailable("Too many requests of this profile are waiting", retry_after=_RETRY_SECONDS)
        waiting = _Waiting(turn)
        queue.append(waiting)
        result: _T = await waiting.future
        return result

    async def _alone(self, user_id: str, turn: Turn[_T]) -> _T:
        """As nearly all are: who comes first needs no queue, and leaves one behind where others came meanwhile."""
        queue = self._queues[user_id] = deque()
        try:
            return await self._change(user_id, turn)
        finally:
            if queue:
                task = asyncio.create_task(self._serve(user_id, queue), name="spending", context=Context())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._queues[user_id]

    async def _serve(self, user_id: str, queue: deque[_Waiting]) -> None:
        """Commits what has gathered until nobody waits."""
        try:
            while queue:
                await self._together(user_id, queue)
        finally:
            del self._queues[user_id]
            for waiting in queue:
                waiting.future.cancel()

    async def _together(self, user_id: str, queue: deque[_Waiting]) -> None:
        turns: list[_Waiting] = []
        outcomes: list[Any] = []

        def take_turns(account: Account) -> None:
            outcomes.clear()
            while queue and len(turns) < MAX_TOGETHER:
                waiting = queue.popleft()
                if not waiting.future.done():
                    turns.append(waiting)
            outcomes.extend(_outcome(waiting.turn, account) for waiting in turns)

        try:
            await self._change(user_id, take_turns)
        except asyncio.CancelledError:
            queue.extend(turns)
            raise
        except Exception as error:  # noqa: BLE001  # it is theirs who wait
            # What failed before anybody had a turn fails everybody who waits.
            turns = turns or [queue.popleft() for _ in range(len(queue))]
            outcomes = [error] * len(turns)
        for waiting, outcome in zip(turns, outcomes, strict=True):
            waiting.tell(outcome)


def _outcome(turn: Turn[Any], account: Account) -> object:
    try:
        return turn(account)
    except ApiError as error:
        return error
