"""Which API is on, and whether it has the keys that it needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .findings import Finding

if TYPE_CHECKING:
    from ..config import Config, Secret, StripeConfig

_SHORTEST_KEY = 16


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
