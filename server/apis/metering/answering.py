"""``Idempotency-Key``, as metering has it: per profile, and a refusal for want of tokens is an answer too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...idempotency import IDEMPOTENCY
from .account import InsufficientTokens
from .api import api

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...idempotency import Once
    from ...request import Answer, ApiRequest
    from .access import Licensee


async def once(request: ApiRequest, content: bytes, act: Callable[[Once], Awaitable[Answer]]) -> Answer:
    """What ``act`` answers or, where a request with this key and ``content`` was answered, that answer.

    ``act`` writes `Once.remember` of its answer in the commit of its effect, which is to `Once.finish`; what it raises
    is not remembered, but for `InsufficientTokens`. Raises as `Idempotency.run` does.
    """
    caller: Licensee = request.caller

    async def attempt(once: Once) -> Answer:
        try:
            return await act(once)
        except InsufficientTokens as error:
            answer = api.envelope(error, request)
            await once.keep(answer)
            return answer

    return await request.app[IDEMPOTENCY].run(request, content, attempt, f"profile {caller.user_id}")
