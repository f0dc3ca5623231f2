"""The configuration: where settings come from, which one wins, and what is said of the wrong ones."""

import itertools
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import homeport
from homeport.server.config import LEGACY_NAMES, Config, ConfigError, load_config
from homeport.server.config.settings import defaults, flatten, is_secret, nest, problems, schema, settings

ROOT = Path(homeport.__file__).parent
VARIABLES = {name: f"HOMEPORT_{name.upper().replace('.', '__')}" for name in settings()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a home of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def load(toml: str = "", environ: dict[str, str] | None = None, **overrides: object) -> Config:
    """The configuration of ./homeport.toml with this text, an environment, and arguments (`server__port=…`)."""
    Path("homeport.toml").write_text(toml)
    return load_config(environ=environ or {}, overrides={name.replace("__", "."): v for name, v in overrides.items()})


def wrong(toml: str = "", environ: dict[str, str] | None = None, **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(toml, environ, **overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# The schema, the example and the environment's names


def test_every_setting_has_a_description_of_one_line() -> None:
    rules = dict(settings())
    for section in ("server", "storage", "log", "apis"):
        rules[section] = schema()["properties"][section]
    assert {name for name, rule in rules.items() if not 10 < len(rule["description"]) < 120} == set()
    assert {name for name, rule in rules.items() if not rule["description"].endswith(".")} == set()


def test_defaults_are_right() -> None:
    assert list(problems(nest(defaults()), str)) == []


def test_every_secret_can_be_in_a_file() -> None:
    secrets = [name for name in settings() if is_secret(name)]
    assert secrets == [
        "server.admin_key",
        "apis.console_usage.api_key",
        "apis.leaderboard.slack_signing_secret",
        "apis.sessions.api_key",
        "apis.sessions.apns.key",
        "apis.metering.cron_secret",
        "apis.metering.transcription.api_key",
        "apis.metering.stripe.secret_key",
        "apis.metering.stripe.webhook_secret",
    ]
    assert {name for name in settings() if is_secret(name) and f"{name}_file" not in settings()} == set()


def fields(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from fields(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_structures_have_every_setting() -> None:
    merged = {"storage.backend", "storage.path"}  # become storage.url
    files = {f"{name}_file" for name in settings() if is_secret(name)}
    assert set(fields(Config)) == settings().keys() - merged - files | {"file"}


def test_the_example_has_every_setting_its_default_and_its_explanation() -> None:
    text = (ROOT / "config.example.toml").read_text()
    assert flatten(tomllib.loads(text)) == defaults()
    lines = text.splitlines()
    shown = [line.partition(" = ")[0] for line in lines if " = " in line and not line.startswith("#")]
    assert shown == [name.rpartition(".")[2] for name in settings()]
    explained = [before for before, line in itertools.pairwise(lines) if line.partition(" = ")[0] in shown]
    assert explained == [f"# {rule['description']}" for rule in settings().values()]


def test_the_example_is_the_default() -> None:
    example = ROOT / "config.example.toml"
    assert msgspec.structs.replace(load_config(example, {}), file=None) == load_config(environ={})


def test_the_environment_example_has_every_name_with_an_explanation() -> None:
    checkout = Path(__file__).parents[2]  # a wheel does not have it
    lines = (checkout / ".env.example").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
    assert names == list(LEGACY_NAMES)
    assert [lines[lines.index(f"{line}") - 1][:2] for line in lines if line[:1].isupper()] == ["# "] * len(names)


def test_a_plain_start() -> None:
    config = load_config(environ={})
    assert config.file is None
    assert config.server.listen == ("127.0.0.1:8000",)
    assert config.server.base_path == ""
    assert config.server.public_url is None
    assert config.server.admin_key is None
    assert config.server.shutdown_timeout == 8.0
    assert config.storage.url == f"sqlite:{Path.home()}/.local/share/homeport/homeport.db"
    assert config.apis.enabled == {
        *("console_usage", "device_usage", "leaderboard", "sessions", "metering", "collections"),
    }
    assert config.apis.sessions.output_folder == f"{Path.home()}/.local/share/homeport/sessions"
    assert config.apis.sessions.transcript_root == f"{Path.home()}/.claude/projects"
    assert not config.exposed


# Which file


@pytest.mark.parametrize(
    ("path", "environ", "port"),
    [
        pytest.param(None, {}, 1, id="./homeport.toml"),
        pytest.param(None, {"HOMEPORT_CONFIG": "named.toml"}, 2, id="HOMEPORT_CONFIG"),
        pytest.param("given.toml", {"HOMEPORT_CONFIG": "named.toml"}, 3, id="argument"),
    ],
)
def test_which_file_is_read(path: str | None, environ: dict[str, str], port: int) -> None:
    for number, name in enumerate(["homeport.toml", "named.toml", "given.toml"], 1):
        Path(name).write_text(f"server.port = {number}")
    config = load_config(path, environ)
    assert config.server.port == port
    assert config.file == (path or environ.get("HOMEPORT_CONFIG") or "homeport.toml")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "x.toml: cannot be read: No such file or directory", id="missing"),
        pytest.param(b"port 8000", "x.toml: is not TOML: Expected '=' after a key in a key/value pair", id="syntax"),
        pytest.param(b"a = '\xff'", "x.toml: is not UTF-8, as TOML has to be", id="encoding"),
    ],
)
def test_a_file_that_cannot_be_read(content: bytes | None, problem: str) -> None:
    if content is not None:
        Path("x.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config("x.toml", {})
    assert [line.partition(" (at")[0] for line in caught.value.problems] == [problem]


def test_a_folder_is_no_file() -> None:
    with pytest.raises(ConfigError, match=r"^\.: cannot be read: Is a directory$"):
        load_config(".", {})


# Which setting wins

FILE = "[server]\nport = 1\n[storage]\nurl = 'memory:'\n[log]\nlevel = 'debug'"


@pytest.mark.parametrize(
    ("toml", "environ", "overrides", "port"),
    [
        pytest.param("", {}, {}, 8000, id="default"),
        pytest.param(FILE, {}, {}, 1, id="file"),
        pytest.param(FILE, {"PORT": "2"}, {}, 2, id="legacy name"),
        pytest.param(FILE, {"PORT": "2", VARIABLES["server.port"]: "3"}, {}, 3, id="environment"),
        pytest.param(FILE, {"PORT": "2", VARIABLES["server.port"]: "3"}, {"server__port": 4}, 4, id="argument"),
        pytest.param(FILE, {"PORT": "", VARIABLES["server.port"]: ""}, {}, 1, id="empty variables are not set"),
    ],
)
def test_later_wins(toml: str, environ: dict[str, str], overrides: dict[str, object], port: int) -> None:
    config = load(toml, environ, **overrides)
    assert (config.server.port, config.server.listen) == (port, (f"127.0.0.1:{port}",))


@pytest.mark.parametrize(
    ("toml", "environ", "overrides", "url"),
    [
        pytest.param("[storage]\nbackend = 'memory'", {}, {}, "memory:", id="backend"),
        pytest.param("[storage]\npath = '/d/x.db'", {}, {}, "sqlite:/d/x.db", id="path of the default back end"),
        pytest.param("[storage]\nbackend = 'file'\npath = '/d'", {}, {}, "file:/d", id="backend and path"),
        pytest.param("[storage]\nurl = 'file:/d'\npath = '/e'", {}, {}, "file:/d", id="url instead of both"),
        pytest.param("[storage]\nurl = 'a.b:c'", {}, {}, "a.b:c", id="somebody else's"),
        pytest.param(FILE, {"DATABASE_PATH": "/d/old.db"}, {}, "sqlite:/d/old.db", id="DATABASE_PATH"),
        pytest.param(FILE, {VARIABLES["storage.path"]: "/d/x.db"}, {}, "sqlite:/d/x.db", id="a later path"),
        pytest.param(
            "", {"DATABASE_PATH": "/d/a.db", VARIABLES["storage.backend"]: "memory"}, {}, "memory:", id="HOMEPORT_ wins"
        ),
        pytest.param(
            "", {VARIABLES["storage.backend"]: "memory"}, {"storage__url": "file:/d"}, "file:/d", id="argument wins"
        ),
    ],
)
def test_where_the_data_lives(toml: str, environ: dict[str, str], overrides: dict[str, object], url: str) -> None:
    assert load(toml, environ, **overrides).storage.url == url


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        pytest.param({VARIABLES["storage.path"]: "x.db"}, "sqlite:{cwd}/x.db", id="relative"),
        pytest.param({VARIABLES["storage.url"]: "sqlite:~/x.db"}, "sqlite:{cwd}/home/x.db", id="home"),
        pytest.param({"XDG_DATA_HOME": "/xdg"}, "sqlite:/xdg/homeport/homeport.db", id="XDG_DATA_HOME"),
        pytest.param(
            {"XDG_DATA_HOME": "xdg"}, "sqlite:{cwd}/home/.local/share/homeport/homeport.db", id="XDG, relative: invalid"
        ),
        pytest.param(
            {VARIABLES["storage.backend"]: "file"}, "file:{cwd}/home/.local/share/homeport/files", id="files by default"
        ),
    ],
)
def test_paths_become_absolute(
    environ: dict[str, str], url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert load("", environ).storage.url == url.format(cwd=folder)


def test_the_data_folder_of_macos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert load().storage.url == f"sqlite:{folder}/home/Library/Application Support/Homeport/homeport.db"


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(sys, "platform", "linux")
    unknown = "is in no home folder that is known; give an absolute path"
    storage = f"storage: ~/.local/share/homeport/homeport.db {unknown}"
    assert wrong() == [
        storage,
        f"apis.sessions.output_folder: ~/.local/share/homeport/sessions {unknown}",
        f"apis.sessions.transcript_root: ~/.claude/projects {unknown}",
    ]
    assert wrong("apis.enabled = []") == [storage]


@pytest.mark.parametrize(
    ("toml", "environ", "overrides", "listen"),
    [
        pytest.param("[server]\nhost = '::1'\nport = 0", {}, {}, ("[::1]:0",), id="host and port"),
        pytest.param("[server]\nlisten = ['unix:a', '[::1]:1']", {}, {}, ("unix:a", "[::1]:1"), id="listen"),
        pytest.param("[server]\nport = 5\nlisten = ['a:1']", {}, {}, ("a:1",), id="listen instead of both"),
        pytest.param("server.listen = ['a:1']", {"PORT": "2"}, {}, ("127.0.0.1:2",), id="a later port"),
        pytest.param("server.listen = ['a:1']", {}, {"server__host": "b"}, ("b:8000",), id="a later host"),
    ],
)
def test_where_to_listen(
    toml: str, environ: dict[str, str], overrides: dict[str, object], listen: tuple[str, ...]
) -> None:
    config = load(toml, environ, **overrides)
    assert config.server.listen == listen
    assert len(config.server.addresses) == len(listen)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("server.port", " 80 ", 80),
        ("server.port", "8_000", 8000),
        ("server.shutdown_timeout", "2.5", 2.5),
        ("server.shutdown_timeout", "20", 20.0),
        *[("server.require_https", text, True) for text in ("true", "1", "yes", "on", "TRUE")],
        ("apis.leaderboard.public", "true", True),
        ("apis.leaderboard.public", "auto", "auto"),
        *[("server.require_https", text, False) for text in ("false", "0", "no", "off")],
        ("server.allowed_hosts", '["a.example", "b.example"]', ("a.example", "b.example")),
        ("server.trusted_proxies", "[]", ()),
        ("server.base_path", "/", ""),
        ("server.base_path", "/a/b/", "/a/b"),
        ("apis.enabled", "[]", frozenset()),
        ("apis.device_usage.rate_limit", "5/second", "5/second"),
        ("log.level", "error", "error"),
    ],
)
def test_texts_of_the_environment_get_the_settings_type(name: str, text: str, value: object) -> None:
    found: Any = load("", {VARIABLES[name]: text})
    for key in name.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("toml", ["server.port = 80.0", "[server]\nport = 0x50", "server = {port = 80}"])
def test_toml_in_other_words(toml: str) -> None:
    assert load(toml).server.port == 80


# What is wrong


@pytest.mark.parametrize(
    ("toml", "lines"),
    [
        pytest.param("server.prot = 1", ["server.prot: unknown key; did you mean server.port?"], id="misspelt"),
        pytest.param("port = 1", ["port: unknown key; did you mean server.port?"], id="in no section"),
        pytest.param(
            "[sever]\nport = 1",
            ["sever: unknown key; the file has collections, server, storage, log, apis"],
            id="section",
        ),
        pytest.param(
            "[apis.billing]\npublic = true",
            [
                "apis.billing: unknown key; [apis] has enabled, console_usage, device_usage, leaderboard, sessions,"
                " metering, collections"
            ],
            id="an API that there is not",
        ),
        pytest.param(
            "apis.enabled = ['device_usage', 'billing']",
            [
                'apis.enabled[1]: "billing" is not one of console_usage, device_usage, leaderboard, sessions, metering,'
                " collections"
            ],
            id="a name in a list",
        ),
        pytest.param("[log]\n'a\\nb' = 1", ['log."a\\\\nb": unknown key; [log] has level, format'], id="an odd key"),
        pytest.param("server = 1", ["server: 1 is not a table"], id="no table"),
        pytest.param("server.port = '80'", ['server.port: "80" is not a whole number from 0 to 65535'], id="type"),
        pytest.param("server.port = true", ["server.port: true is not a whole number from 0 to 65535"], id="boolean"),
        pytest.param("server.port = -1", ["server.port: -1 is not a whole number from 0 to 65535"], id="too small"),
        pytest.param("server.port = 65536", ["server.port: 65536 is not a whole number from 0 to 65535"], id="too big"),
        pytest.param("server.port = 1.5", ["server.port: 1.5 is not a whole number from 0 to 65535"], id="fraction"),
        pytest.param(
            "server.port = 2025-06-03", ['server.port: "2025-06-03" is not a whole number from 0 to 65535'], id="date"
        ),
        pytest.param(
            "server.shutdown_timeout = nan", ["server.shutdown_timeout: null is not a number from 1 to 3600"], id="nan"
        ),
        pytest.param("server.require_https = 1", ["server.require_https: 1 is not true or false"], id="no boolean"),
        pytest.param(
            "log.level = 'loud'", ['log.level: "loud" is not one of debug, info, warning, error'], id="choice"
        ),
        pytest.param("log.level = 5", ["log.level: 5 is not one of debug, info, warning, error"], id="choice and type"),
        pytest.param(
            "server.allowed_hosts = 'a'",
            ['server.allowed_hosts: "a" is not a list such as ["sync.example.com"]'],
            id="no list",
        ),
        pytest.param(
            "apis.enabled = 'x'", ['apis.enabled: "x" is not a list such as ["console_usage"]'], id="no names"
        ),
        pytest.param(
            "server.trusted_proxies = ['::1', '10.0.0.1/8']",
            ['server.trusted_proxies[1]: "10.0.0.1/8" is not an address or network such as "10.0.0.0/8"'],
            id="network",
        ),
        pytest.param(
            "server.default_rate_limit = 'many'",
            ['server.default_rate_limit: "many" is not a rate limit such as "600/hour"'],
            id="rate limit",
        ),
        pytest.param(
            "server.host = 'a:1'",
            ['server.host: "a:1" is not an address or host name without a port such as "127.0.0.1"'],
            id="host",
        ),
        pytest.param(
            "server.listen = ['8000']",
            ['server.listen[0]: "8000" is not HOST:PORT or unix:PATH such as "[::1]:8000"'],
            id="address",
        ),
        pytest.param(
            "server.public_url = 'sync.example.com'",
            ['server.public_url: "sync.example.com" is not an http or https URL such as "https://sync.example.com"'],
            id="URL",
        ),
        pytest.param(
            "server.cors_origins = ['*']",
            ['server.cors_origins[0]: "*" is not an origin, without a path such as "https://app.example.com"'],
            id="origin",
        ),
        pytest.param("server.base_path = 'x'", ['server.base_path: "x" is not a path such as "/homeport"'], id="base"),
        pytest.param(
            "storage.url = 'postgresql://me:hunter2@db/x'",
            [
                'storage.url: "postgresql://…@db/x" is not memory:, file:PATH, sqlite:PATH or package.module:factory'
                " (postgresql: is not available in this version)"
            ],
            id="PostgreSQL",
        ),
        pytest.param(
            "storage.backend = 'postgres'",
            ['storage.backend: "postgres" is not one of memory, file, sqlite'],
            id="backend",
        ),
        pytest.param("server.admin_key = 12345", ["server.admin_key: the value is not a text"], id="secret"),
        pytest.param(
            f"log.level = '{'x' * 100}'",
            [f'log.level: "{"x" * 59}… is not one of debug, info, warning, error'],
            id="a long value is cut",
        ),
        pytest.param(
            "server.port = 'a'\nserver.hots = 'b'\nlog.level = 'c'\napis.device_usage.max_users = 0",
            [
                'server.port: "a" is not a whole number from 0 to 65535',
                "server.hots: unknown key; did you mean server.host?",
                'log.level: "c" is not one of debug, info, warning, error',
                "apis.device_usage.max_users: 0 is not a whole number from 1 to 9007199254740991",
            ],
            id="all at once",
        ),
    ],
)
def test_wrong_files(toml: str, lines: list[str]) -> None:
    assert sorted(wrong(toml)) == sorted(f"homeport.toml: {line}" for line in lines)


@pytest.mark.parametrize(
    ("environ", "lines"),
    [
        pytest.param({"PORT": "http"}, ['PORT: "http" is not a whole number from 0 to 65535'], id="legacy name"),
        pytest.param(
            {"HOMEPORT_SERVER__PORT": "70000"},
            ["HOMEPORT_SERVER__PORT: 70000 is not a whole number from 0 to 65535"],
            id="range",
        ),
        pytest.param(
            {"HOMEPORT_SERVER__ALLOWED_HOSTS": "a.example,b.example"},
            ['HOMEPORT_SERVER__ALLOWED_HOSTS: "a.example,b.example" is not a list such as ["sync.example.com"]'],
            id="list that is no JSON",
        ),
        pytest.param(
            {"HOMEPORT_SERVER__ALLOWED_HOSTS": '["a.example", 5]'},
            [
                "HOMEPORT_SERVER__ALLOWED_HOSTS[1]: 5 is not a host name or address without scheme and port"
                ' such as "sync.example.com"'
            ],
            id="list of other things",
        ),
        pytest.param(
            {"HOMEPORT_SERVER__REQUIRE_HTTPS": "maybe"},
            ['HOMEPORT_SERVER__REQUIRE_HTTPS: "maybe" is not true or false'],
            id="boolean",
        ),
        pytest.param(
            {"HOMEPORT_SERVER__PROT": "1"},
            ["HOMEPORT_SERVER__PROT: unknown setting; did you mean HOMEPORT_SERVER__PORT?"],
            id="misspelt",
        ),
        pytest.param(
            {"HOMEPORT_SERVER_PORT": "1"},
            ["HOMEPORT_SERVER_PORT: unknown setting; did you mean HOMEPORT_SERVER__PORT?"],
            id="one underscore",
        ),
        pytest.param(
            {"HOMEPORT_QQQ__ZZZ": "1"},
            ["HOMEPORT_QQQ__ZZZ: unknown setting; `homeport example-config` prints all of them"],
            id="unlike any",
        ),
        pytest.param(
            {"DATABASE_URL": "postgresql://me:hunter2@db/x"},
            ["DATABASE_URL: PostgreSQL is not available in this version; unset it, and see storage.url"],
            id="DATABASE_URL",
        ),
        pytest.param(
            {"REDIS_URL": "redis://x"}, ["REDIS_URL: Redis is not available in this version; unset it"], id="REDIS_URL"
        ),
        pytest.param(
            {"DATABASE_PATH": "/d/x.db", "DATABASE_URL": "postgresql://db/x"},
            [
                "DATABASE_PATH, DATABASE_URL: both are set; keep the one that says where the data lives",
                "DATABASE_URL: PostgreSQL is not available in this version; unset it, and see storage.url",
            ],
            id="two databases",
        ),
        pytest.param(
            {"HOMEPORT_STORAGE__PATH": "/\udcff"}, ["HOMEPORT_STORAGE__PATH: the value is not UTF-8"], id="no text"
        ),
        pytest.param(
            {"PORT": "a", "HOMEPORT_SERVER__PORT": "b", "HOMEPORT_LOG__LEVEL": "c"},
            [
                'PORT: "a" is not a whole number from 0 to 65535',
                'HOMEPORT_SERVER__PORT: "b" is not a whole number from 0 to 65535',
                'HOMEPORT_LOG__LEVEL: "c" is not one of debug, info, warning, error',
            ],
            id="all at once",
        ),
    ],
)
def test_wrong_environments(environ: dict[str, str], lines: list[str]) -> None:
    assert sorted(wrong("", environ)) == sorted(lines)


@pytest.mark.parametrize(
    "name", ["HOMEPORT_CONFIG", "HOMEPORT_SESSION_ID", "HOMEPORT_VERSION", "PORTS", "XHOMEPORT_A__B"]
)
def test_other_variables_are_nobodys_business(name: str) -> None:
    load("", {name: "homeport.toml"})


def test_wrong_arguments() -> None:
    assert sorted(wrong(server__port=70000, storage__url="\udcff", log__levle="x")) == [
        "argument log.levle: unknown key; did you mean log.level?",
        "argument server.port: 70000 is not a whole number from 0 to 65535",
        "argument storage.url: the value is not UTF-8",
    ]


def test_problems_of_all_sources_are_told_together() -> None:
    found = wrong("server.port = 'a'", {"PORT": "b"}, server__port="c")
    assert [line.partition(": ")[0] for line in found] == ["homeport.toml", "PORT", "argument server.port"]


NAMES = st.sampled_from(sorted(settings()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a:1", "memory:", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(overrides=st.dictionaries(NAMES, VALUES), environ=st.dictionaries(NAMES.map(VARIABLES.__getitem__), st.text()))
def test_nothing_gives_another_error(overrides: dict[str, object], environ: dict[str, str]) -> None:
    found = None
    try:
        load_config(environ=environ, overrides=overrides)
    except ConfigError as error:
        found = error.problems
    assert found is None or {len(line.splitlines()) for line in found} == {1}


# Secrets

KEY = "correct horse battery staple"


def test_a_secret_shows_nowhere() -> None:
    config = load("", {"ADMIN_KEY": KEY})
    secret = config.server.admin_key
    assert secret is not None
    assert secret.reveal() == KEY
    for shown in (repr(config), str(config), f"{secret}", f"{secret!r:>40}", "%s" % secret, repr([secret])):  # noqa: UP031
        assert "Secret(…)" in shown
        assert "horse" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(config)
    with pytest.raises(TypeError):
        json.dumps(msgspec.structs.asdict(config.server))


@pytest.mark.parametrize(
    ("toml", "environ", "key"),
    [
        pytest.param("server.admin_key = 'a'", {}, "a", id="file"),
        pytest.param("server.admin_key = ''", {}, None, id="empty is not set"),
        pytest.param("server.admin_key_file = 'key'", {}, "from the file", id="in a file"),
        pytest.param(
            "server.admin_key = 'a'", {"HOMEPORT_SERVER__ADMIN_KEY_FILE": "key"}, "from the file", id="later file"
        ),
        pytest.param("server.admin_key_file = 'key'", {"ADMIN_KEY": "b"}, "b", id="later value"),
        pytest.param("", {"ADMIN_KEY": "b", "HOMEPORT_SERVER__ADMIN_KEY": "c"}, "c", id="HOMEPORT_ wins"),
        pytest.param("server.admin_key_file = '~/key'", {}, "at home", id="at home"),
    ],
)
def test_where_a_secret_comes_from(toml: str, environ: dict[str, str], key: str | None) -> None:
    Path("key").write_text("from the file\n")
    Path("home").mkdir()
    Path("home/key").write_text("at home")
    secret = load(toml, environ).server.admin_key
    assert (secret and secret.reveal()) == key


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        pytest.param(
            "admin_key_file = 'none'",
            "server.admin_key_file: none cannot be read: No such file or directory",
            id="missing",
        ),
        pytest.param(
            "admin_key_file = 'empty'", "server.admin_key_file: empty is empty; it has to hold the secret", id="empty"
        ),
        pytest.param(
            "admin_key_file = '~nobody.there/key'",
            "server.admin_key_file: ~nobody.there/key is in no home folder that is known",
            id="nobody's home",
        ),
        pytest.param("admin_key_file = 'bytes'", "server.admin_key_file: bytes is not UTF-8 text", id="no text"),
        pytest.param(
            'admin_key_file = "a\\u0000b"',
            'server.admin_key_file: "a\\u0000b" is not a path without control characters such as "data/homeport.db"',
            id="no path",
        ),
        pytest.param(
            "admin_key = 'a'\nadmin_key_file = 'empty'",
            "server.admin_key_file: server.admin_key is set as well; keep one of them",
            id="both",
        ),
    ],
)
def test_secret_files_that_are_wrong(toml: str, line: str) -> None:
    Path("empty").write_text("\n")
    Path("bytes").write_bytes(b"\xff")
    assert wrong(f"[server]\n{toml}") == [f"homeport.toml: {line}"]


# Exposed or not


@pytest.mark.parametrize(
    ("toml", "exposed_by"),
    [
        pytest.param("", (), id="default"),
        pytest.param("host = 'localhost'", (), id="localhost"),
        pytest.param("host = '::1'", (), id="IPv6 loopback"),
        pytest.param("host = '127.9.9.9'", (), id="another loopback address"),
        pytest.param("listen = ['unix:a.sock']", (), id="Unix socket"),
        pytest.param("public_url = 'http://localhost:8000'", (), id="public on loopback"),
        pytest.param("public_url = 'http://[::1]:8000/x'", (), id="public on IPv6 loopback"),
        pytest.param("allowed_hosts = ['app.localhost', '127.0.0.1']", (), id="loopback names"),
        pytest.param("cors_origins = ['https://app.example.com']", (), id="origins expose nothing"),
        pytest.param("host = '0.0.0.0'", ("it listens on 0.0.0.0:8000",), id="everywhere"),
        pytest.param("host = '::'", ("it listens on [::]:8000",), id="everywhere, IPv6"),
        pytest.param("host = 'server.lan'", ("it listens on server.lan:8000",), id="a name"),
        pytest.param("listen = ['[::1]:1', '10.0.0.1:1']", ("it listens on 10.0.0.1:1",), id="one of several"),
        pytest.param(
            "public_url = 'https://sync.example.com/x'",
            ("server.public_url is https://sync.example.com/x",),
            id="public_url",
        ),
        pytest.param(
            "allowed_hosts = ['localhost', 'a.example']", ("server.allowed_hosts has a.example",), id="allowed_hosts"
        ),
        pytest.param("trusted_proxies = ['127.0.0.1']", ("server.trusted_proxies is set",), id="a proxy, even here"),
        pytest.param(
            "host = '10.0.0.1'\ntrusted_proxies = ['10.0.0.2']",
            ("it listens on 10.0.0.1:8000", "server.trusted_proxies is set"),
            id="two reasons",
        ),
    ],
)
def test_exposed(toml: str, exposed_by: tuple[str, ...]) -> None:
    config = load(f"[server]\n{toml}")
    assert config.exposed_by == exposed_by
    assert config.exposed is bool(exposed_by)


# What it costs


def test_loading_imports_nothing_heavy() -> None:
    script = "import sys; from homeport.server.config import load_config; load_config(environ={}); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert {"aiohttp", "limits", "jsonschema", "structlog", "click", "sqlite3"}.isdisjoint(modules)
