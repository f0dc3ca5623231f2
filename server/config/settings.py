"""schemas/config.json, read: the settings by name, their defaults, and what is wrong with a table of values.

A setting's name is dotted, `apis.device_usage.rate_limit`; tables of values are nested, as TOML gives them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ..formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jsonschema_rs import Draft202012Validator

Schema = dict[str, Any]
Table = dict[str, Any]

_SCHEMA_FILE = Path(__file__).parents[2] / "schemas" / "config.json"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML's
_CREDENTIALS = re.compile(r"(?<=//)[^/]*@")
_SHOWN = 60  # characters of a wrong value
_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


@cache
def schema() -> Schema:
    """The whole schema."""
    loaded: Schema = msgspec.json.decode(_SCHEMA_FILE.read_bytes())
    return loaded


@cache
def settings() -> dict[str, Schema]:
    """Every setting's own schema, by its name."""
    return dict(_leaves(schema(), ()))


def defaults() -> Table:
    """Every setting's default, by its name."""
    return {name: rule["default"] for name, rule in settings().items()}


def is_secret(name: str) -> bool:
    """Whether a setting's value must never be shown; it can also be given as `<name>_file`."""
    return bool(settings()[name].get("writeOnly"))


def flatten(table: Table) -> Table:
    """The settings that a nested table has, by name; what the schema does not know is left out."""
    found = {}
    for name in settings():
        value: object = table
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def nest(values: Mapping[str, object]) -> Table:
    """The reverse of `flatten`."""
    table: Table = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return table


def from_text(name: str, text: str) -> object:
    """What an environment variable says, in the setting's type; the text itself where it is none."""
    try:
        match settings()[name]["type"]:
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "boolean" | ["boolean", "string"]:
                return _BOOLEANS.get(text.strip().lower(), text)
            case "array":
                return msgspec.json.decode(text)
            case _:
                return text
    except ValueError:
        return text


def problems(table: Table, label: Callable[[str], str]) -> Iterator[str]:
    """What is wrong with a nested table, a line each; ``label`` says where the user finds a setting."""
    told = set()
    for error in _validator().iter_errors(table):
        rule, name = _rule(error.instance_path), _name(error.instance_path)
        if error.schema_path[-1] == "additionalProperties":
            for key in sorted(set(cast("Table", error.instance)).difference(rule["properties"])):
                unknown = _name([*error.instance_path, key])
                yield f"{label(unknown)}: unknown key; {_hint(unknown, name, rule)}"
        elif error.schema_path[-1] == "required":
            missing = cast("str", error.kind.value)
            yield f"{label(f'{name}.{missing}')}: is not set; it has to be {_expected(rule['properties'][missing])}"
        elif name not in told:  # once, however many keywords it fails
            told.add(name)
            yield f"{label(name)}: {_show(error.instance, rule)} is not {_expected(rule)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Which of the known names was probably meant: nearly the same spelling, or the same key elsewhere."""
    import difflib  # for a mistake

    names = list(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
        return close[0]
    key = name.rpartition(".")[2]
    return next((candidate for candidate in names if candidate.rpartition(".")[2] == key), None)


def _leaves(rule: Schema, path: tuple[str, ...]) -> Iterator[tuple[str, Schema]]:
    for key, inner in rule["properties"].items():
        if inner["type"] == "object":
            yield from _leaves(inner, (*path, key))
        else:
            yield ".".join((*path, key)), inner


@cache
def _validator() -> Draft202012Validator:
    import jsonschema_rs

    formats = {name: form.valid for name, form in FORMATS.items()}
    return jsonschema_rs.Draft202012Validator(schema(), validate_formats=True, formats=formats)


def _rule(path: Iterable[str | int]) -> Schema:
    rule = schema()
    for step in path:
        rule = rule["items"] if isinstance(step, int) else rule["properties"][step]
    return rule


def _name(path: Iterable[str | int]) -> str:
    name = ""
    for step in path:
        if isinstance(step, int):
            name += f"[{step}]"
        else:
            name += f".{step}" if _BARE_KEY.fullmatch(step) else f".{_show(step, {})}"
    return name.removeprefix(".")


def _show(value: object, rule: Schema) -> str:
    """A wrong value as one short line, with no secret in it."""
    if rule.get("writeOnly"):
        return "the value"
    text = _CREDENTIALS.sub("…@", msgspec.json.encode(value).decode())
    text = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _expected(rule: Schema) -> str:
    """What a value of this schema looks like, to complete "… is not"."""
    if "format" in rule:
        form = FORMATS[rule["format"]]
        return f'{form.what} such as "{form.example}"' if form.example else form.what
    if "enum" in rule:
        return "one of " + ", ".join(value if isinstance(value, str) else str(value).lower() for value in rule["enum"])
    match rule["type"]:
        case "integer":
            return f"a whole number from {rule['minimum']} to {rule['maximum']}"
        case "number":
            return f"a number from {rule['minimum']} to {rule['maximum']}"
        case "boolean":
            return "true or false"
        case "array":
            items = rule["items"]
            if items["type"] == "object":
                return "a list of tables"
            example = FORMATS[items["format"]].example if "format" in items else items["enum"][0]
            return f'a list such as ["{example}"]'
        case "object":
            return "a table"
        case _:
            return "a text"


def _hint(unknown: str, section: str, rule: Schema) -> str:
    if "[" in section:  # a table in a list
        name = section.partition("[")[0]
        if meant := nearest(unknown.replace(section, name), [f"{name}.{key}" for key in rule["properties"]]):
            return f"did you mean {section}{meant.removeprefix(name)}?"
        section = f"[{name}]"
    elif meant := nearest(unknown, settings()):
        return f"did you mean {meant}?"
    return f"{f'[{section}]' if section else 'the file'} has {', '.join(rule['properties'])}"
