"""The tokens of who calls: what is left, what is spent, and what happened to them (contracts/metering.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....storage import InvalidQuery
from ....storage.documents import encode
from ...errors import InvalidParameters, Problem
from ...request import Answer
from .access import PER_KEY, licensee
from .answering import once
from .api import api
from .documents import entries_of
from .ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...idempotency import Once
    from ...request import ApiRequest
    from .access import Licensee
    from .documents import Transaction

_LEVELS = ((95, "critical"), (90, "high"), (80, "medium"))
"""From so many per cent of the starting balance on, that are gone."""


@api.get(
    "/api/tokens/balance",
    returns={200: "metering#/$defs/BalanceResponse"},
    auth=licensee,
    limits=(PER_KEY,),
)
async def balance(request: ApiRequest) -> dict[str, Any]:
    """What is left, reserved tokens taken off, with a warning where that is little."""
    caller: Licensee = request.caller
    ledger = request.app[LEDGER]
    profile = await ledger.profile(caller.user_id)
    left = profile.tokens_balance
    return {
        "success": True,
        "tokens_balance": left,
        "tokens_used_this_month": profile.tokens_used_this_month,
        "subscription_tier": profile.subscription_tier,
        "minutes_remaining": left // request.config.apis.metering.tokens_per_minute,
        "token_refresh_date": profile.token_refresh_date,
        "warnings": _warnings(left, ledger.starting_balance(profile.subscription_tier)),
    }


def _warnings(left: int, start: int) -> Sequence[dict[str, Any]]:
    """The highest threshold that is crossed, alone."""
    gone = percentage_gone(left, start)
    for threshold, level in _LEVELS:
        if gone >= threshold:
            message = f"Low balance: {left:,} tokens remaining"
            return [{"level": level, "threshold": threshold, "message": message, "percentage_used": gone}]
    return []


def percentage_gone(left: int, start: int) -> int:
    """How much of a starting balance is gone, in whole per cent; none of it, where as much or more is left."""
    return max(0, start - left) * 100 // start if start else 0


@api.post(
    "/api/tokens/consume",
    body="metering#/$defs/ConsumeRequest",
    reads={"headers": "headers#/$defs/Once"},
    returns={200: "metering#/$defs/ConsumeResponse"},
    errors=(402, 409, 422),
    auth=licensee,
    limits=(PER_KEY,),
)
async def consume(request: ApiRequest) -> Answer:
    """Spends tokens; none, where there are too few."""
    caller: Licensee = request.caller
    tokens, description = int(request.document["tokens_amount"]), request.document.get("description", "")

    async def act(once: Once) -> Answer:
        consuming = request.app[LEDGER].consume(
            caller.user_id, tokens, description, lambda entry: once.remember(_consumed(entry))
        )
        return _consumed(await once.finish(consuming))

    return await once(request, encode([tokens, description]), act)


def _consumed(entry: Transaction) -> Answer:
    return Answer(
        {
            "success": True,
            "tokens_consumed": -entry.tokens_amount,
            "tokens_balance": entry.tokens_balance_after,
            "transaction_id": entry.transaction_id,
        }
    )


@api.get(
    "/api/tokens/transactions",
    query="metering#/$defs/TransactionsQuery",
    returns={200: "metering#/$defs/TransactionsResponse"},
    links={"/api/tokens/transactions": {"after": "$response.body#/next"}},
    auth=licensee,
    limits=(PER_KEY,),
)
async def transactions(request: ApiRequest) -> dict[str, Any]:
    """What happened to the tokens, the newest first."""
    caller: Licensee = request.caller
    query = request.query
    try:
        entries = entries_of(caller.user_id, sort=("-id",), limit=query["limit"], after=query.get("after"))
    except InvalidQuery as error:
        raise InvalidParameters(problems=[Problem(("after",), "must be the next of the page before")]) from error
    page = await request.storage.find(entries)
    return {"success": True, "transactions": [record.decode() for record in page.records], "next": page.next}
