"""API keys: made, kept, presented, remembered, rotated, revoked (contracts/leaderboard.md, "Keys")."""

import asyncio
import base64
import logging
import re
import string
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.server import bcrypt_pool, remembered
from homeport.server.api_keys import (
    API_KEYS,
    KEYS,
    SCOPES,
    USERS,
    ApiKeys,
    InvalidScopes,
    InvalidUsername,
    Key,
    NoSuchKey,
    UsernameTaken,
    bearer,
)
from homeport.server.clock import MovableClock
from homeport.server.errors import ServiceUnavailable
from homeport.server.operation import Api
from homeport.server.ratelimit import per_caller
from homeport.server.remembered import REMEMBERED_FOR
from homeport.server.request import ApiRequest
from homeport.storage import Query, Storage, make_storage
from homeport.storage.memory import MemoryStorage
from homeport.storage.remote import RemoteStorage
from homeport.storage.remote.serving import serve_storage
from homeport.storage.times import SECOND

from .conftest import NOON, Served, Start

UNKNOWN = "ccusage_live_" + "A" * 60
PART = 8
"""So many characters of a key are too many to be seen."""


@pytest.fixture(autouse=True)
def cheap_bcrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that take a millisecond; `test_at_rest` has the real cost."""
    monkeypatch.setattr(bcrypt_pool, "COST", 4)


@pytest.fixture(params=["memory", "file", "sqlite"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    """A store on each back end."""
    url = "memory:" if request.param == "memory" else f"{request.param}:{tmp_path / 'store'}"
    async with make_storage(url) as storage:
        await storage.declare(KEYS, USERS)
        yield storage


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock(NOON)


@pytest.fixture
async def keys(storage: Storage, clock: MovableClock) -> AsyncIterator[ApiKeys]:
    keys = ApiKeys(storage, clock)
    yield keys
    keys.close()


class Checks:
    """The bcrypt checks that were made. They wait for `released`."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self._lock = threading.Lock()

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        with self._lock:
            self.count += 1
        self.begun.set()
        assert self.released.wait(20)
        return checkpw(password, hashed)

    def hold(self) -> None:
        """What is checked from now on waits."""
        self.begun.clear()
        self.released.clear()

    async def one_begins(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 20)


checkpw = bcrypt.checkpw


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    checks = Checks()
    monkeypatch.setattr(bcrypt, "checkpw", checks)
    yield checks
    checks.released.set()


def wrong(text: str) -> str:
    """A key with the lookup part of another, and a wrong secret."""
    return text[:-1] + ("B" if text[-1] == "A" else "A")


def parts(text: str) -> set[str]:
    text = text.removeprefix("ccusage_live_")
    return {text[at : at + PART] for at in range(len(text) - PART + 1)}


# Made


async def test_format(keys: ApiKeys) -> None:
    texts = [(await keys.create("alice"))[1] for _ in range(5)]
    assert len(set(texts)) == 5
    for text in texts:
        assert re.fullmatch(r"ccusage_live_[A-Za-z0-9_-]{60}", text)
        assert len(base64.urlsafe_b64decode(text.removeprefix("ccusage_live_"))) == 45
    assert 6 * 44 >= 256  # the bits of the part that only a hash is kept of


async def test_at_rest(storage: Storage, clock: MovableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    keys = ApiKeys(storage, clock)
    _, text = await keys.create("alice")
    (record,) = (await storage.find(Query(KEYS))).records
    hashed = record.decode()["hash"].encode()
    assert hashed.startswith(b"$2b$10$")
    assert bcrypt.checkpw(text[-44:].encode(), hashed)
    kept = record.id.encode() + record.document
    kept += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [part for part in parts(text) if part.encode() in kept]
    keys.close()


async def test_a_key_is_of_its_user(keys: ApiKeys) -> None:
    key, text = await keys.create("alice")
    assert key == Key(key.id, "alice", frozenset(("sync", "read")), NOON)
    assert await keys.verify(text) == key
    assert not parts(text) & {key.id[at : at + PART] for at in range(9)}
    other, _ = await keys.create("alice", ["collections:write", "read", "read"])
    assert other.scopes == {"collections:write", "read"}
    assert other.id != key.id


async def test_nothing_shows_a_key(keys: ApiKeys, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        key, text = await keys.create("alice")
        await keys.verify(text)
        _, rotated = await keys.rotate(key.id)
        await keys.verify(wrong(rotated))
    seen = f"{caplog.text} {key!r} {keys!r} {await keys.list()!r}"
    assert not (parts(text) | parts(rotated)) & {seen[at : at + PART] for at in range(len(seen))}
    assert "$2b$" not in seen


@pytest.mark.parametrize("username", ["abc", "a" * 50, "A-b_9", "---", "ABC"])
async def test_usernames(keys: ApiKeys, username: str) -> None:
    assert (await keys.create(username))[0].username == username
    assert (await keys.issue(f"{username[:47]}-2", "slack:T1/U1"))[0].username == f"{username[:47]}-2"


@pytest.mark.parametrize("username", ["", "ab", "a" * 51, "al ice", "alice\n", "álice", "٣٣٣", "a.b", "abc\0", "../x"])
async def test_no_usernames(keys: ApiKeys, username: str) -> None:
    with pytest.raises(InvalidUsername, match=r"A username is 3 to 50 of A-Z, a-z, 0-9, _ and -"):
        await keys.create(username)
    with pytest.raises(InvalidUsername):
        await keys.issue(username, "slack:T1/U1")
    assert await keys.list() == []


@pytest.mark.parametrize("scopes", [(), ("synk",), ("sync", "Read"), ("",)])
async def test_no_scopes(keys: ApiKeys, scopes: Sequence[str]) -> None:
    with pytest.raises(
        InvalidScopes, match="Scopes are one or more of sync, read, collections:read, collections:write"
    ):
        await keys.create("alice", scopes)
    with pytest.raises(InvalidScopes):
        bearer("read", "synk")


async def test_names_that_differ_only_in_case(keys: ApiKeys) -> None:
    key, _ = await keys.create("Alice")
    with pytest.raises(UsernameTaken, match="aLice differs from the user Alice only in case"):
        await keys.create("aLice")
    await keys.revoke(key.id)
    with pytest.raises(UsernameTaken):  # what is kept of the user is nobody else's
        await keys.create("alice")
    assert (await keys.create("Alice"))[0].username == "Alice"


async def test_a_name_is_issued_or_made(keys: ApiKeys) -> None:
    """Whichever comes first; who comes second by Slack is refused."""
    for number in range(8):
        name = f"name-{number}"
        made, issued = await asyncio.gather(
            keys.create(name), keys.issue(name, f"slack:T1/U{number}"), return_exceptions=True
        )
        assert not isinstance(made, BaseException)
        if isinstance(issued, BaseException):
            assert isinstance(issued, UsernameTaken)
        else:
            assert await keys.verify(issued[1])
        assert await keys.verify(made[1]) == made[0]


async def test_two_servers_do_not_both_give_out_a_name(tmp_path: Path, clock: MovableClock) -> None:
    path = tmp_path / "store"
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(make_storage(f"sqlite:{path}"))
        await owner.declare(KEYS, USERS)
        await stack.enter_async_context(serve_storage(owner, path))
        other = await stack.enter_async_context(RemoteStorage(path))
        await other.declare(KEYS, USERS)
        here, there = ApiKeys(owner, clock), ApiKeys(other, clock)
        for number in range(8):
            names = [f"name-{number}", f"NAME-{number}"]
            done = await asyncio.gather(here.create(names[0]), there.create(names[1]), return_exceptions=True)
            assert sorted(isinstance(result, UsernameTaken) for result in done) == [False, True], done
            issued = await asyncio.gather(
                here.issue(f"slack-{number}", "slack:T1/U1"),
                there.issue(f"other-{number}", "slack:T1/U1"),
            )
            works = [await keys.verify(text) for keys, (_, text, _) in zip((there, here), issued, strict=True)]
            assert sorted(key is None for key in works) == [False, True]
        here.close()
        there.close()


# Presented


@pytest.mark.parametrize(
    "presented",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("ccusage_live_", id="prefix"),
        pytest.param("ccusage_live_" + "A" * 59, id="short"),
        pytest.param("ccusage_live_" + "A" * 61, id="long"),
        pytest.param("ccusage_live_" + "A" * 100_000, id="very long"),
        pytest.param("ccusage_test_" + "A" * 60, id="another prefix"),
        pytest.param("CCUSAGE_LIVE_" + "A" * 60, id="capitals"),
        pytest.param("ccusage_live_" + "A" * 59 + "=", id="padding"),
        pytest.param("ccusage_live_" + "A" * 59 + "+", id="plain base64"),
        pytest.param("ccusage_live_" + "A" * 59 + "\n", id="line break"),
        pytest.param("ccusage_live_" + "A" * 59 + "\0", id="NUL"),
        pytest.param("ccusage_live_" + "é" * 60, id="not ASCII"),
        pytest.param("ccusage_live_" + "\udcff" * 60, id="not UTF-8"),
        pytest.param(UNKNOWN, id="unknown"),
    ],
)
async def test_what_nobody_has_costs_no_bcrypt(keys: ApiKeys, checks: Checks, presented: str | None) -> None:
    await keys.create("alice")
    assert await keys.verify(presented) is None
    assert checks.count == 0


async def test_near_misses(keys: ApiKeys, checks: Checks) -> None:
    """A key with one character changed is none, wherever that is."""
    key, text = await keys.create("alice")
    for at in range(13, len(text), 7):
        changed = text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1 :]
        assert await keys.verify(changed) is None
    assert checks.count == len(range(13 + 16 + 5, len(text), 7))  # of wrong secrets
    assert await keys.verify(text) == key


ALPHABET = string.ascii_letters + string.digits + "_-"


@given(
    st.one_of(
        st.none(),
        st.text(),
        st.text(st.characters(exclude_categories=())).map("ccusage_live_".__add__),
        st.text(ALPHABET, min_size=59, max_size=61).map("ccusage_live_".__add__),
    )
)
def test_nothing_but_a_key_is_one(presented: str | None) -> None:
    async def verify() -> Key | None:
        async with MemoryStorage() as storage:
            await storage.declare(KEYS, USERS)
            keys = ApiKeys(storage, MovableClock(NOON))
            return await keys.verify(presented)

    assert asyncio.run(verify()) is None


# Remembered


async def test_a_busy_client_pays_bcrypt_once(keys: ApiKeys, checks: Checks) -> None:
    key, text = await keys.create("alice")
    assert set(await asyncio.gather(*(keys.verify(text) for _ in range(25)))) == {key}
    for _ in range(25):
        assert await keys.verify(text) == key
    assert checks.count == 1


async def test_a_wrong_secret_is_checked_each_time(keys: ApiKeys, checks: Checks) -> None:
    _, text = await keys.create("alice")
    await keys.verify(text)
    for _ in range(3):
        assert await keys.verify(wrong(text)) is None
    assert checks.count == 4


async def test_for_a_bounded_time(keys: ApiKeys, checks: Checks, clock: MovableClock) -> None:
    key, text = await keys.create("alice")
    for now, count in [(0, 1), (REMEMBERED_FOR - 1, 1), (REMEMBERED_FOR, 2), (2 * REMEMBERED_FOR - 1, 2)]:
        clock.move_to(NOON + now)
        assert await keys.verify(text) == key
        assert checks.count == count


async def test_in_bounded_memory(keys: ApiKeys, checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that was not presented for longest is forgotten."""
    monkeypatch.setattr(remembered, "MAX_REMEMBERED", 2)
    one, two, three = [(await keys.create("alice"))[1] for _ in range(3)]
    for text, count in [(one, 1), (two, 2), (one, 2), (three, 3), (one, 3), (three, 3), (two, 4), (one, 5)]:
        assert await keys.verify(text) is not None
        assert checks.count == count


# Rotated and revoked


async def test_rotation(keys: ApiKeys, clock: MovableClock) -> None:
    old, old_text = await keys.create("alice", ["read"])
    beside, beside_text = await keys.create("alice")
    await keys.verify(old_text)
    clock.advance(60)
    new, new_text = await keys.rotate(old.id)
    assert new == old._replace(created_at=NOON + 60 * SECOND)
    assert not parts(old_text) & parts(new_text)
    assert await keys.verify(old_text) is None
    assert await keys.verify(new_text) == new
    assert await keys.verify(beside_text) == beside
    assert await keys.list() == [beside, new]


async def test_a_rotation_is_one_commit(keys: ApiKeys, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = await keys.create("alice")
    commits, commit = [], storage.commit

    async def counted(writes: Any) -> Any:
        commits.append(len(writes))
        return await commit(writes)

    monkeypatch.setattr(storage, "commit", counted)
    await keys.rotate(key.id)
    await keys.rotate_user("alice")
    assert commits == [2, 2]


async def test_a_users_keys_become_one(keys: ApiKeys, clock: MovableClock) -> None:
    first, first_text = await keys.create("alice", ["read"])
    clock.advance(1)
    _, second_text = await keys.create("alice", ["collections:write"])
    await keys.create("bob")
    clock.advance(1)
    key, text = await keys.rotate_user("alice")
    assert key == Key(first.id, "alice", frozenset(("read", "collections:write")), NOON + 2 * SECOND)
    assert [await keys.verify(text) for text in (first_text, second_text, text)] == [None, None, key]
    assert [known.username for known in await keys.list()] == ["alice", "bob"]
    assert await keys.list("alice") == [key]


async def test_rotations_at_the_same_time(keys: ApiKeys) -> None:
    key, old = await keys.create("alice")
    rotated = await asyncio.gather(*(keys.rotate(key.id) for _ in range(4)), keys.rotate_user("alice"))
    assert await keys.verify(old) is None
    assert [await keys.verify(text) is None for _, text in rotated].count(False) == 1


async def test_revoked(keys: ApiKeys) -> None:
    key, text = await keys.create("alice")
    other, other_text = await keys.create("alice")
    await keys.verify(text)
    assert await keys.revoke(key.id)
    assert await keys.verify(text) is None
    assert await keys.verify(other_text) == other
    assert await keys.list() == [other]
    assert not await keys.revoke(key.id)
    with pytest.raises(NoSuchKey):
        await keys.rotate(key.id)


@pytest.mark.parametrize("name", ["", "x", "0123456789abcdef", "nobody", "a\0b", "\udcff", "a" * 5000])
async def test_what_there_is_not(keys: ApiKeys, name: str) -> None:
    assert not await keys.revoke(name)
    with pytest.raises(NoSuchKey):
        await keys.rotate(name)
    with pytest.raises(NoSuchKey):
        await keys.rotate_user(name)


async def test_another_process_revokes(tmp_path: Path, clock: MovableClock, checks: Checks) -> None:
    path = tmp_path / "store"
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(make_storage(f"file:{path}"))
        await owner.declare(KEYS, USERS)
        await stack.enter_async_context(serve_storage(owner, path))
        other = await stack.enter_async_context(RemoteStorage(path))
        await other.declare(KEYS, USERS)
        here, there = ApiKeys(owner, clock), ApiKeys(other, clock)
        key, text = await there.create("alice")
        assert await here.verify(text) == key
        rotated, new = await there.rotate(key.id)
        assert [await here.verify(text), await here.verify(new)] == [None, rotated]
        assert await there.revoke(key.id)
        assert await here.verify(new) is None
        assert checks.count == 2
        here.close()
        there.close()


async def test_revoked_while_it_is_checked(keys: ApiKeys, checks: Checks) -> None:
    key, text = await keys.create("alice")
    checks.hold()
    verifying = asyncio.create_task(keys.verify(text))
    await checks.one_begins()
    assert await keys.revoke(key.id)
    checks.released.set()
    assert await verifying is None


# Off the loop, and bounded


async def test_who_is_known_does_not_wait_for_checks(keys: ApiKeys, checks: Checks) -> None:
    key, text = await keys.create("alice")
    await keys.verify(text)
    checks.hold()
    guess = asyncio.create_task(keys.verify(wrong(text)))
    await checks.one_begins()
    assert await asyncio.wait_for(keys.verify(text), 5) == key
    assert await asyncio.wait_for(keys.verify(UNKNOWN), 5) is None
    assert not guess.done()
    checks.released.set()
    assert await guess is None


async def test_a_client_that_goes_away_takes_no_check_with_it(keys: ApiKeys, checks: Checks) -> None:
    key, text = await keys.create("alice")
    checks.hold()
    leaving, staying = (asyncio.create_task(keys.verify(text)) for _ in range(2))
    await checks.one_begins()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    checks.released.set()
    assert await staying == key
    assert checks.count == 1


async def test_guesses_at_one_key_leave_room_for_others(keys: ApiKeys, checks: Checks) -> None:
    _, known = await keys.create("alice")
    other, other_text = await keys.create("bob")
    checks.hold()
    guesses = [known[:-3] + f"{number:03}" for number in range(100)]
    waiting = [asyncio.create_task(keys.verify(guess)) for guess in guesses]
    await checks.one_begins()
    first = asyncio.create_task(keys.verify(other_text))
    refused, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    while len(refused) < 96:
        done, _ = await asyncio.wait(set(waiting) - refused, return_when=asyncio.FIRST_COMPLETED)
        refused |= done
    for task in refused:
        error = task.exception()
        assert isinstance(error, ServiceUnavailable)
        assert error.headers == {"Retry-After": "1"}
    checks.released.set()
    assert await first == other
    assert [await task for task in waiting if task not in refused] == [None] * bcrypt_pool.MAX_GUESSES
    assert checks.count == bcrypt_pool.MAX_GUESSES + 1
    assert await keys.verify(known) is not None


async def test_checks_are_bounded(keys: ApiKeys, checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(await keys.create("alice"))[1] for _ in range(3)]
    monkeypatch.setattr(bcrypt_pool, "MAX_PENDING", 2)
    checks.hold()
    waiting = [asyncio.create_task(keys.verify(text)) for text in texts[:2]]
    await checks.one_begins()
    with pytest.raises(ServiceUnavailable, match="Too many keys are being checked; try again"):
        await keys.verify(texts[2])
    with pytest.raises(ServiceUnavailable):
        await keys.create("alice")
    checks.released.set()
    assert None not in await asyncio.gather(*waiting)
    assert await keys.verify(texts[2]) is not None


# Issued to somebody who is known elsewhere


async def test_issued_and_issued_again(keys: ApiKeys) -> None:
    key, text, again = await keys.issue("Alice", "slack:T1/U1")
    assert (key.username, key.scopes, again) == ("Alice", frozenset({"sync", "read"}), False)
    made, made_text = await keys.create("Alice", SCOPES)
    new, new_text, again = await keys.issue("Alice", "slack:T1/U1")
    assert (new, again) == (key, True)
    assert [await keys.verify(t) for t in (text, new_text, made_text)] == [None, key, made]


async def test_who_has_a_name_keeps_it(keys: ApiKeys) -> None:
    _, old, _ = await keys.issue("alice", "slack:T1/U1")
    key, new, again = await keys.issue("alice-now-bob!", "slack:T1/U1")
    assert (key.username, again) == ("alice", True)
    assert [await keys.verify(old), await keys.verify(new)] == [None, key]


async def test_after_a_revocation_and_a_rotation(keys: ApiKeys) -> None:
    key, _, _ = await keys.issue("alice", "slack:T1/U1")
    await keys.revoke(key.id)
    key, _, again = await keys.issue("alice", "slack:T1/U1")
    assert not again
    await keys.create("alice", ["collections:read"])
    _, rotated = await keys.rotate_user("alice")
    _, _, again = await keys.issue("alice", "slack:T1/U1")
    assert again
    assert await keys.verify(rotated) is None
    assert len(await keys.list()) == 1


@pytest.mark.parametrize("name", ["alice", "ALICE", "bob", "Bob"])
async def test_a_name_that_anybody_else_has(keys: ApiKeys, name: str) -> None:
    await keys.create("alice")
    await keys.issue("bob", "slack:T1/U1")
    for identity in ("slack:T1/U2", "slack:T2/U1"):
        with pytest.raises(UsernameTaken, match=f"The username {name} is taken"):
            await keys.issue(name, identity)
    assert len(await keys.list()) == 2


# In requests

LIMIT = 3


@pytest.fixture
async def served(start: Start) -> Served:
    """An API that takes keys."""
    api = Api("keyed")
    limits = (per_caller("keyed", lambda _: f"{LIMIT}/hour", headers=True),)

    @api.get("/sync", auth=bearer("sync", refusal="API key does not have permission to sync data"), limits=limits)
    async def sync(request: ApiRequest) -> object:
        return {"id": request.caller.id, "username": request.username}

    @api.get("/both", auth=bearer("read", "collections:read"))
    async def both(_: ApiRequest) -> object:
        return {}

    @api.get("/any", auth=bearer())
    async def any_key(_: ApiRequest) -> object:
        return {}

    return await start([api], {"server.trusted_proxies": ["127.0.0.1"]})


def presenting(text: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer {text}"}}


async def test_a_key_lets_in(served: Served) -> None:
    key, text = await served.app[API_KEYS].create("alice")
    answer = await served.get("/sync", **presenting(text))
    assert (answer.status, answer.json) == (200, {"id": key.id, "username": "alice"})
    assert (await served.get("/any", **presenting(text))).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"X-API-Key": "KEY"}, id="X-API-Key"),
        pytest.param({"Authorization": "KEY"}, id="no scheme"),
        pytest.param({"Authorization": "Basic KEY"}, id="another scheme"),
        pytest.param({"Authorization": "Bearer"}, id="nothing"),
        pytest.param({"Authorization": "Bearer KEYx"}, id="long"),
        pytest.param({"Authorization": "Bearer KEY KEY"}, id="twice"),
        pytest.param({"Authorization": f"Bearer {UNKNOWN}"}, id="unknown"),
        pytest.param({"Authorization": "Bearer é\U0001f600"}, id="not ASCII"),
        pytest.param({"Authorization": f"Bearer {'x' * 7000}"}, id="very long"),
    ],
)
async def test_nothing_else_does(served: Served, headers: dict[str, str]) -> None:
    _, text = await served.app[API_KEYS].create("alice")
    headers = {name: value.replace("KEY", text) for name, value in headers.items()}
    answer = await served.get("/sync", headers=headers)
    assert (answer.status, answer.json["detail"]) == (401, "Invalid or missing API key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "X-RateLimit-Limit" not in answer.headers


@pytest.mark.parametrize(
    "value", [b"Bearer \xff\xfe", b"Bearer ccusage_live_" + b"\xff" * 60, b"\xc3\x28", b"Bearer \t"]
)
async def test_bytes_that_are_no_text(served: Served, value: bytes) -> None:
    head = b"GET /any HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
    assert (await served.raw(head)).startswith(b"HTTP/1.1 401 ")


async def test_a_wrong_secret_is_answered_as_an_unknown_key(served: Served) -> None:
    _, text = await served.app[API_KEYS].create("alice")
    one, other = [await served.get("/sync", **presenting(key)) for key in (wrong(text), UNKNOWN)]
    assert one.content == other.content
    assert {*one.headers} == {*other.headers}


async def test_scopes(served: Served) -> None:
    keys = served.app[API_KEYS]
    for path, scopes, status in [
        ("/sync", ["sync"], 200),
        ("/sync", ["read", "collections:read", "collections:write"], 403),
        ("/both", ["read", "collections:read"], 200),
        ("/both", ["read"], 403),
        ("/both", ["collections:read"], 403),
        ("/any", ["collections:write"], 200),
    ]:
        _, text = await keys.create("alice", scopes)
        answer = await served.get(path, **presenting(text))
        assert answer.status == status, (path, scopes)
        if status == 403:
            refusal = "to sync data" if path == "/sync" else "for this"
            assert answer.json["detail"] == f"API key does not have permission {refusal}"


@pytest.mark.parametrize(("scope", "status"), [("sync", 200), ("read", 403)])
async def test_every_authenticated_request_counts(served: Served, scope: str, status: int) -> None:
    _, text = await served.app[API_KEYS].create("alice", [scope])
    reset = str((NOON + 3600 * SECOND) // SECOND)
    for number in range(1, LIMIT + 3):
        answer = await served.get("/sync", **presenting(text))
        assert answer.status == (status if number <= LIMIT else 429)
        figures = [answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
        assert figures == [str(LIMIT), str(max(0, LIMIT - number)), reset]
    assert answer.headers["Retry-After"] == "3600"
    _, other = await served.app[API_KEYS].create("alice", ["sync"])
    assert (await served.get("/sync", **presenting(other))).status == 200


async def test_guessing_is_limited(served: Served) -> None:
    _, text = await served.app[API_KEYS].create("alice")
    there = {"X-Forwarded-For": "198.51.100.7"}
    for _ in range(10):
        assert (await served.get("/any", headers=there | {"Authorization": f"Bearer {UNKNOWN}"})).status == 401
    assert (await served.get("/any", headers=there | {"Authorization": f"Bearer {text}"})).status == 429
    assert (await served.get("/any", **presenting(text))).status == 200


async def test_the_log_has_the_user_and_no_key(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    api = Api("keyed")

    @api.get("/fail", auth=bearer())
    async def fail(request: ApiRequest) -> object:
        raise RuntimeError(repr(request.caller))

    served = await start([api])
    _, text = await served.app[API_KEYS].create("alice")
    with caplog.at_level(logging.DEBUG):
        for presented in (text, wrong(text)):
            await served.get("/fail", **presenting(presented))
    await served.app.cleanup()  # writes what is left of the log
    log = served.stderr.getvalue() + caplog.text
    assert '"username":"alice"' in log
    assert "RuntimeError: Key(" in log
    assert not parts(text) & {log[at : at + PART] for at in range(len(log))}
