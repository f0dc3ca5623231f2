"""storage/locks.py: a lock per key, and attempts that are made again."""

import asyncio
from collections.abc import Callable

import pytest

from homeport.storage import Conflict, Storage, StorageUnavailable, make_storage, retry
from homeport.storage.locks import KeyedLocks
from homeport.storage.retry import MAX_ATTEMPTS


async def settled() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Holders:
    """Tasks that hold keys until they are let go; ``log`` says when each had them."""

    def __init__(self) -> None:
        self.locks = KeyedLocks()
        self.log: list[str] = []
        self.go: dict[str, asyncio.Event] = {}

    def start(self, name: str, *keys: str) -> asyncio.Task[None]:
        self.go[name] = asyncio.Event()
        return asyncio.create_task(self._hold(name, keys))

    async def _hold(self, name: str, keys: tuple[str, ...]) -> None:
        async with self.locks.hold(keys):
            self.log.append(name)
            await self.go[name].wait()


async def test_one_holder_of_a_key_at_a_time_in_order() -> None:
    holders = Holders()
    tasks = [holders.start(name, "key") for name in "abc"]
    for held in ["a"], ["a", "b"], ["a", "b", "c"]:
        await settled()
        assert holders.log == held
        holders.go[held[-1]].set()
    await asyncio.gather(*tasks)


async def test_other_keys_do_not_wait() -> None:
    holders = Holders()
    tasks = [holders.start("a", "1", "2"), holders.start("b", "3"), holders.start("c"), holders.start("d", "2")]
    await settled()
    assert holders.log == ["a", "b", "c"]
    for go in holders.go.values():
        go.set()
    await asyncio.gather(*tasks)
    assert holders.log == ["a", "b", "c", "d"]


async def test_keys_in_any_order_do_not_wait_for_each_other() -> None:
    locks, done = KeyedLocks(), 0

    async def hold(*keys: str) -> None:
        nonlocal done
        async with locks.hold(keys):
            await asyncio.sleep(0)
            done += 1

    keys = ["1", "2", "3"]
    turns = [[*keys[n:], *keys[:n]][:: 1 if m else -1] for n in range(3) for m in range(2)]
    async with asyncio.timeout(60):
        await asyncio.gather(*[hold(*turn) for turn in turns * 20])
    assert done == 120


async def test_a_key_given_twice_is_held_once() -> None:
    locks = KeyedLocks()
    async with asyncio.timeout(60), locks.hold(["a", "a"]):
        pass


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_who_is_cancelled_while_waiting_leaves_nothing_locked(place: int) -> None:
    holders = Holders()
    first = holders.start("first", "key")
    waiting = [holders.start(name, "before", "key") for name in "abc"]
    await settled()
    waiting[place].cancel()
    for go in holders.go.values():
        go.set()
    async with asyncio.timeout(60):
        await asyncio.gather(first, *waiting, return_exceptions=True)
        assert holders.log == ["first", *[name for at, name in enumerate("abc") if at != place]]
        async with holders.locks.hold(["before", "key"]):
            pass


async def test_who_is_cancelled_just_as_it_is_handed_the_lock_hands_it_on() -> None:
    holders = Holders()
    tasks = [holders.start(name, "key") for name in "abc"]
    await settled()
    holders.locks.leave("key")  # b's turn is told, and b has not run since
    tasks[1].cancel()
    await settled()
    assert holders.log == ["a", "c"]
    await holders.locks.take("other")
    for go in holders.go.values():
        go.set()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_error_lets_go_and_nothing_stays() -> None:
    locks = KeyedLocks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold(["a", "b"]):
            raise ZeroDivisionError
    async with asyncio.timeout(60), locks.hold(["b", "a"]):
        pass
    assert not any(vars(locks).values())  # its dicts: a lock exists only while somebody holds it or waits


# retry


def failing(times: int, error: Callable[[], Exception]) -> Callable[[], asyncio.Future[int]]:
    """An attempt that fails so many times, then answers how often it was made."""
    made = 0

    def attempt() -> asyncio.Future[int]:
        nonlocal made
        made += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if made <= times:
            future.set_exception(error())
        else:
            future.set_result(made)
        return future

    return attempt


def conflict() -> Conflict:
    return Conflict(0, "notes", "a", "version", 7)


@pytest.fixture
def storage() -> Storage:
    return make_storage("memory:")


@pytest.mark.parametrize("times", [0, 1, MAX_ATTEMPTS - 1])
async def test_a_conflict_is_tried_again(storage: Storage, times: int) -> None:
    assert await retry(storage, ["a"], failing(times, conflict)) == times + 1


async def test_the_last_conflict_is_raised(storage: Storage) -> None:
    attempt = failing(MAX_ATTEMPTS, conflict)
    with pytest.raises(Conflict):
        await retry(storage, ["a"], attempt)
    assert await attempt() == MAX_ATTEMPTS + 1


async def test_nothing_else_is_tried_again(storage: Storage) -> None:
    """A commit whose answer was lost may have happened."""
    attempt = failing(1, lambda: StorageUnavailable("lost"))
    with pytest.raises(StorageUnavailable):
        await retry(storage, ["a"], attempt)
    assert await attempt() == 2


async def test_attempts_on_one_key_take_turns(storage: Storage) -> None:
    inside = 0

    async def attempt() -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0)
        inside -= 1

    await asyncio.gather(*[retry(storage, ["shared", f"{n}"], attempt) for n in range(20)])


async def test_a_key_is_free_after_an_attempt_that_failed(storage: Storage) -> None:
    with pytest.raises(StorageUnavailable):
        await retry(storage, ["a"], failing(1, lambda: StorageUnavailable("lost")))
    async with asyncio.timeout(60):
        assert await retry(storage, ["a"], failing(0, conflict)) == 1
