"""The configuration: TOML, environment and arguments, checked against schemas/config.json (contracts/cli.md).

The schema alone holds every setting's type, default and description. To add a setting: describe it
there, give a structure below a field of that name, and show it in config.example.toml.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from .formats import FORMATS, Address, format_address, is_loopback_host, parse_address
from .settings import Table, defaults, flatten, from_text, is_secret, nearest, nest, problems, settings

LEGACY_NAMES = {
    "PORT": ("server.port", "{}"),
    "DATABASE_PATH": ("storage.url", "sqlite:{}"),
    "ADMIN_KEY": ("server.admin_key", "{}"),
    "CLAUDE_SYNC_API_KEY": ("apis.console_usage.api_key", "{}"),
    "SLACK_SIGNING_SECRET": ("apis.leaderboard.slack_signing_secret", "{}"),
    "API_KEY": ("apis.sessions.api_key", "{}"),
    "CRON_SECRET": ("apis.metering.cron_secret", "{}"),
    "OPENAI_API_KEY": ("apis.metering.transcription.api_key", "{}"),
    "STRIPE_SECRET_KEY": ("apis.metering.stripe.secret_key", "{}"),
    "STRIPE_WEBHOOK_SECRET": ("apis.metering.stripe.webhook_secret", "{}"),
}
"""The environment of existing deployments: the setting that each variable means, and what it is set to."""

_T = TypeVar("_T")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PREFIX = "HOMEPORT_"
_NOT_AVAILABLE = {
    "DATABASE_URL": "PostgreSQL is not available in this version; unset it, and see storage.url",
    "REDIS_URL": "Redis is not available in this version; unset it",
}
_DEFAULT_FILE = "homeport.toml"
_DEFAULT_STORE = {"sqlite": "homeport.db", "file": "files"}  # in the user's data folder
_INSTEAD_OF = {  # where the first is set, the others are not used, until a later layer sets one of them
    "storage.url": ("storage.backend", "storage.path"),
    "server.listen": ("server.host", "server.port"),
}


class ConfigError(Exception):
    """The configuration is wrong; ``problems``: a line for each, where it stands and what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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


def load_config(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """The configuration of a file, an environment and ``overrides`` (setting names to values): later wins.

    The file is ``path``, else `$HOMEPORT_CONFIG`, else `./homeport.toml` where there is one.
    Raises `ConfigError` with everything that is wrong.
    """
    file = path or environ.get("HOMEPORT_CONFIG") or (_DEFAULT_FILE if Path(_DEFAULT_FILE).exists() else None)
    wrong: list[str] = []
    values = defaults()
    for layer in (
        _file(file, wrong),
        _legacy(environ, wrong),
        _environment(environ, wrong),
        _arguments(overrides or {}, wrong),
    ):
        wrong += problems(layer.table, layer.label)
        given = flatten(layer.table)
        _read_secrets(given, layer.label, wrong)
        for name, others in _INSTEAD_OF.items():
            if given.keys() & set(others):
                values[name] = settings()[name]["default"]
        values |= given
    if wrong:
        raise ConfigError(wrong)
    _settle(values, environ, wrong)
    if wrong:
        raise ConfigError(wrong)
    return msgspec.convert({**nest(values), "file": file and os.fspath(file)}, Config, dec_hook=_decode)


class _Layer(NamedTuple):
    """One source of settings; ``label`` says where the user finds a setting in it."""

    table: Table
    label: Callable[[str], str]


def _file(path: str | os.PathLike[str] | None, wrong: list[str]) -> _Layer:
    table: Table = {}
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            wrong.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            wrong.append(f"{path}: is not UTF-8, as TOML has to be")
        except tomllib.TOMLDecodeError as error:
            wrong.append(f"{path}: is not TOML: {error}")
    return _Layer(_plain(table), lambda name: f"{path}: {name}")


def _legacy(environ: Mapping[str, str], wrong: list[str]) -> _Layer:
    if environ.get("DATABASE_PATH") and environ.get("DATABASE_URL"):
        wrong.append("DATABASE_PATH, DATABASE_URL: both are set; keep the one that says where the data lives")
    wrong += [f"{variable}: {why}" for variable, why in _NOT_AVAILABLE.items() if environ.get(variable)]
    given = {variable: how for variable, how in LEGACY_NAMES.items() if environ.get(variable)}
    texts = {name: how.format(environ[variable]) for variable, (name, how) in given.items()}
    variables = {name: variable for variable, (name, _) in given.items()}
    return _from_texts(texts, variables, wrong)


def _environment(environ: Mapping[str, str], wrong: list[str]) -> _Layer:
    variables = {name: _PREFIX + name.upper().replace(".", "__") for name in settings()}
    names = {variable: name for name, variable in variables.items()}
    misspelt = {variable.replace("__", "_"): variable for variable in names}
    for variable in sorted(variable for variable in environ if variable.startswith(_PREFIX)):
        if variable not in names and (variable in misspelt or "__" in variable):
            meant = misspelt.get(variable) or nearest(variable, names)
            hint = f"did you mean {meant}?" if meant else "`homeport example-config` prints all of them"
            wrong.append(f"{variable}: unknown setting; {hint}")
    texts = {name: environ[variable] for variable, name in names.items() if environ.get(variable)}
    return _from_texts(texts, variables, wrong)


def _arguments(overrides: Mapping[str, object], wrong: list[str]) -> _Layer:
    def label(name: str) -> str:
        return f"argument {name}"

    return _Layer(_plain(nest(_text_only(overrides, label, wrong))), label)


def _from_texts(texts: Mapping[str, str], variables: Mapping[str, str], wrong: list[str]) -> _Layer:
    """Settings from environment variables; an empty variable counts as one that is not set."""

    def label(name: str) -> str:
        setting, bracket, rest = name.partition("[")
        return variables[setting] + bracket + rest

    texts = _text_only(texts, label, wrong)
    return _Layer(nest({name: from_text(name, text) for name, text in texts.items()}), label)


def _text_only(values: Mapping[str, _T], label: Callable[[str], str], wrong: list[str]) -> dict[str, _T]:
    """Without the values that hold bytes which are no text: Python has them as lone surrogates."""
    broken = {name for name, value in values.items() if isinstance(value, str) and _SURROGATE.search(value)}
    wrong += [f"{label(name)}: the value is not UTF-8" for name in sorted(broken)]
    return {name: value for name, value in values.items() if name not in broken}


def _plain(value: Any) -> Any:
    """TOML as JSON has it: a date is a text, and 8000.0 the whole number that it is."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
        case date() | time():
            return value.isoformat()
        case _:
            return value


def _read_secrets(given: Table, label: Callable[[str], str], wrong: list[str]) -> None:
    """Take a secret from the file that `<key>_file` names."""
    for name in filter(is_secret, settings()):
        file = given.get(f"{name}_file")
        if not file or not isinstance(file, str) or not FORMATS["path"].valid(file):
            continue
        where = label(f"{name}_file")
        if given.get(name):
            wrong.append(f"{where}: {name} is set as well; keep one of them")
            continue
        try:
            given[name] = Path(file).expanduser().read_text("utf-8").strip()
        except OSError as error:
            wrong.append(f"{where}: {file} cannot be read: {error.strerror}")
        except RuntimeError:
            wrong.append(f"{where}: {file} is in no home folder that is known")
        except UnicodeDecodeError:
            wrong.append(f"{where}: {file} is not UTF-8 text")
        else:
            if not given[name]:
                wrong.append(f"{where}: {file} is empty; it has to hold the secret")


def _settle(values: Table, environ: Mapping[str, str], wrong: list[str]) -> None:
    """From the settings as people write them to those that the server reads."""
    if not values["server.listen"]:
        values["server.listen"] = [format_address(Address(values["server.host"], values["server.port"]))]
    values["server.base_path"] = values["server.base_path"].rstrip("/")
    backend, _, path = values["storage.url"].partition(":")
    if not backend:
        backend, path = values["storage.backend"], values["storage.path"]
        values["storage.url"] = f"{backend}:"
    if backend in _DEFAULT_STORE:
        place = Path(path or _data_folder(environ) / _DEFAULT_STORE[backend])
        values["storage.url"] = f"{backend}:{_absolute('storage', place, wrong)}"
    for name, other in (("server.tls.cert", "server.tls.key"), ("server.tls.key", "server.tls.cert")):
        if values[name]:
            values[name] = _absolute(name, Path(values[name]), wrong)
        elif values[other]:
            wrong.append(f"{name}: is not set, but {other} is; HTTPS needs both")
    if folder := values["apis.collections.schemas"]:
        values["apis.collections.schemas"] = _absolute("apis.collections.schemas", Path(folder), wrong)
    if not values["apis.sessions.output_folder"]:
        values["apis.sessions.output_folder"] = str(_data_folder(environ) / "sessions")
    if "sessions" in values["apis.enabled"]:  # else a machine without home folders need not name any
        for name in ("apis.sessions.output_folder", "apis.sessions.transcript_root"):
            values[name] = _absolute(name, Path(values[name]), wrong)
    if values["apis.sessions.apns.key"]:
        wrong += [
            f"apis.sessions.apns.{name}: is not set, but the key is; pushing to Apple needs both"
            for name in ("key_id", "team_id", "topic")
            if not values[f"apis.sessions.apns.{name}"]
        ]
    values["collections"] = [
        _settle_collection(f"collections[{place}]", table, wrong) for place, table in enumerate(values["collections"])
    ]
    for name, rule in settings().items():
        if values[name] == "" == rule["default"]:
            values[name] = None


def _settle_collection(setting: str, table: Table, wrong: list[str]) -> Table:
    paths = {key: _absolute(f"{setting}.{key}", Path(table[key]), wrong) for key in ("schema", "seed") if key in table}
    return table | paths


def _absolute(setting: str, path: Path, wrong: list[str]) -> str:
    """A path wherever the server is started from, with ~ replaced."""
    try:
        return str(path.expanduser().absolute())
    except RuntimeError:  # pathlib's, about ~
        wrong.append(f"{setting}: {path} is in no home folder that is known; give an absolute path")
        return str(path)


def _data_folder(environ: Mapping[str, str]) -> Path:
    """Where the user's programs keep their data (XDG Base Directory, Apple's File System Basics)."""
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/Homeport")
    home = environ.get("XDG_DATA_HOME", "")
    return Path(home if home.startswith("/") else "~/.local/share", "homeport")  # relative ones are invalid


def _decode(kind: type, value: Any) -> Secret:
    """What msgspec does not know: a secret is the one such type."""
    return Secret(value)
