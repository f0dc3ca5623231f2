"""What tests control of a server, from inside its process or over HTTP at ``/__test__/…``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...storage import Query, Tombstones
from ...storage.times import SECOND, format_time, parse_time
from ..clock import MovableClock
from ..config import ConfigError
from ..errors import InvalidBody, Problem
from ..hosts import Hosts
from ..keys import STORAGE
from ..operation import Api
from ..request import Answer
from .endpoint import PREFIX, WatchedEndpoint
from .faults import Fault, Faults
from .journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..endpoint import Core, Endpoint
    from ..errors import Envelope
    from ..operation import Operation
    from ..request import ApiRequest
    from .journal import Asked

LATEST = parse_time("3000-01-01T00:00:00Z")
"""The clock can be moved up to here, from 1970 on."""


class _AnyOrigin(Hosts):
    """Pages of all origins may call."""

    def _allows(self, origin: str, host: str | None) -> bool:
        return True


class Control:
    """Takes hold of one application, when that is made with it (`create_app`)."""

    def __init__(self, clock: MovableClock | None = None) -> None:
        self.clock = clock or MovableClock()
        self.journal = Journal()
        self.faults = Faults()
        self._core: Core
        self._apis: Sequence[Api]

    def attach(self, core: Core, apis: Sequence[Api]) -> Api:
        """The operations by which the application is controlled. Raises `ConfigError` for one that is exposed."""
        if reasons := core.config.exposed_by:
            exposed = "; ".join(reasons)
            raise ConfigError([f"test mode (--test): anybody could empty the server, which is exposed: {exposed}"])
        self._core, self._apis = core, apis
        core.hosts = _AnyOrigin.of(core.config.server, exposed=False)
        return _api(self)

    def endpoint(self, operation: Operation, names: tuple[str, ...], envelope: Envelope, core: Core) -> Endpoint:
        """An endpoint that is watched."""
        return WatchedEndpoint(self.journal, self.faults, operation, names, envelope, core)

    async def reset(self) -> None:
        """As if the server had just started on a new store."""
        core = self._core
        self.journal.clear()
        self.faults.clear()
        self.clock.reset()
        core.limiter.reset()
        core.telemetry.reset()
        storage = core.app[STORAGE]
        for collection in list(storage.collections.values()):
            await storage.purge(Query(collection))
            if collection.tombstones:
                await storage.purge(Tombstones(collection, (await storage.find(Query(collection, limit=1))).version))
        for api in self._apis:
            if api.reset is not None:
                await api.reset(core.app)

    def move_to(self, now: int) -> None:
        """Stops the clock at a time, microseconds since the epoch. Raises ValueError for one before 1970 or after
        2999."""
        if not 0 <= now < LATEST:
            raise ValueError("must lead to a time in the years 1970 to 2999")
        self.clock.move_to(now)

    def advance(self, seconds: float) -> None:
        """Stops the clock so many seconds after the time that it shows. Raises ValueError as `move_to` does."""
        self.move_to(self.clock.now() + round(seconds * SECOND))


def _api(control: Control) -> Api:
    api = Api("test_mode", title="Control over a server under test.")

    @api.post(f"{PREFIX}reset", returns={204: None})
    async def reset(_: ApiRequest) -> Answer:
        """Every collection is back at its seed; all other data, the journal, faults, limits and the clock's moves are
        gone."""
        await control.reset()
        return Answer(status=204)

    @api.get(f"{PREFIX}requests", returns={200: "test_mode#/$defs/Journal"})
    async def requests(_: ApiRequest) -> dict[str, Any]:
        """What was asked, the oldest first; without the requests to these paths."""
        return {"requests": [_shown(asked) for asked in control.journal]}

    @api.post(f"{PREFIX}faults", body="test_mode#/$defs/NewFault", returns={200: "test_mode#/$defs/Faults"})
    async def faults(request: ApiRequest) -> dict[str, Any]:
        """Lets the next requests for a path fail."""
        wanted = request.document
        names = ("path", "method", "status", "delay_ms", "disconnect", "times")
        try:
            fault = Fault(**{name: wanted[name] for name in names if name in wanted})
        except ValueError as error:
            raise InvalidBody(problems=[Problem(("status",), str(error))]) from None
        try:
            control.faults.add(fault)
        except ValueError as error:
            raise InvalidBody(str(error)) from None
        return {"faults": [_described(fault) for fault in control.faults]}

    @api.post(f"{PREFIX}clock", body="test_mode#/$defs/NewTime", returns={200: "test_mode#/$defs/Time"})
    async def clock(request: ApiRequest) -> dict[str, Any]:
        """Stops the clock at another time or, with neither member, lets it show the real one again."""
        wanted = request.document
        try:
            if "now" in wanted:
                control.move_to(parse_time(wanted["now"]))
            elif "advance_seconds" in wanted:
                control.advance(wanted["advance_seconds"])
            else:
                control.clock.reset()
        except ValueError as error:
            member = "now" if "now" in wanted else "advance_seconds"
            raise InvalidBody(problems=[Problem((member,), str(error))]) from None
        return {"now": format_time(control.clock.now())}

    return api


def _shown(asked: Asked) -> dict[str, Any]:
    return {
        "method": asked.method,
        "path": asked.path,
        "query": asked.query,
        "headers": asked.headers,
        "body": asked.body.decode(errors="replace"),
        "body_bytes": asked.body_bytes,
        "status": asked.status,
        "at": format_time(asked.at),
    }


def _described(fault: Fault) -> dict[str, Any]:
    members = {"path": fault.path, "method": fault.method, "status": fault.status, "delay_ms": fault.delay_ms}
    shown: dict[str, Any] = {name: value for name, value in members.items() if value is not None}
    if fault.disconnect:
        shown["disconnect"] = True
    return {**shown, "times": fault.times}
