"""What there is to say about a configuration and its machine, for `check` and for the start of `serve`."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ...storage import StorageDamaged, StorageError, StorageLocked, StorageUnavailable, make_storage
from ...storage.lockfile import StoreLock
from ...storage.remote import RemoteStorage
from ...storage.sqlite.schema import MIGRATIONS
from ..tls import Tls, TlsError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from ...storage import Storage
    from ..config import Config, Secret, StripeConfig, TlsConfig

_SAFE_SQLITE = (3, 51, 3)
_RELEASED = datetime(2025, 12, 1, tzinfo=UTC)
_RENEW_BEFORE = timedelta(days=14)
_SHORTEST_KEY = 16
_PATIENCE = 5.0
"""Seconds that a running server may take to answer."""
_LET_WRITE = "let this user write there, on a local disk that has room"
_RESTORE = "keep a copy of it as it is, and put a backup in its place"


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


def credentials(config: Config) -> Iterator[Finding]:
    """Which API is on, and whether it has the keys that it needs."""
    key = config.server.admin_key
    if key is None and config.exposed:
        yield Finding(
            "warning",
            "ADMIN_KEY",
            "not set on an exposed server: /metrics answers this machine alone, /admin/keys nobody",
            "set ADMIN_KEY, or server.admin_key_file, to a long random text (openssl rand -hex 32)",
        )
    elif key is not None and len(key.reveal()) < _SHORTEST_KEY:
        yield Finding(
            "warning",
            "ADMIN_KEY",
            f"shorter than {_SHORTEST_KEY} characters: it could be guessed",
            "set it to a long random text (openssl rand -hex 32)",
        )
    else:
        yield Finding("ok", "ADMIN_KEY", "not set" if key is None else "set")
    for name, describe in _APIS.items():
        if name in config.apis.enabled:
            yield describe(config)
        else:
            yield Finding("ok", name, "off")


def _console_usage(config: Config) -> Finding:
    if config.apis.console_usage.api_key is not None:
        return Finding("ok", "console_usage", "on; CLAUDE_SYNC_API_KEY: set")
    return Finding(
        "warning",
        "console_usage",
        f"on; CLAUDE_SYNC_API_KEY is not set: {'nobody' if config.exposed else 'only this machine'} may post",
        "set CLAUDE_SYNC_API_KEY, or apis.console_usage.api_key_file, to a long random text (openssl rand -hex 32)",
    )


def _device_usage(config: Config) -> Finding:
    api = config.apis.device_usage
    if config.exposed and api.registration == "open" and not api.allow_networks:
        return Finding(
            "note",
            "device_usage",
            f"on; any user key may begin, up to {api.max_users} of them, from anywhere",
            'where that is not meant: apis.device_usage.registration = "closed", or allow_networks',
        )
    who = "any user key may begin" if api.registration == "open" else "for the user keys that were added"
    return Finding("ok", "device_usage", f"on; {who}")


def _leaderboard(config: Config) -> Finding:
    api = config.apis.leaderboard
    public = not config.exposed if api.public == "auto" else api.public
    who = "anybody may read" if public else "reading takes a key with the scope read"
    slack = "off: apis.leaderboard.slack_signing_secret is not set" if api.slack_signing_secret is None else "on"
    return Finding("ok", "leaderboard", f"on; {who}; Slack's /apikey is {slack}")


def _sessions(config: Config) -> Finding:
    api = config.apis.sessions
    if api.api_key is None and config.exposed:
        return Finding(
            "fatal",
            "sessions",
            "API_KEY is not set on an exposed server, and sessions start programs on this machine",
            "set API_KEY, or apis.sessions.api_key_file, to a long random text, or leave sessions out of apis.enabled",
        )
    if api.api_key is None and api.key_on_loopback:
        return Finding(
            "warning",
            "sessions",
            "on; nobody may call: apis.sessions.key_on_loopback asks for API_KEY, which is not set",
            "set API_KEY, or apis.sessions.api_key_file, to a long random text (openssl rand -hex 32)",
        )
    if api.api_key is not None and len(api.api_key.reveal()) < _SHORTEST_KEY:
        return Finding(
            "warning",
            "sessions",
            f"on; API_KEY is shorter than {_SHORTEST_KEY} characters: it could be guessed",
            "set it to a long random text (openssl rand -hex 32)",
        )
    if shutil.which("tmux") is None:
        return Finding("warning", "sessions", "on; tmux is not installed: no session can start", "install tmux")
    if api.apns.key is not None and not _signs_for_apple(api.apns.key):
        return Finding(
            "warning",
            "sessions",
            "on; no push notification can be sent: apis.sessions.apns.key is not the text of a .p8 file of Apple's",
            "set apis.sessions.apns.key_file to the file AuthKey_….p8 of Apple's developer account",
        )
    who = "with API_KEY" if api.api_key is not None else "from this machine alone"
    return Finding("ok", "sessions", f"on; {who}; push notifications are {'off' if api.apns.key is None else 'on'}")


def _signs_for_apple(key: Secret) -> bool:
    """Whether it is a private key on the curve of ES256."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.reveal().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # none at all, one with a password, one of another kind
        return False
    return isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1)


def _metering(config: Config) -> Finding:
    from ..apis.metering.engines import chosen  # which brings all of metering

    api = config.apis.metering
    if api.stripe.secret_key is not None and api.stripe.webhook_secret is None:
        return Finding(
            "warning",
            "metering",
            "on; tokens are sold, and none credited: STRIPE_WEBHOOK_SECRET is not set",
            "add the webhook endpoint /api/webhooks/stripe in Stripe's dashboard, and set what signs it",
        )
    sales = _sales(api.stripe)
    engine = chosen(api.transcription)
    if engine is None:
        return Finding(
            "note",
            "metering",
            f"on; transcription is off: its engine is not installed; sale of tokens is {sales}",
            "pip install 'homeport[pocketsphinx]' or, to use a service with OPENAI_API_KEY, 'homeport[transcription]'",
        )
    return Finding("ok", "metering", f"on; transcription is {engine}'s; sale of tokens is {sales}")


def _sales(stripe: StripeConfig) -> str:
    if stripe.secret_key is None:
        return "off: STRIPE_SECRET_KEY is not set"
    unpriced = [name for name in ("token_price", "pro_price", "enterprise_price") if getattr(stripe, name) is None]
    return f"on, without {', '.join(unpriced)}" if unpriced else "on"


def _collections(config: Config) -> Finding:
    names = [collection.name for collection in config.collections]
    if config.apis.collections.schemas is not None:
        names.append(f"what is in {config.apis.collections.schemas}")
    return Finding("ok", "collections", f"on; {', '.join(names) or 'there are none'}")


_APIS: dict[str, Callable[[Config], Finding]] = {
    "console_usage": _console_usage,
    "device_usage": _device_usage,
    "leaderboard": _leaderboard,
    "sessions": _sessions,
    "metering": _metering,
    "collections": _collections,
}


def store(config: Config) -> Finding:
    """Whether the store opens, takes writes and is whole. Makes none, and changes none that is of another version."""
    url = config.storage.url
    backend, _, place = url.partition(":")
    path = Path(place)
    if backend == "memory":
        return Finding("note", "storage", "memory: the data is gone when the server stops")
    if backend in ("file", "sqlite") and not path.exists():
        return _new_store(url, path)
    try:
        if backend == "sqlite" and (finding := _database(path)):
            return finding
        asyncio.run(_open(make_storage(url)))
    except StorageLocked as error:
        return asyncio.run(_in_use(url, error))
    except StorageDamaged as error:
        return Finding("fatal", "storage", str(error), _RESTORE)
    except StorageError as error:
        return Finding("fatal", "storage", str(error), _LET_WRITE)
    except ValueError as error:
        return Finding("fatal", "storage", str(error), "correct storage.url")
    return Finding("ok", "storage", url)


async def _open(storage: Storage) -> None:
    async with storage:
        await storage.ping()


async def _in_use(url: str, locked: StorageLocked) -> Finding:
    """What the server that has the store says of it."""
    path = make_storage(url).path
    if path is not None:
        with suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(_PATIENCE), RemoteStorage(path) as storage:
                try:
                    await storage.ping()
                except StorageError as error:
                    return Finding("warning", "storage", f"{locked}, a server, which says: {error}", _LET_WRITE)
                return Finding("ok", "storage", f"{locked}, a server, which answers")
    return Finding("note", "storage", f"{locked}, so it was not looked into", "stop that server to have it checked")


def _new_store(url: str, path: Path) -> Finding:
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        return Finding("fatal", "storage", f"{path} cannot be made: {folder} is not a folder", "give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("fatal", "storage", f"{path} cannot be made: {folder} is not writable", _LET_WRITE)
    return Finding("ok", "storage", f"{url}, made at the first start")


def _database(path: Path) -> Finding | None:
    """What is wrong with an SQLite database, or to be known before it is opened to write."""
    lock = StoreLock(path)
    lock.acquire()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            damage = [row[0] for row in db.execute("PRAGMA integrity_check(3)")]
            version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        return Finding("fatal", "storage", f"{path}: {error}", _RESTORE)
    finally:
        lock.release()
    if damage != ["ok"]:
        return Finding("fatal", "storage", f"{path}: {'; '.join(damage)}", _RESTORE)
    if version < len(MIGRATIONS):
        return Finding(
            "note", "storage", f"{path} is of an earlier version; a start backs it up and brings it up to date"
        )
    return None
