"""What a store tells of its commits to who watches over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Outcome = Literal["done", "conflict", "failed"]


class CommitTimes(NamedTuple):
    """How long a commit took, in seconds: ``queued`` until the batch that it came into began, then ``written`` until
    what became of it was known."""

    queued: float
    written: float
    outcome: Outcome


Observer = Callable[[CommitTimes], None]
"""Called in the context of who committed. It must neither wait nor raise."""
