"""What there is to say about a configuration and its machine, for `check` and for the start of `serve`: versions, the
clock, who reaches the server, HTTPS."""

from __future__ import annotations

import platform
import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..tls import Tls, TlsError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from ..config import Config, TlsConfig

_SAFE_SQLITE = (3, 51, 3)
_RELEASED = datetime(2025, 12, 1, tzinfo=UTC)
_RENEW_BEFORE = timedelta(days=14)


class Finding(NamedTuple):
    """``level``: how bad it is; ``fatal``: the server will not start, or must not. ``cure``: what to do."""

    level: Literal["ok", "note", "warning", "fatal"]
    subject: str
    message: str
    cure: str = ""


def runtime() -> Iterator[Finding]:
    """The versions of what Homeport runs on."""
    yield Finding("ok", "python", platform.python_version())
    if sqlite3.sqlite_version_info < _SAFE_SQLITE:
        yield Finding(
            "note",
            "sqlite",
            f"{sqlite3.sqlite_version} loses data where two connections write and checkpoint (before 3.51.3)",
            "none needed: Homeport has one that does; let no other program write to its database",
        )
    else:
        yield Finding("ok", "sqlite", sqlite3.sqlite_version)


def clock() -> Iterator[Finding]:
    """Whether the clock can be right."""
    now = datetime.now(UTC)
    if now < _RELEASED:
        yield Finding("fatal", "clock", f"it is {now:%Y-%m-%d %H:%M} UTC, says the clock", "set the clock, best by NTP")
    else:
        yield Finding("ok", "clock", f"{now:%Y-%m-%d %H:%M} UTC, {now.astimezone():%H:%M %Z} for daily work")


def exposure(config: Config) -> Iterator[Finding]:
    """Who reaches the server, and whether it will answer them."""
    if not config.exposed:
        yield Finding("ok", "network", "for this machine alone")
        return
    yield Finding("note", "network", f"exposed: {'; '.join(config.exposed_by)}")
    if not config.server.public_url and not config.server.allowed_hosts:
        yield Finding(
            "warning",
            "network",
            "clients that call the server by a host name are refused (421)",
            "name it in server.public_url or server.allowed_hosts",
        )


def https(config: Config) -> Iterator[Finding]:
    """Whether the server's certificate is good, and whether HTTPS can be had where it is required."""
    server = config.server
    if server.require_https and server.tls.cert is None and not server.trusted_proxies:
        yield Finding(
            "warning",
            "require_https",
            "every request is refused (403): nothing here speaks HTTPS",
            "set server.tls.cert and server.tls.key, or server.trusted_proxies to the proxy that does",
        )
    try:
        tls = Tls.of(server.tls)
    except TlsError as error:
        yield from (Finding("fatal", "tls", problem) for problem in error.problems)
        return
    if tls is not None:
        yield _certificate(tls.certificate, server.tls)
        if Path(server.tls.key or "").stat().st_mode & stat.S_IROTH:
            yield Finding(
                "warning",
                "tls",
                f"every user can read {server.tls.key}",
                f"chmod 600 {server.tls.key}, with the server's user as its owner",
            )


def _certificate(certificate: Certificate, tls: TlsConfig) -> Finding:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    renew = f"put another in {tls.cert}, its key in {tls.key}, and send SIGHUP"
    if now < begin:
        return Finding(
            "warning",
            "tls",
            f"the certificate is good only from {begin:%Y-%m-%d %H:%M} UTC on",
            "wait, or set the clock",
        )
    if end < now:
        return Finding("warning", "tls", f"the certificate expired on {end:%Y-%m-%d}: clients refuse it", renew)
    if end < now + _RENEW_BEFORE:
        return Finding("warning", "tls", f"the certificate expires on {end:%Y-%m-%d}", renew)
    return Finding("ok", "tls", f"{tls.min_version} or later; the certificate is good until {end:%Y-%m-%d}")
