"""HTTPS: the server's own, with real connections, and where it is required (contracts/leaderboard.md, "HTTPS")."""

import asyncio
import json
import os
import signal
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import time_machine
import trustme
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from homeport.server.cli import cli
from homeport.server.errors import ApiError
from homeport.server.operation import Api
from homeport.server.request import Answer as ApiAnswer
from homeport.server.request import ApiRequest

PATIENCE = 20.0
"""Seconds after which a server that does not do what it should has failed."""
EXPIRES = datetime(2031, 6, 30, 12, tzinfo=UTC)

ROOT = trustme.CA()
INTERMEDIATE = ROOT.create_child_ca()


@dataclass
class Pair:
    """The files of a certificate and its key, in a folder of their own."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def environ(self) -> dict[str, str]:
        return {"HOMEPORT_SERVER__TLS__CERT": str(self.cert), "HOMEPORT_SERVER__TLS__KEY": str(self.key)}

    def renew(self, **certificate: Any) -> int:
        """Puts another certificate there, of the intermediate authority; its serial number."""
        issued = INTERMEDIATE.issue_cert("localhost", "127.0.0.1", **certificate)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)
        return load_pem_x509_certificate(self.cert.read_bytes()).serial_number

    def encrypt_key(self, form: PrivateFormat) -> None:
        private = load_pem_private_key(self.key.read_bytes(), None)
        self.key.write_bytes(private.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"hunter2")))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    folder = tmp_path / "tls"
    folder.mkdir()
    pair = Pair(folder)
    pair.renew(not_after=EXPIRES)
    return pair


def client(most: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
    """A client that trusts the root authority and has nothing of the one between."""
    context = ssl.create_default_context()
    context.maximum_version = most
    ROOT.configure_trust(context)
    return context


# The server, as people run it


@dataclass
class Server:
    """A `homeport serve`."""

    process: asyncio.subprocess.Process
    url: str
    stderr: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].partition(":")
        return host, int(port)

    @property
    def events(self) -> list[str]:
        """What was logged, requests aside."""
        lines = [json.loads(line) for line in self.stderr.read_text().splitlines()]
        assert not [line for line in lines if "exception" in line]
        return [line["event"] for line in lines if line["event"] != "request"]

    async def told(self, text: str, times: int = 1) -> None:
        """Waits until the log has said it so often."""
        async with asyncio.timeout(PATIENCE):
            while sum(text in event for event in self.events) < times:
                await asyncio.sleep(0.01)

    async def hang_up(self) -> None:
        """SIGHUP; returns when it was seen to."""
        seen = sum("SIGHUP" in event for event in self.events)
        self.process.send_signal(signal.SIGHUP)
        await self.told("SIGHUP", seen + 1)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def connect(self, context: ssl.SSLContext | None = None) -> "Connection":
        streams = await asyncio.open_connection(*self.address, ssl=context or client(), server_hostname="localhost")
        return Connection(*streams)

    async def get(self, path: str = "/") -> int:
        """The status, on a connection of its own."""
        async with await self.connect() as connection:
            return await connection.get(path)


@dataclass
class Connection:
    """A TLS connection that is kept open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def tls(self) -> ssl.SSLObject:
        found: ssl.SSLObject = self.writer.get_extra_info("ssl_object")
        return found

    @property
    def serial(self) -> int:
        """Of the certificate that the server showed."""
        certificate = self.tls.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)

    async def get(self, path: str = "/") -> int:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return await self.status()

    async def status(self) -> int:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
        await self.reader.readexactly(int(length))
        return int(head.split()[1])

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()


Start = Callable[..., Awaitable[Server]]
HOMEPORT = "from homeport.server.cli import main; main()"


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a server, on a free port and in memory; after some Python, where that is given."""
    processes: list[asyncio.subprocess.Process] = []

    async def run(*arguments: str, python: str = "", **environ: str) -> Server:
        stderr = tmp_path / f"log-{len(processes)}"
        plain = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        with stderr.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", f"{python}\n{HOMEPORT}", "serve", "--storage", "memory:", *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=tmp_path,
                env=plain | {"HOME": str(tmp_path), "HOMEPORT_SERVER__PORT": "0"} | environ,
            )
        processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await process.stdout.readline()).decode()
        return Server(process, line.split()[-1] if line else "", stderr)

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


REPORT = {
    "userKey": "ab" * 32,
    "hostname": "M4x.local",
    "timestamp": "2025-06-03T10:30:00Z",
    "usage": dict.fromkeys(["totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"], 1),
    "sessions": {"total": 1, "active": 1, "averageDuration": 1.0},
    "costs": {"opus": 1, "sonnet": 1, "haiku": 1, "actual": 1},
    "hourlyUsage": [0] * 24,
    "version": "3.0.2",
}


async def test_https_from_start_to_stop(launch: Start, pair: Pair, tmp_path: Path) -> None:
    server = await launch("--ready-file", "url", **pair.environ, HOMEPORT_SERVER__REQUIRE_HTTPS="true")
    assert server.url.startswith("https://127.0.0.1:")
    assert (tmp_path / "url").read_text() == f"{server.url}\n"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client())) as session:
        for _ in range(2):  # on one connection
            async with session.post(f"{server.url}/api/sync", json=REPORT) as answer:
                assert answer.status == 200, await answer.text()
        async with session.get(f"{server.url}/api/history/{REPORT['userKey']}") as answer:
            assert [report["hostname"] for report in (await answer.json())["data"]["reports"]] == ["M4x.local"]
        async with session.get(f"{server.url}/metrics") as answer:  # large enough to be compressed
            assert answer.headers["Content-Encoding"]
            assert "homeport_http_requests_total" in await answer.text()
        assert await server.stop() == 0  # although the client has kept its connection
    assert "tls: 1.3 or later; the certificate is good until 2031-06-30" in server.events
    assert server.events[-3:] == [f"listening on {server.url}", "SIGTERM: stopping", "stopped"]


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        pytest.param({}, ssl.TLSVersion.TLSv1_3, id="1.3 by default"),
        pytest.param({"HOMEPORT_SERVER__TLS__MIN_VERSION": "1.2"}, ssl.TLSVersion.TLSv1_2, id="1.2"),
    ],
)
async def test_the_least_version_of_tls(
    launch: Start, pair: Pair, settings: dict[str, str], least: ssl.TLSVersion
) -> None:
    server = await launch(**pair.environ, **settings)
    async with await server.connect(client()) as connection:
        assert (connection.tls.version(), await connection.get()) == ("TLSv1.3", 200)
    if least is ssl.TLSVersion.TLSv1_2:
        async with await server.connect(client(ssl.TLSVersion.TLSv1_2)) as connection:
            assert (connection.tls.version(), await connection.get()) == ("TLSv1.2", 200)
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await server.connect(client(ssl.TLSVersion.TLSv1_2))


async def test_renewal_under_load_loses_no_request(launch: Start, pair: Pair) -> None:
    server = await launch(**pair.environ)
    statuses: list[int] = []
    serials = set()
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            async with await server.connect() as connection:
                serials.add(connection.serial)
                statuses.extend([await connection.get(), await connection.get()])

    async with await server.connect() as kept:
        before = kept.serial
        workers = [asyncio.create_task(load()) for _ in range(3)]
        renewed = []
        for _ in range(5):
            renewed.append(pair.renew())
            await server.hang_up()
            async with await server.connect() as connection:
                assert (connection.serial, await connection.get()) == (renewed[-1], 200)
        done.set()
        await asyncio.gather(*workers)
        assert (kept.serial, await kept.get()) == (before, 200)
    assert set(statuses) == {200}
    assert serials <= {before, *renewed}


async def test_who_names_no_server_gets_the_new_certificate_as_well(launch: Start, pair: Pair) -> None:
    server = await launch(**pair.environ)
    serial = pair.renew()
    await server.hang_up()
    context = client()
    context.check_hostname = False
    reader, writer = await asyncio.open_connection(*server.address, ssl=context, server_hostname="")
    async with Connection(reader, writer) as connection:
        assert connection.serial == serial


async def test_a_bad_renewal_keeps_the_old_certificate(launch: Start, pair: Pair) -> None:
    server = await launch(**pair.environ)
    async with await server.connect() as connection:
        before = connection.serial
    other_key = pair.key.read_bytes()

    pair.renew()
    pair.key.write_bytes(other_key)
    await server.hang_up()
    pair.cert.write_text("no certificate")
    pair.key.unlink()
    await server.hang_up()

    async with await server.connect() as connection:
        assert (connection.serial, await connection.get()) == (before, 200)
    stays = "SIGHUP: the old certificate stays: server.tls"
    assert [event for event in server.events if "SIGHUP" in event] == [
        f"{stays}.key: {pair.key} is not the key of the certificate in {pair.cert}",
        f"{stays}.cert: {pair.cert} holds no certificate in PEM that can be read; "
        f"server.tls.key: {pair.key} cannot be read: No such file or directory",
    ]
    serial = pair.renew()
    await server.hang_up()
    async with await server.connect() as connection:
        assert connection.serial == serial


async def test_sighup_without_tls_does_no_harm(launch: Start) -> None:
    server = await launch()
    assert server.url.startswith("http://")
    await server.hang_up()
    async with aiohttp.ClientSession() as session, session.get(server.url) as answer:
        assert answer.status == 200
    assert "SIGHUP: there is no certificate to read again" in server.events
    assert await server.stop() == 0


# Clients that do not know how to


HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # where a ClientHello begins (RFC 8446 4.1.2)


async def test_what_is_no_tls_is_closed_without_a_word(launch: Start, pair: Pair) -> None:
    server = await launch(**pair.environ)
    for sent in (HTTP, b"\x00" * 1000, HELLO + b"\xff" * 600):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(sent)
        assert b"HTTP" not in await reader.read()
        writer.close()
    for sent in (b"", HELLO):
        with socket.create_connection(server.address) as connection:
            connection.sendall(sent)
        with socket.create_connection(server.address) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
    distrustful = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        await server.connect(distrustful)
    assert await server.get() == 200
    assert await server.stop() == 0
    assert server.events[-3:] == [f"listening on {server.url}", "SIGTERM: stopping", "stopped"]


async def test_a_handshake_that_does_not_end_is_cut(launch: Start, pair: Pair) -> None:
    server = await launch(
        **pair.environ, python="from homeport.server import tls\ntls.HANDSHAKE_SECONDS, tls.SHUTDOWN_SECONDS = 0.5, 0.2"
    )
    async with asyncio.timeout(PATIENCE):
        silent = [await asyncio.open_connection(*server.address) for _ in range(5)]
        for _, writer in silent:
            writer.write(HELLO)
        assert await server.get() == 200  # meanwhile
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
    assert await server.stop() == 0
    assert server.events[-3:] == [f"listening on {server.url}", "SIGTERM: stopping", "stopped"]


# Stopping


async def test_requests_under_way_are_finished(launch: Start, pair: Pair) -> None:
    server = await launch(**pair.environ)
    body = json.dumps(REPORT).encode()
    head = "POST /api/sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    with socket.create_connection(server.address) as half_open:
        half_open.sendall(HELLO)
        async with await server.connect() as idle, await server.connect() as busy:
            assert await idle.get() == 200
            busy.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            assert (await busy.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            busy.writer.write(body[:-1])
            await busy.writer.drain()
            server.process.terminate()
            await server.told("SIGTERM: stopping")
            with pytest.raises(OSError, match=r"."):
                await server.connect()
            busy.writer.write(body[-1:])
            assert await busy.status() == 200
            assert await server.process.wait() == 0
            assert await idle.reader.read() == b""
    assert server.events[-1] == "stopped"


# Unix sockets stay plain


async def unix_status(path: Path, **headers: str) -> int:
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://localhost/", headers=headers) as answer,
    ):
        return answer.status


@pytest.mark.parametrize(
    ("settings", "plain", "forwarded"),
    [
        pytest.param({}, 200, 200, id="as it is"),
        pytest.param({"HOMEPORT_SERVER__REQUIRE_HTTPS": "true"}, 403, 403, id="https required"),
        pytest.param(
            {
                "HOMEPORT_SERVER__REQUIRE_HTTPS": "true",
                "HOMEPORT_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
                "API_KEY": "hunter4",
            },
            403,
            200,
            id="https required, behind a proxy",
        ),
    ],
)
async def test_unix_sockets_stay_plain(
    launch: Start, pair: Pair, tmp_path: Path, settings: dict[str, str], plain: int, forwarded: int
) -> None:
    server = await launch(**pair.environ, **settings, HOMEPORT_SERVER__LISTEN='["127.0.0.1:0", "unix:web.sock"]')
    await server.told(f"listening on {server.url}, unix:web.sock")
    assert await unix_status(tmp_path / "web.sock") == plain
    assert await unix_status(tmp_path / "web.sock", **{"X-Forwarded-Proto": "https"}) == forwarded
    assert await server.get() == 200


# What keeps it from starting, and what `check` has to say


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, a home, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("HOMEPORT_") or name == "PORT":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--storage", "memory:"], prog_name="homeport", env=environ)


Spoil = Callable[[Pair], object]


def _weak(pair: Pair) -> None:
    # OpenSSL's default security level has no RSA keys under 2048 bits (level 2) or 1024 (level 1).
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509 import CertificateBuilder, Name

    key = rsa.generate_private_key(65537, 1024)
    builder = CertificateBuilder(Name([]), Name([]), key.public_key(), 1, EXPIRES, EXPIRES)
    pair.cert.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


UNUSABLE = [
    pytest.param(lambda p: p.cert.unlink(), ["cert: {cert} cannot be read: No such file or directory"], id="no cert"),
    pytest.param(lambda p: p.key.unlink(), ["key: {key} cannot be read: No such file or directory"], id="no key"),
    pytest.param(
        lambda p: (p.key.unlink(), p.key.mkdir()), ["key: {key} cannot be read: Is a directory"], id="a folder"
    ),
    pytest.param(
        lambda p: (p.cert.unlink(), p.key.unlink()),
        [
            "cert: {cert} cannot be read: No such file or directory",
            "key: {key} cannot be read: No such file or directory",
        ],
        id="neither",
    ),
    pytest.param(
        lambda p: p.cert.write_text("x"), ["cert: {cert} holds no certificate in PEM that can be read"], id="no PEM"
    ),
    pytest.param(
        lambda p: p.cert.write_bytes(p.cert.read_bytes()[:300]),
        ["cert: {cert} holds no certificate in PEM that can be read"],
        id="a torn certificate",
    ),
    pytest.param(
        lambda p: p.cert.rename(p.key),
        [
            "cert: {cert} cannot be read: No such file or directory",
            "key: {key} holds no private key in PEM that can be read",
        ],
        id="a certificate for a key",
    ),
    pytest.param(
        lambda p: p.key.write_bytes(p.key.read_bytes().replace(b"\n", b"\nA", 1)),
        ["key: {key} holds no private key in PEM that can be read"],
        id="a damaged key",
    ),
    pytest.param(
        lambda p: p.key.write_bytes(INTERMEDIATE.issue_cert("x").private_key_pem.bytes()),
        ["key: {key} is not the key of the certificate in {cert}"],
        id="another's key",
    ),
    pytest.param(
        lambda p: p.encrypt_key(PrivateFormat.PKCS8),
        ["key: {key} is protected by a passphrase; give a key without one"],
        id="an encrypted key",
    ),
    pytest.param(
        lambda p: p.encrypt_key(PrivateFormat.TraditionalOpenSSL),
        ["key: {key} is protected by a passphrase; give a key without one"],
        id="an encrypted key, the old way",
    ),
    pytest.param(_weak, ["cert: {cert} cannot be used: ee key too small"], id="a weak key"),
]


@pytest.mark.parametrize(("spoil", "problems"), UNUSABLE)
def test_files_of_no_use(folder: Path, pair: Pair, spoil: Spoil, problems: list[str]) -> None:
    """Nothing is started, and the terminal is not asked for a passphrase."""
    spoil(pair)
    expected = [f"server.tls.{problem.format(cert=pair.cert, key=pair.key)}" for problem in problems]
    result = run("serve", **pair.environ)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == expected
    result = run("check", "--json", **pair.environ)
    found = json.loads(result.stdout)["findings"]
    assert result.exit_code == 1
    assert [finding for finding in found if finding["level"] == "fatal"] == [
        {"level": "fatal", "subject": "tls", "message": problem, "cure": ""} for problem in expected
    ]


@pytest.mark.parametrize(("one", "other"), [("cert", "key"), ("key", "cert")])
@pytest.mark.parametrize("command", ["serve", "check"])
def test_one_without_the_other(folder: Path, pair: Pair, command: str, one: str, other: str) -> None:
    name = f"HOMEPORT_SERVER__TLS__{one.upper()}"
    result = run(command, **{name: pair.environ[name]})
    assert result.exit_code == (2 if command == "serve" else 1)
    assert f"server.tls.{other}: is not set, but server.tls.{one} is; HTTPS needs both" in result.output


def test_files_in_the_home_folder(folder: Path, pair: Pair) -> None:
    environ = {name: f"~/tls/{Path(file).name}" for name, file in pair.environ.items()}
    result = run("check", **environ, HOME=str(folder))
    assert (result.exit_code, "tls            1.3 or later; the certificate is good until" in result.stdout) == (
        0,
        True,
    )


def tls_findings(result: Result) -> list[tuple[str, str, str]]:
    findings = json.loads(result.stdout)["findings"]
    return [(found["level"], found["message"], found["cure"]) for found in findings if found["subject"] == "tls"]


@pytest.mark.parametrize(
    ("now", "level", "message"),
    [
        pytest.param("2031-06-16T11:59:00Z", "ok", "1.3 or later; the certificate is good until 2031-06-30", id="good"),
        pytest.param("2031-06-16T12:01:00Z", "warning", "the certificate expires on 2031-06-30", id="in 14 days"),
        pytest.param("2031-06-30T11:59:00Z", "warning", "the certificate expires on 2031-06-30", id="in a minute"),
        pytest.param(
            "2031-06-30T12:01:00Z", "warning", "the certificate expired on 2031-06-30: clients refuse it", id="expired"
        ),
        pytest.param(
            "1999-12-31T23:59:00Z",
            "warning",
            "the certificate is good only from 2000-01-01 00:00 UTC on",
            id="not yet good",
        ),
    ],
)
def test_check_of_the_certificates_time(folder: Path, pair: Pair, now: str, level: str, message: str) -> None:
    with time_machine.travel(now):
        found = tls_findings(run("check", "--json", **pair.environ))
    renew = f"put another in {pair.cert}, its key in {pair.key}, and send SIGHUP"
    cure = {"ok": "", "warning": "wait, or set the clock" if "only from" in message else renew}[level]
    assert found == [(level, message, cure)]


@pytest.mark.parametrize(("mode", "readable"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)], ids=oct)
def test_check_of_who_reads_the_key(folder: Path, pair: Pair, mode: int, readable: bool) -> None:
    pair.key.chmod(mode)
    found = tls_findings(run("check", "--json", **pair.environ))
    warnings = [
        ("warning", f"every user can read {pair.key}", f"chmod 600 {pair.key}, with the server's user as its owner")
    ]
    assert found[1:] == (warnings if readable else [])


# Where HTTPS is required


REQUIRED = {"server.require_https": True}


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        pytest.param({}, True, id="nothing speaks it"),
        pytest.param({"HOMEPORT_SERVER__TRUSTED_PROXIES": '["10.0.0.1"]'}, False, id="a proxy"),
        pytest.param({"tls": "own"}, False, id="the server"),
        pytest.param({"HOMEPORT_SERVER__REQUIRE_HTTPS": "false"}, False, id="it is not required"),
    ],
)
def test_check_of_https_that_cannot_be_had(folder: Path, pair: Pair, settings: dict[str, str], warned: bool) -> None:
    given = pair.environ if settings.pop("tls", None) else settings
    result = run("check", **{"HOMEPORT_SERVER__REQUIRE_HTTPS": "true", "API_KEY": "hunter4"} | given)
    assert result.exit_code == 0
    assert (
        "warning  require_https  every request is refused (403): nothing here speaks HTTPS" in result.stdout
    ) == warned


def shouting() -> Api:
    """An API with an envelope of its own."""

    def envelope(error: ApiError, _: ApiRequest) -> ApiAnswer:
        return error.answer({"message": error.message, "code": error.code})

    api = Api("leaderboard", envelope)

    @api.post("/v1/sync")
    async def sync(_: ApiRequest) -> object:
        return {}

    @api.get("/v1/user/data")
    async def data(_: ApiRequest) -> object:
        return {}

    return api


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/v1/sync", id="an operation"),
        pytest.param("GET", "/v1/user/data", id="GET"),
        pytest.param("HEAD", "/v1/user/data", id="HEAD"),
        pytest.param("OPTIONS", "/v1/user/data", id="OPTIONS"),
        pytest.param("PUT", "/v1/user/data", id="no such method"),
        pytest.param("GET", "/v1/unknown", id="no such path"),
        pytest.param("GET", "/metrics", id="metrics"),
        pytest.param("GET", "/", id="another's path"),
    ],
)
async def test_plain_http_is_refused_on_every_path(start: Any, method: str, path: str) -> None:
    server = await start([shouting()], REQUIRED)
    answer = await server(method, path)
    assert (answer.status, answer.headers.get("Location")) == (403, None)
    if method != "HEAD" and path.startswith("/v1/"):
        assert answer.json == {"message": "HTTPS is required", "code": "HTTPS_REQUIRED"}
    elif method != "HEAD":
        assert answer.json == {"title": "Forbidden", "status": 403, "detail": "HTTPS is required"}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        pytest.param(["https"], 200, id="https"),
        pytest.param(["HTTPS"], 200, id="any case"),
        pytest.param(["http"], 403, id="http"),
        pytest.param(["https, https"], 200, id="two hops"),
        pytest.param(["https", "https"], 200, id="two headers"),
        pytest.param(["https, http"], 403, id="http to the last proxy"),
        pytest.param(["https", "http"], 403, id="http to the last proxy, in a header of its own"),
        pytest.param(["http, https"], 403, id="http to the first proxy"),
        pytest.param(["https,"], 403, id="an empty value"),
        pytest.param([""], 403, id="empty"),
        pytest.param(["https; x"], 403, id="something else"),
        pytest.param([], 403, id="none"),
    ],
)
async def test_what_a_trusted_proxy_says(start: Any, values: list[str], status: int) -> None:
    server = await start(settings=REQUIRED | {"server.trusted_proxies": ["127.0.0.1"]})
    answer = await server.get("/toy/things/x", headers=[("X-Forwarded-Proto", value) for value in values])
    assert answer.status == status


async def test_forwarded_is_not_read(start: Any) -> None:
    server = await start(settings=REQUIRED | {"server.trusted_proxies": ["127.0.0.1"]})
    assert (await server.get("/toy/things/x", headers={"Forwarded": "proto=https"})).status == 403
