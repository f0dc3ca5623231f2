"""Allowances: the tokens that come with a tier, and what was spent of them and beyond them.

They say which tokens come back when some turn out not to be spent, whatever happened to the tier in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_REMEMBERED = 8
"""No transcription sees as many begin."""


class Allowance(NamedTuple):
    """The tokens of a tier, of a month or from a change of subscription on. ``number``: counts a profile's, from 1 on.

    ``carried``: where the subscription changed within the month, what had been spent of it before, which counts here
    too; else None. ``used``: what was spent since this one began, bought tokens included.
    """

    number: int
    tokens: int
    carried: int | None = None
    used: int = 0

    @property
    def spent(self) -> int:
        """How many of the tier's tokens are spent; more than there are, where there were more before the change."""
        carried = self.carried or 0
        return carried + min(self.used, max(0, self.tokens - carried))

    @property
    def left(self) -> int:
        """How many of the tier's tokens are not spent."""
        return max(0, self.tokens - self.spent)

    @property
    def beyond(self) -> int:
        """How many bought tokens were spent, because it was used up."""
        return (self.carried or 0) + self.used - self.spent


def with_next(allowances: Sequence[Allowance], tokens: int, *, anew: bool) -> list[Allowance]:
    """With a further one. ``anew``: what was spent of the last is no matter of that. Forgets the oldest."""
    last = allowances[-1]
    return [*allowances, Allowance(last.number + 1, tokens, None if anew else last.spent)][-_REMEMBERED:]


def without(allowances: Iterable[Allowance], number: int, tokens: int) -> list[Allowance]:
    """As they were if so many tokens had not been spent of one of them."""
    told: list[Allowance] = []
    for allowance in allowances:
        if allowance.number == number:
            allowance = allowance._replace(used=allowance.used - tokens)
        if told and allowance.carried is not None:
            allowance = allowance._replace(carried=told[-1].spent)
        told.append(allowance)
    return told
