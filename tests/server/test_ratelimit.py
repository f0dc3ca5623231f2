"""Rate limits: fixed windows from a key's first request, on the server's clock."""

import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from homeport.server.clock import MovableClock
from homeport.server.errors import RateLimited
from homeport.server.ratelimit import MAX_WINDOWS, Limiter, Rate

BEGIN = 1_750_000_000_000_000
SECOND = 1_000_000
RATE = Rate.of("things", "3/minute")
PROXIED = {"server.trusted_proxies": ["127.0.0.1"]}


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock(BEGIN)


def allowed(limiter: Limiter, key: str, rate: Rate = RATE) -> bool:
    try:
        limiter.hit(rate, key)
    except RateLimited:
        return False
    return True


def from_address(address: str) -> dict[str, dict[str, str]]:
    return {"headers": {"X-Forwarded-For": address}}


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [
        ("600/hour", 600, 3600),
        ("1200/minute", 1200, 60),
        ("5 per 2 minutes", 5, 120),
        ("10/second", 10, 1),
        ("1/day", 1, 86400),
    ],
)
def test_rates(clock: MovableClock, text: str, amount: int, seconds: int) -> None:
    limiter, rate = Limiter(clock), Rate.of("x", text)
    assert [allowed(limiter, "a", rate) for _ in range(amount + 1)] == [True] * amount + [False]
    assert limiter.headers(rate, "a")["X-RateLimit-Reset"] == str(BEGIN // SECOND + seconds)


@pytest.mark.parametrize("text", ["", "many", "1/parsec", "-1/hour"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="parse"):
        Rate.of("x", text)


def test_the_edges_of_a_window(clock: MovableClock) -> None:
    limiter = Limiter(clock)
    assert allowed(limiter, "a")
    clock.move_to(BEGIN + 59 * SECOND)
    assert [allowed(limiter, "a") for _ in range(3)] == [True, True, False]
    with pytest.raises(RateLimited) as refusal:
        limiter.hit(RATE, "a")
    assert (refusal.value.retry_after, refusal.value.headers["Retry-After"]) == (1, "1")
    clock.move_to(BEGIN + 60 * SECOND - 1)
    with pytest.raises(RateLimited, match="Try again in 1 seconds"):
        limiter.hit(RATE, "a")
    clock.move_to(BEGIN + 60 * SECOND)
    assert [allowed(limiter, "a") for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("jump", [-365 * 86400, -1, 60, 365 * 86400])
def test_a_clock_that_is_set_keeps_nobody_out(clock: MovableClock, jump: int) -> None:
    limiter = Limiter(clock)
    assert [allowed(limiter, "a") for _ in range(4)] == [True, True, True, False]
    for _ in range(10):
        limiter.guessed("a")
    clock.move_to(BEGIN + jump * SECOND)
    limiter.may_guess("a")
    assert [allowed(limiter, "a") for _ in range(4)] == [True, True, True, False]
    with pytest.raises(RateLimited) as refusal:
        limiter.hit(RATE, "a")
    assert refusal.value.retry_after == 60


def test_keys_and_names_are_apart(clock: MovableClock) -> None:
    limiter = Limiter(clock)
    assert [allowed(limiter, "a") for _ in range(4)] == [True, True, True, False]
    assert allowed(limiter, "b")
    assert allowed(limiter, "a", RATE._replace(name="others"))


def test_headers(clock: MovableClock) -> None:
    limiter = Limiter(clock)
    end = str(BEGIN // SECOND + 60)
    seen = []
    for _ in range(4):
        allowed(limiter, "a")
        seen.append(limiter.headers(RATE, "a"))
    assert [h["X-RateLimit-Remaining"] for h in seen] == ["2", "1", "0", "0"]
    assert {(h["X-RateLimit-Limit"], h["X-RateLimit-Reset"]) for h in seen} == {("3", end)}


def test_memory_is_bounded_and_a_flood_evicts_itself(clock: MovableClock) -> None:
    limiter = Limiter(clock, size=1000)
    limited = [f"limited-{number}" for number in range(20)]
    for key in limited:
        for _ in range(4):
            allowed(limiter, key)
    for number in range(20_000):
        allowed(limiter, f"flood-{number}")
        assert len(limiter) <= 1000
    assert not any(allowed(limiter, key) for key in limited)


@pytest.mark.slow
def test_memory_is_bounded_under_a_million_keys(clock: MovableClock) -> None:
    limiter = Limiter(clock)
    for number in range(MAX_WINDOWS):
        allowed(limiter, f"2001:db8:{number:x}::")
    before = _resident()
    for number in range(MAX_WINDOWS, 1_000_000):
        allowed(limiter, f"2001:db8:{number:x}::")
    assert len(limiter) <= MAX_WINDOWS
    assert _resident() - before < 8 << 20


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_seconds_to_wait_are_exact_at_any_time() -> None:
    for micros in range(0, SECOND, 9_973):
        clock = MovableClock(BEGIN + micros)
        limiter = Limiter(clock)
        for _ in range(3):
            limiter.hit(RATE, "a")
        with pytest.raises(RateLimited) as refusal:
            limiter.hit(RATE, "a")
        assert refusal.value.retry_after == 60


def test_what_has_expired_is_forgotten(clock: MovableClock) -> None:
    limiter = Limiter(clock, size=1000)
    for number in range(1000):
        allowed(limiter, f"old-{number}")
    clock.advance(61)
    for number in range(300):
        allowed(limiter, f"new-{number}")
    assert len(limiter) <= 320


class AgainstAModel(RuleBasedStateMachine):
    """Windows as a list of requests tells them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = MovableClock(BEGIN)
        self.limiter = Limiter(self.clock)
        self.windows: dict[str, tuple[int, int]] = {}

    @rule(key=st.sampled_from("abc"))
    def hit(self, key: str) -> None:
        begin, count = self.windows.get(key, (0, 0))
        if self.clock.now() >= begin + RATE.item.get_expiry() * SECOND:
            begin, count = self.clock.now(), 0
        assert allowed(self.limiter, key) == (count < RATE.item.amount)
        self.windows[key] = begin, min(count + 1, RATE.item.amount)

    @precondition(lambda self: self.windows)
    @rule(data=st.data())
    def to_an_edge(self, data: st.DataObject) -> None:
        begin, _ = self.windows[data.draw(st.sampled_from(sorted(self.windows)))]
        edge = begin + RATE.item.get_expiry() * SECOND + data.draw(st.integers(-1, 1))
        self.clock.move_to(max(edge, self.clock.now()))

    @rule(seconds=st.integers(0, 100))
    def later(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def small(self) -> None:
        assert len(self.limiter) <= 3


TestAgainstAModel = AgainstAModel.TestCase


# Through an application


async def test_address_limit(start: Any) -> None:
    toy = await start(settings=PROXIED)
    statuses = [(await toy.get("/toy/limited", **from_address("192.0.2.1"))).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = await toy.get("/toy/limited", **from_address("192.0.2.1"))
    assert (refused.headers["Retry-After"], refused.json["detail"]) == (
        "60",
        "Rate limit exceeded. Try again in 60 seconds",
    )
    assert (await toy.get("/toy/limited", **from_address("192.0.2.2"))).status == 200
    assert (await toy("HEAD", "/toy/limited", **from_address("192.0.2.1"))).status == 429
    toy.clock.advance(60)
    assert (await toy.get("/toy/limited", **from_address("192.0.2.1"))).status == 200


async def test_ipv6_counts_by_network(start: Any) -> None:
    toy = await start(settings=PROXIED)
    addresses = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:8000::", "2001:db8:0:1::1"]
    assert [(await toy.get("/toy/limited", **from_address(a))).status for a in addresses] == [200, 200, 429, 200]


async def test_loopback_callers_are_not_counted_by_address(toy: Any) -> None:
    assert {(await toy.get("/toy/limited")).status for _ in range(5)} == {200}
    through_a_proxy = {"headers": {"X-Forwarded-For": "192.0.2.1"}}  # that nobody trusts: still not a loopback caller
    assert [(await toy.get("/toy/limited", **through_a_proxy)).status for _ in range(3)] == [200, 200, 429]


async def test_key_limit(toy: Any) -> None:
    """Loopback callers too; every authenticated answer says how the key stands."""
    secret = {"headers": {"Authorization": "Bearer correct horse"}}
    answers = [await toy.get("/toy/keyed", **secret) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
    assert {answer.headers["X-RateLimit-Reset"] for answer in answers} == {str(toy.clock.now() // SECOND + 60)}
    stranger = await toy.get("/toy/keyed")
    assert (stranger.status, "X-RateLimit-Limit" in stranger.headers) == (401, False)


async def test_limit_by_a_key_in_the_body(toy: Any) -> None:
    """Counted once the body is parsed and valid; loopback callers too."""
    assert (await toy.post("/toy/named", {"name": ""})).status == 400
    assert [(await toy.post("/toy/named", {"name": "a"})).status for _ in range(3)] == [200, 200, 429]
    assert (await toy.post("/toy/named", {"name": "b"})).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("GET", "/toy/things/x", id="operation without a limit"),
        pytest.param("GET", "/none", id="unknown path"),
        pytest.param("PUT", "/toy/things", id="wrong method"),
        pytest.param("OPTIONS", "/toy/things", id="OPTIONS"),
        pytest.param("POST", "/toy/fail/crash", id="another wrong method"),
    ],
)
async def test_default_limit(start: Any, method: str, path: str) -> None:
    toy = await start(settings=PROXIED | {"server.default_rate_limit": "2/hour"})
    statuses = [(await toy(method, path, **from_address("192.0.2.1"))).status for _ in range(3)]
    assert statuses[2] == 429
    assert 429 not in statuses[:2]
    assert (await toy.get("/toy/limited", **from_address("192.0.2.1"))).status == 200  # it has its own


async def test_a_refused_body_is_not_read(start: Any) -> None:
    toy = await start(settings=PROXIED | {"server.default_rate_limit": "1/hour"})
    head = (
        "POST /toy/things HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.1\r\n"
        "Content-Type: application/json\r\n"
    )
    await toy.raw(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
    answer = await toy.raw(f"{head}Content-Length: 2\r\n\r\n{{".encode(), until=b"\r\n\r\n")  # the rest never comes
    assert answer.startswith(b"HTTP/1.1 429 ")


@given(st.lists(st.sampled_from("abcdefgh"), max_size=50))
def test_a_full_table_never_refuses_a_new_key(keys: list[str]) -> None:
    limiter = Limiter(MovableClock(BEGIN), size=2)
    first: set[str] = set()
    for key in keys:
        if key not in first:
            first.add(key)
            assert allowed(limiter, key)
        assert len(limiter) <= 2
