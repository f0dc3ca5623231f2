"""From layers of settings to a `Config`: later ones win, defaults and relative paths are settled."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..formats import Address, format_address
from .layers import read_layers
from .settings import Table, defaults, nest, settings
from .structures import Config, Secret

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
    for given in read_layers(file, environ, overrides or {}, wrong):
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
