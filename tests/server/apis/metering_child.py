"""A process that uses a ledger in every way, says what it was acknowledged, and is killed around one of its commits.

    python metering_child.py URL USER_ID KILL_AT

``KILL_AT``: 2n is before the n-th commit, 2n + 1 after it, before anybody is told; -1 is never. What an earlier process
did, it finds done: events are applied once, the month begins once.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Sequence
from typing import Any

from homeport.server.apis.metering import api
from homeport.server.apis.metering.ledger import AlreadyDone, Ledger
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.server.idempotency import ANSWERS
from homeport.storage import ABSENT, Collection, Commit, Put, Storage, Write, open_storage

EVENTS = Collection("test_events")
COLLECTIONS = (*api.collections, ANSWERS, EVENTS)
MONTH = "2099-01"


def say(*words: Any) -> None:
    print(json.dumps(words), flush=True)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(storage: Storage, kill_at: int) -> None:
    """Counts commits, and kills the process around one of them."""
    commit = storage.commit
    count = 0

    async def counted(writes: Sequence[Write]) -> Commit:
        nonlocal count
        if count == kill_at:
            kill()
        done = await commit(writes)
        if count + 1 == kill_at:
            kill()
        count += 2
        return done

    storage.commit = counted  # type: ignore[method-assign]  # that is the point


async def live(storage: Storage, user_id: str) -> None:
    ledger = Ledger(storage, Clock(), load_config(environ={}).apis.metering)

    def applied(event: str) -> list[Write]:
        return [Put(EVENTS, event, {}, ABSENT)]

    async def once(event: str, change: Awaitable[object]) -> None:
        try:
            await change
        except AlreadyDone:
            say("known", event)
        say("event", event)

    async def consume(number: int) -> None:
        say("spent", (await ledger.consume(user_id, 10, f"{number}", lambda _: ())).transaction_id)

    spent = await ledger.reserve(user_id, 100, "settled")
    await ledger.settle(spent)
    say("spent", spent.transaction_id)
    await once("bought", ledger.purchase(user_id, 1000, "Purchase", applied("bought")))
    await once("bought", ledger.purchase(user_id, 1000, "Purchase", applied("bought")))
    failed = await ledger.reserve(user_id, 200, "given back")
    await once("subscribed", ledger.subscribe(user_id, "pro", applied("subscribed")))
    await ledger.release(failed)
    await asyncio.gather(*(consume(number) for number in range(5)))
    left = await ledger.reserve(user_id, 300, "left")
    await ledger.refresh(user_id, MONTH)
    await ledger.refresh(user_id, MONTH)
    await consume(5)
    await ledger.unsubscribe(user_id)
    await ledger.release(left)
    say("done")


async def main(url: str, user_id: str, kill_at: int) -> None:
    async with open_storage(url, COLLECTIONS) as storage:
        deadly(storage, kill_at)
        await live(storage, user_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
