"""What console usage's scrapers send, and how its tests read what widgets get."""

from typing import Any

from .bodies import changed
from .conftest import Answer, Client

PATH = "/api/claude/console-usage"
NOW = "2026-01-25T03:20:41Z"
"""Three minutes after the contract's snapshot."""
KEY = "correct horse battery staple"
PARTIAL = {"isPartial": True, "extractionErrors": {"currentSession": "selector not found"}}

_SNAPSHOT: dict[str, Any] = {
    "currentSession": {"resetsIn": "2 hr 42 min", "percentageUsed": 47},
    "weeklyLimits": {
        "allModels": {"resetsIn": "Thu 7:00 AM", "percentageUsed": 31},
        "sonnetOnly": {"resetsIn": "Sat 12:00 PM", "percentageUsed": 10},
    },
    "lastUpdated": "2026-01-25T03:17:41Z",
    "isPartial": False,
    "extractionErrors": {},
}


def snapshot(**changes: Any) -> dict[str, Any]:
    """The contract's snapshot, `changed`."""
    return changed(_SNAPSHOT, changes)


async def post(client: Client, body: Any = None, **request: Any) -> Answer:
    """Posts a snapshot, `snapshot()` if none is given."""
    return await client("POST", PATH, json=snapshot() if body is None else body, **request)


async def get(client: Client, query: str = "", **request: Any) -> Answer:
    return await client.get(PATH + query, **request)


async def posted(client: Client, **changes: Any) -> None:
    """Posts a snapshot, which is accepted."""
    answer = await post(client, snapshot(**changes))
    assert answer.status == 200, answer.content
