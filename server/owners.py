"""Whose path, whose envelope (contracts/README.md)."""

import re

_GET_DEVICES = re.compile(r"/api/devices/[^/]*")
_OWNERS = (
    (re.compile(r"/api/(sync|stats|device|history)(/.*)?", re.DOTALL), "device_usage"),
    (re.compile(r"/api/claude(/.*)?", re.DOTALL), "console_usage"),
    (re.compile(r"/(v1|slack)(/.*)?", re.DOTALL), "leaderboard"),
    (re.compile(r"/(api/(tokens|desktop|stripe|webhooks|cron|license)|oauth2)(/.*)?", re.DOTALL), "metering"),
    (re.compile(r"/collections(/.*)?|/changes", re.DOTALL), "collections"),
    (re.compile(r"/api(/.*)?", re.DOTALL), "sessions"),
)


def owner(method: str, path: str) -> str | None:
    """The name of the API that a path belongs to, by method where two share it; None for all other paths."""
    if method in ("GET", "HEAD") and _GET_DEVICES.fullmatch(path):
        return "device_usage"
    return next((name for pattern, name in _OWNERS if pattern.fullmatch(path)), None)
