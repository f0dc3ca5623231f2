"""The configuration as the server reads it; what each setting means, schemas/config.json says."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import msgspec

from ..formats import Address, format_address, is_loopback_host, parse_address


class Secret:
    """A text that no log, repr or error shows; never empty. `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    cert: str | None
    """An absolute path, like ``key``; both are set, or none."""
    key: str | None
    min_version: Literal["1.2", "1.3"]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    listen: tuple[str, ...]
    """Never empty: where the setting is, host and port stand here."""
    base_path: str
    """A prefix: empty, or `/like/this`."""
    public_url: str | None
    allowed_hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    cors_origins: tuple[str, ...]
    require_https: bool
    default_rate_limit: str
    max_body_bytes: int
    max_connections: int
    max_connections_per_address: int
    shutdown_timeout: float
    """Seconds."""
    admin_key: Secret | None
    tls: TlsConfig

    @property
    def public_path(self) -> str:
        """The path below which clients reach the server, as a prefix: a proxy may take it off."""
        return self.base_path if self.public_url is None else urlsplit(self.public_url).path.rstrip("/")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        return tuple(map(parse_address, self.listen))


class StorageConfig(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    """`memory:`, `file:PATH` or `sqlite:PATH` with an absolute path, or `package.module:factory`."""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "console", "json"]


class CollectionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A ``[[collections]]`` table; paths are absolute, and the unique fields are among the indexed ones."""

    name: str
    schema: str
    indexes: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    seed: str | None = None
    read: Literal["public", "key"] | None = None
    """None: as the server is exposed or not. So is ``write``."""
    write: Literal["public", "key"] | None = None
    keep_deleted_days: int = 90


class ConsoleUsageConfig(msgspec.Struct, frozen=True, kw_only=True):
    api_key: Secret | None
    keep_versions: int
    keep_days: int
    stale_minutes: int


class DeviceUsageConfig(msgspec.Struct, frozen=True, kw_only=True):
    rate_limit: str
    retention_days: int
    registration: Literal["open", "closed"]
    max_users: int
    max_devices_per_user: int
    allow_networks: tuple[str, ...]


class LeaderboardConfig(msgspec.Struct, frozen=True, kw_only=True):
    rate_limit: str
    public: bool | Literal["auto"]
    slack_signing_secret: Secret | None


class ApnsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """With ``key`` all of it is set, else nothing is pushed."""

    key: Secret | None
    key_id: str | None
    team_id: str | None
    topic: str | None
    server: str


class SessionsConfig(msgspec.Struct, frozen=True, kw_only=True):
    api_key: Secret | None
    key_on_loopback: bool
    session_command: str
    """As a shell would split it (`shlex`); there is at least one word."""
    tmux_socket: str | None
    output_folder: str
    """An absolute path where the API is on, as is ``transcript_root``."""
    context_window: int
    transcript_root: str
    apns: ApnsConfig


class TiersConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens."""

    free: int
    pro: int
    enterprise: int


class TranscriptionConfig(msgspec.Struct, frozen=True, kw_only=True):
    engine: Literal["auto", "openai", "pocketsphinx"]
    base_url: str
    api_key: Secret | None
    timeout: int
    """Seconds."""
    max_concurrent: int


class StripeConfig(msgspec.Struct, frozen=True, kw_only=True):
    secret_key: Secret | None
    webhook_secret: Secret | None
    token_price: str | None
    tokens: int
    pro_price: str | None
    enterprise_price: str | None
    success_url: str | None
    cancel_url: str | None
    api_base: str


class OauthClient(msgspec.Struct, frozen=True, kw_only=True):
    """An ``[[apis.metering.oauth.clients]]`` table."""

    id: str
    name: str
    redirect_uris: tuple[str, ...]


class OauthConfig(msgspec.Struct, frozen=True, kw_only=True):
    clients: tuple[OauthClient, ...]


class MeteringConfig(msgspec.Struct, frozen=True, kw_only=True):
    rate_limit: str
    tokens_per_minute: int
    whole_seconds: bool
    cron_secret: Secret | None
    refresh_schedule: str
    """A cron expression, in UTC."""
    tiers: TiersConfig
    transcription: TranscriptionConfig
    stripe: StripeConfig
    oauth: OauthConfig


class CollectionsConfig(msgspec.Struct, frozen=True, kw_only=True):
    schemas: str | None
    """An absolute path."""
    watch: bool


class ApisConfig(msgspec.Struct, frozen=True, kw_only=True):
    enabled: frozenset[str]
    console_usage: ConsoleUsageConfig
    device_usage: DeviceUsageConfig
    leaderboard: LeaderboardConfig
    sessions: SessionsConfig
    metering: MeteringConfig
    collections: CollectionsConfig


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; rate limits, networks, hosts and URLs are texts known to parse. None: not set."""

    file: str | None
    """The TOML file that was read."""
    collections: tuple[CollectionConfig, ...]
    server: ServerConfig
    storage: StorageConfig
    log: LogConfig
    apis: ApisConfig

    @property
    def exposed_by(self) -> tuple[str, ...]:
        """What makes the server exposed (contracts/README.md, "Exposed or not"), naming the settings."""
        server = self.server
        found = [f"it listens on {format_address(address)}" for address in server.addresses if not address.loopback]
        if server.public_url and not is_loopback_host(urlsplit(server.public_url).hostname or ""):
            found.append(f"server.public_url is {server.public_url}")
        found += [f"server.allowed_hosts has {host}" for host in server.allowed_hosts if not is_loopback_host(host)]
        if server.trusted_proxies:
            found.append("server.trusted_proxies is set")
        return tuple(found)

    @property
    def exposed(self) -> bool:
        """Whether anybody but this machine is meant to reach the server."""
        return bool(self.exposed_by)
