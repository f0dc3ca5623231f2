"""Usage events: what each transcription took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....storage import Collection, Put
from ....storage.times import format_time

if TYPE_CHECKING:
    from .documents import Reservation

USAGE = Collection("metering_usage")
"""``<user_id>/<transaction_id>``: ``event_type``, ``tokens_used``, ``duration_seconds``, ``created_at``. The
transactions' ids grow, so that a profile's events are in order of time."""


def event(event_type: str, reservation: Reservation, duration_seconds: float, now: int) -> Put:
    """Keeps an event that the tokens of a reservation pay for. ``now``: microseconds since the epoch."""
    return Put(
        USAGE,
        f"{reservation.user_id}/{reservation.transaction_id}",
        {
            "event_type": event_type,
            "tokens_used": reservation.tokens,
            "duration_seconds": duration_seconds,
            "created_at": format_time(now),
        },
    )
