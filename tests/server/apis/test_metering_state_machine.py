"""Lives of profiles: spending, reservations, purchases, refreshes, subscriptions, months, restarts and requests that
come again, against a model that adds up what happened: a reservation that was given back never did."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from homeport.server.apis.metering.account import InsufficientTokens
from homeport.server.apis.metering.audit import audit
from homeport.server.apis.metering.documents import Reservation
from homeport.server.apis.metering.ledger import LEDGER, AlreadyDone, Ledger
from homeport.server.apis.metering.licenses import LICENSING
from homeport.server.app import create_app
from homeport.server.clock import MovableClock
from homeport.server.config import load_config
from homeport.storage import ABSENT, Collection, Put, Storage, make_storage
from homeport.storage.times import DAY, format_time, parse_time

from .conftest import BACK_ENDS
from .licensed import ENDLESS, bearer

STARTS = {"free": 100, "pro": 150, "enterprise": 400}
SETTINGS = {f"apis.metering.tiers.{tier}": tokens for tier, tokens in STARTS.items()} | {
    "apis.metering.cron_secret": "cron",
    "apis.metering.refresh_schedule": "0 0 1 1 *",  # what is refreshed is for the rules to say
    "log.level": "error",
}
EVENTS = Collection("test_events")
NAMES = ["alice", "bob"]
TOKENS = st.integers(1, 120)
REMEMBERED = DAY


class Op(NamedTuple):
    """What happened to a profile's tokens: ``grant`` (the tier's tokens), ``change`` (of tier, within a month),
    ``spend``, ``buy``, or a new ``month``."""

    kind: str
    tokens: int = 0
    reservation: str | None = None


class Model:
    """A profile, as what happened to it makes it."""

    def __init__(self) -> None:
        self.tier = "free"
        self.ops = [Op("grant", STARTS["free"])]
        self.month = "2025-11"
        self.held: dict[str, Reservation] = {}

    @property
    def figures(self) -> tuple[int, int, int]:
        """The balance, how much of it was bought, and what was used this month."""
        tier = spent = bought = used = 0
        for kind, tokens, _ in self.ops:
            match kind:
                case "grant":
                    tier, spent = tokens, 0
                case "change":
                    tier = tokens
                case "buy":
                    bought += tokens
                case "month":
                    used = 0
                case "spend":
                    left = max(0, tier - spent)
                    bought -= max(0, tokens - left)
                    spent += min(tokens, left)
                    used += tokens
        return max(0, tier - spent) + bought, bought, used

    @property
    def balance(self) -> int:
        return self.figures[0]

    def give_back(self, id: str) -> None:
        self.ops = [op for op in self.ops if op.reservation != id]

    def begin(self, month: str) -> bool:
        begins = month > self.month
        if begins:
            self.month = month
            self.ops.append(Op("month"))
            if self.tier != "free":
                self.ops.append(Op("grant", STARTS[self.tier]))
        return begins


class Lives(RuleBasedStateMachine):
    """Each rule does one thing to a server on a store, and to the model."""

    def __init__(self, back_end: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory()
        path = Path(self.folder.name) / "store"
        self.url = "memory:" if back_end == "memory" else f"{back_end}:{path}"
        self.clock = MovableClock(parse_time("2025-11-20T12:00:00Z"))
        self.models = {name: Model() for name in NAMES}
        self.keys: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self.answers: dict[tuple[str, str], tuple[int, int, bytes, int]] = {}
        self.events: set[str] = set()
        self.times_back = 0
        self.run(self._open())
        self.run(self._licenses())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _open(self, storage: Storage | None = None) -> None:
        self.storage = storage or await make_storage(self.url).__aenter__()
        self.stack = AsyncExitStack()
        config = load_config(environ={}, overrides={"storage.url": self.url, **ENDLESS, **SETTINGS})
        application = create_app(config, storage=self.storage, clock=self.clock)
        server = await self.stack.enter_async_context(TestServer(application))
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession(server.make_url("")))
        await self.storage.declare(EVENTS)
        self.ledger: Ledger = application[LEDGER]
        self.application = application

    async def _licenses(self) -> None:
        for name in NAMES:
            made, self.keys[name] = await self.application[LICENSING].create(f"{name}@example.com")
            self.users[name] = made.user_id

    async def _post(self, path: str, key: str, body: object = None, **headers: str) -> tuple[int, bytes, Any]:
        async with self.session.post(path, json=body, headers={**bearer(key), **headers}) as answer:
            return answer.status, await answer.read(), await answer.json()

    def teardown(self) -> None:
        async def close() -> None:
            await self.stack.aclose()
            await self.storage.close()

        self.run(close())
        self.runner.close()
        self.folder.cleanup()

    # Spending

    def _spent(self, name: str, status: int, body: Any, tokens: int) -> None:
        model = self.models[name]
        if tokens > model.balance:
            assert (status, body["tokens_balance"]) == (402, model.balance)
        else:
            model.ops.append(Op("spend", tokens))
            assert (status, body["tokens_balance"]) == (200, model.balance)

    @rule(name=st.sampled_from(NAMES), tokens=TOKENS)
    def consume(self, name: str, tokens: int) -> None:
        status, _, body = self.run(self._post("/api/tokens/consume", self.keys[name], {"tokens_amount": tokens}))
        self._spent(name, status, body, tokens)

    @rule(name=st.sampled_from(NAMES), tokens=st.integers(1, 2), key=st.sampled_from("kl"))
    def consume_once(self, name: str, tokens: int, key: str) -> None:
        now = self.clock.now()
        key += f" {self.times_back}"  # what was forgotten when the clock was ahead is no matter of this test
        body = {"tokens_amount": tokens}
        status, content, body = self.run(
            self._post("/api/tokens/consume", self.keys[name], body, **{"Idempotency-Key": key})
        )
        amount, first, said, until = self.answers.get((name, key), (0, 0, b"", 0))
        if until <= now:
            self._spent(name, status, body, tokens)
            self.answers[name, key] = tokens, status, content, now + REMEMBERED
        elif amount != tokens:
            assert status == 422
        else:
            assert (status, content) == (first, said)

    @rule(name=st.sampled_from(NAMES), amounts=st.lists(st.integers(1, 20), min_size=2, max_size=50))
    def consume_together(self, name: str, amounts: list[int]) -> None:
        """Whoever is refused found as much as somebody left, or nobody had spent yet."""

        async def all_at_once() -> list[tuple[int, bytes, Any]]:
            posts = (self._post("/api/tokens/consume", self.keys[name], {"tokens_amount": n}) for n in amounts)
            return await asyncio.gather(*posts)

        model = self.models[name]
        answers = self.run(all_at_once())
        left = {model.balance}
        spent = sorted(body["tokens_balance"] for status, _, body in answers if status == 200)
        amount_of = {body["tokens_balance"]: body["tokens_consumed"] for status, _, body in answers if status == 200}
        assert len(amount_of) == len(spent)
        for balance in reversed(spent):
            model.ops.append(Op("spend", amount_of[balance]))
            assert model.balance == balance
            left.add(balance)
        refused = [body for status, _, body in answers if status != 200]
        assert all(body["tokens_balance"] in left and body["tokens_shortfall"] > 0 for body in refused)

    # Reservations

    @precondition(lambda self: not self._many_grants())
    @rule(name=st.sampled_from(NAMES), tokens=TOKENS)
    def reserve(self, name: str, tokens: int) -> None:
        model = self.models[name]
        try:
            reservation = self.run(self.ledger.reserve(self.users[name], tokens, "Transcription"))
        except InsufficientTokens:
            assert tokens > model.balance
            return
        model.ops.append(Op("spend", tokens, reservation.transaction_id))
        model.held[reservation.transaction_id] = reservation
        assert reservation.tokens_balance == model.balance

    def _any_held(self) -> bool:
        return any(model.held for model in self.models.values())

    def _one_held(self, data: Any) -> tuple[Model, Reservation]:
        held = [(model, one) for model in self.models.values() for one in model.held.values()]
        model, reservation = data.draw(st.sampled_from(held))
        del model.held[reservation.transaction_id]
        return model, reservation

    @precondition(lambda self: self._any_held())
    @rule(data=st.data(), again=st.sampled_from([None, "settle", "release"]))
    def settle(self, data: Any, again: str | None) -> None:
        _, reservation = self._one_held(data)
        self.run(self.ledger.settle(reservation))
        self._in_vain(again, reservation)

    @precondition(lambda self: self._any_held())
    @rule(data=st.data(), again=st.sampled_from([None, "settle", "release"]))
    def release(self, data: Any, again: str | None) -> None:
        model, reservation = self._one_held(data)
        self.run(self.ledger.release(reservation))
        model.give_back(reservation.transaction_id)
        self._in_vain(again, reservation)

    def _in_vain(self, again: str | None, reservation: Reservation) -> None:
        if again == "settle":
            with pytest.raises(AlreadyDone):
                self.run(self.ledger.settle(reservation))
        elif again == "release":
            self.run(self.ledger.release(reservation))

    # Getting tokens

    @rule(name=st.sampled_from(NAMES), tokens=TOKENS, event=st.integers(0, 5))
    def purchase(self, name: str, tokens: int, event: int) -> None:
        """An event of Stripe's, which may have come before."""
        id = f"{name} {event}"
        applied = [Put(EVENTS, id, {}, ABSENT)]
        try:
            self.run(self.ledger.purchase(self.users[name], tokens, "Purchase", applied))
        except AlreadyDone:
            assert id in self.events
            return
        assert id not in self.events
        self.events.add(id)
        self.models[name].ops.append(Op("buy", tokens))

    def _many_grants(self) -> bool:
        """As nobody's transcription sees."""
        return any(
            sum(op.kind in ("grant", "change") for op in model.ops) - reservation.allowance > 5
            for model in self.models.values()
            for reservation in model.held.values()
        )

    @precondition(lambda self: not self._many_grants())
    @rule(name=st.sampled_from(NAMES), tier=st.sampled_from(["free", "pro", "enterprise"]), anew=st.booleans())
    def change_tier(self, name: str, tier: Any, anew: bool) -> None:
        user, model = self.users[name], self.models[name]
        self.run(self.ledger.unsubscribe(user) if tier == "free" else self.ledger.subscribe(user, tier, anew=anew))
        if tier == "free" != model.tier:
            model.ops.append(Op("grant", 0))
        elif tier != model.tier:
            model.ops.append(Op("grant" if anew or model.tier == "free" else "change", STARTS[tier]))
        model.tier = tier

    @precondition(lambda self: not self._many_grants())
    @rule(days=st.integers(-40, 70), times=st.integers(1, 3))
    def move_and_refresh(self, days: int, times: int) -> None:
        """Time goes on, or back; the outside cron comes, maybe more than once at a time."""
        self.clock.move_to(self.clock.now() + days * DAY)
        if days < 0:
            self.times_back += 1
        month = format_time(self.clock.now())[:7]

        async def refresh() -> int:
            posts = [self._post("/api/cron/refresh-tokens", "cron") for _ in range(times)]
            return sum([body["refreshed"] for _, _, body in await asyncio.gather(*posts)])

        begun = sum([model.begin(month) for model in self.models.values()])
        assert self.run(refresh()) <= begun  # the server's own schedule may have been faster
        self.run(self._refreshed())

    async def _refreshed(self) -> None:
        async with asyncio.timeout(10):
            while (await self._post("/api/cron/refresh-tokens", "cron"))[2]["refreshed"]:
                pass

    @rule()
    def restart(self) -> None:
        """Without a word to who held a reservation: on a disk, their tokens are back at the next start."""

        async def again() -> None:
            await self.stack.aclose()
            if self.url == "memory:":
                await self._open(self.storage)
            else:
                await self.storage.close()
                await self._open()

        self.run(again())
        if self.url != "memory:":
            for model in self.models.values():
                for id in model.held:
                    model.give_back(id)
                model.held.clear()

    @invariant()
    def everything_adds_up(self) -> None:
        self.run(self._adds_up())

    async def _adds_up(self) -> None:
        assert [problem async for _, problem in audit(self.storage)] == [None] * len(NAMES)
        for name, model in self.models.items():
            profile = await self.ledger.profile(self.users[name])
            found = (profile.tokens_balance, profile.bought, profile.tokens_used_this_month)
            assert found == model.figures
            assert profile.subscription_tier == model.tier


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("examples", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_profiles_live_as_the_model_does(back_end: str, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Lives(back_end),  # type: ignore[arg-type]  # a maker does as well as a class
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None),
    )
