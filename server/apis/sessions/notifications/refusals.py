"""Why a notification was not taken: apart from `apns`, whose library takes a while to import."""

from __future__ import annotations


class Refused(Exception):
    """Apple answered that it does not take a notification.

    ``status``: HTTP's. ``reason``: Apple's word for it, such as ``BadDeviceToken``, or "". ``since``: milliseconds
    since the epoch when the device was found to be gone. ``retry_after``: seconds.
    """

    def __init__(self, status: int, reason: str, since: int | None, retry_after: int | None) -> None:
        super().__init__(f"{status} {reason}".rstrip())
        self.status = status
        self.reason = reason
        self.since = since
        self.retry_after = retry_after


class Unreachable(Exception):
    """There was no answer."""


class InvalidKey(Exception):
    """The signing key is none that ES256 takes."""
