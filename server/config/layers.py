"""Where settings come from: the TOML file, environment variables, arguments; and the files that hold secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..formats import FORMATS
from .settings import Table, flatten, from_text, is_secret, nearest, nest, problems, settings

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


class _Layer(NamedTuple):
    """One source of settings; ``label`` says where the user finds a setting in it."""

    table: Table
    label: Callable[[str], str]


def read_layers(
    file: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
    arguments: Mapping[str, object],
    wrong: list[str],
) -> list[Table]:
    """The settings that each source gives, by name, the weakest source first; ``wrong`` takes a line for each error."""
    layers = (_file(file, wrong), _legacy(environ, wrong), _environment(environ, wrong), _arguments(arguments, wrong))
    return [_checked(layer, wrong) for layer in layers]


def _checked(layer: _Layer, wrong: list[str]) -> Table:
    wrong += problems(layer.table, layer.label)
    given = flatten(layer.table)
    _read_secrets(given, layer.label, wrong)
    return given


def _file(path: str | os.PathLike[str] | None, wrong: list[str]) -> _Layer:
    table: Table = {}
    if path is not None:
        import tomllib  # not every server has a file

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


def _arguments(arguments: Mapping[str, object], wrong: list[str]) -> _Layer:
    def label(name: str) -> str:
        return f"argument {name}"

    return _Layer(_plain(nest(_text_only(arguments, label, wrong))), label)


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
