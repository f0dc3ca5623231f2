"""Who calls: the client's address, loopback callers, and the keys that are presented."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from homeport.server.auth import same_secret
from homeport.server.clients import Client, Clients
from homeport.server.config import Secret

SECRET = {"Authorization": "Bearer correct horse"}


class Peer:
    """A transport whose other end has an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._address, 50000) if name == "peername" and self._address else default

    def is_closing(self) -> bool:
        return False


def identify(peer: str, headers: dict[str, str], proxies: tuple[str, ...] = ()) -> Client:
    transport: Any = Peer(peer)
    return Clients(proxies).identify(make_mocked_request("GET", "/", headers=headers, transport=transport))


PROXIES = ("10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48")


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "client"),
    [
        pytest.param("127.0.0.1", None, (), ("127.0.0.1", "127.0.0.1", True), id="loopback"),
        pytest.param("::1", None, (), ("::1", "::/64", True), id="loopback v6"),
        pytest.param("::ffff:127.0.0.1", None, (), ("127.0.0.1", "127.0.0.1", True), id="mapped loopback"),
        pytest.param("", None, (), ("unix", "unix", True), id="unix socket"),
        pytest.param("", "198.51.100.7", (), ("unix", "unix", False), id="unix socket, forwarded"),
        pytest.param("", "198.51.100.7", PROXIES, ("198.51.100.7", "198.51.100.7", False), id="proxy on a unix socket"),
        pytest.param("192.0.2.1", None, (), ("192.0.2.1", "192.0.2.1", False), id="v4"),
        pytest.param("::ffff:192.0.2.1", None, (), ("192.0.2.1", "192.0.2.1", False), id="mapped v4"),
        pytest.param("2001:db8::5:6", None, (), ("2001:db8::5:6", "2001:db8::/64", False), id="v6"),
        pytest.param("fe80::1%eth0", None, PROXIES, ("fe80::1%eth0", "fe80::/64", False), id="v6 with a zone"),
        pytest.param("192.0.2.1", "198.51.100.7", (), ("192.0.2.1", "192.0.2.1", False), id="nobody trusts it"),
        pytest.param("127.0.0.1", "198.51.100.7", (), ("127.0.0.1", "127.0.0.1", False), id="not loopback any more"),
        pytest.param("192.0.2.1", "198.51.100.7", PROXIES, ("192.0.2.1", "192.0.2.1", False), id="not a proxy"),
        pytest.param("10.0.0.1", "198.51.100.7", PROXIES, ("198.51.100.7", "198.51.100.7", False), id="a proxy"),
        pytest.param("10.0.0.1", "127.0.0.1", PROXIES, ("127.0.0.1", "127.0.0.1", False), id="forged loopback"),
        pytest.param(
            "10.0.0.1",
            "1.1.1.1, 198.51.100.7 , 10.9.9.9",
            PROXIES,
            ("198.51.100.7", "198.51.100.7", False),
            id="right-most untrusted",
        ),
        pytest.param("10.0.0.1", "10.0.0.3,10.0.0.2", PROXIES, ("10.0.0.3", "10.0.0.3", False), id="all trusted"),
        pytest.param("10.0.0.1", "198.51.100.7:1234", PROXIES, ("198.51.100.7", "198.51.100.7", False), id="with port"),
        pytest.param(
            "10.0.0.1", "[2001:db8::7]:1234", PROXIES, ("2001:db8::7", "2001:db8::/64", False), id="v6 with port"
        ),
        pytest.param("2001:db8:1::1", "2001:db8::7", PROXIES, ("2001:db8::7", "2001:db8::/64", False), id="v6 proxy"),
        pytest.param("10.0.0.1", "198.51.100.7, unknown", PROXIES, ("10.0.0.1", "10.0.0.1", False), id="unknown"),
        pytest.param("10.0.0.1", "evil, 10.0.0.2", PROXIES, ("10.0.0.2", "10.0.0.2", False), id="garbage"),
        pytest.param("10.0.0.1", "", PROXIES, ("10.0.0.1", "10.0.0.1", False), id="empty"),
        pytest.param("10.0.0.1", None, PROXIES, ("10.0.0.1", "10.0.0.1", False), id="none"),
    ],
)
def test_client_address(
    peer: str, forwarded: str | None, proxies: tuple[str, ...], client: tuple[str, str, bool]
) -> None:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert identify(peer, headers, proxies) == client


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255)))
def test_a_forwarded_header_never_makes_a_loopback_caller(text: str) -> None:
    client = identify("127.0.0.1", {"X-Forwarded-For": text}, PROXIES)
    assert not client.loopback


@pytest.mark.parametrize(
    ("name", "loopback"),
    [
        ("Forwarded", False),
        ("X-Forwarded-For", False),
        ("X-FORWARDED-PROTO", False),
        ("X-Forwarded-Host", False),
        ("x-forwarded-anything", False),
        ("Via", True),
        ("X-Forward", True),
    ],
)
def test_who_comes_through_a_proxy_is_no_loopback_caller(name: str, loopback: bool) -> None:
    assert identify("127.0.0.1", {name: "x"}).loopback is loopback


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Authorization": "Bearer correct horse"}, 200, id="bearer"),
        pytest.param({"Authorization": "bearer  correct horse "}, 200, id="any case, blanks"),
        pytest.param({"X-API-Key": "correct horse"}, 200, id="X-API-Key"),
        pytest.param({"Authorization": "Basic x", "X-API-Key": "correct horse"}, 200, id="another scheme beside it"),
        pytest.param({"Authorization": "Bearer wrong", "X-API-Key": "correct horse"}, 401, id="bearer counts first"),
        pytest.param({"Authorization": "Bearer correct"}, 401, id="part"),
        pytest.param({"Authorization": "Bearer CORRECT HORSE"}, 401, id="other case"),
        pytest.param({"Authorization": "correct horse"}, 401, id="no scheme"),
        pytest.param({"Authorization": "Bearer"}, 401, id="nothing"),
        pytest.param({"Authorization": "Bearer é\U0001f600"}, 401, id="not ASCII"),
        pytest.param({"X-API-Key": ""}, 401, id="empty"),
        pytest.param({}, 401, id="none"),
    ],
)
async def test_keys(toy: Any, headers: dict[str, str], status: int) -> None:
    answer = await toy.get("/toy/secret", headers=headers)
    assert answer.status == status
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json["detail"] == "Missing or invalid credentials"


@pytest.mark.parametrize("presented", [None, "", " ", "None"], ids=repr)
def test_an_unset_secret_is_never_presented(presented: str | None) -> None:
    assert not same_secret(presented, None)


@given(st.text(), st.text(min_size=1))
def test_secrets_are_the_same_or_not(presented: str, secret: str) -> None:
    assert same_secret(presented, Secret(secret)) == (presented == secret)


async def test_a_key_that_is_not_utf8_is_refused(toy: Any) -> None:
    head = b"GET /toy/secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
    assert (await toy.raw(head)).startswith(b"HTTP/1.1 401 ")


ADMIN = {"server.admin_key": "open sesame"}
PROXIED = {"X-Forwarded-For": "198.51.100.7"}


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param({}, {}, 200, id="loopback caller"),
        pytest.param(ADMIN, {}, 200, id="loopback caller, key set"),
        pytest.param(ADMIN, {"X-API-Key": "open sesame"}, 200, id="loopback caller with the key"),
        pytest.param(ADMIN, {"X-API-Key": "wrong"}, 401, id="a wrong key is refused from anywhere"),
        pytest.param({}, PROXIED, 401, id="others, no key set"),
        pytest.param({}, PROXIED | {"X-API-Key": "None"}, 401, id="an unset key is not None"),
        pytest.param(ADMIN, PROXIED, 401, id="others without the key"),
        pytest.param(ADMIN, PROXIED | {"X-API-Key": "wrong"}, 401, id="others with a wrong key"),
        pytest.param(ADMIN, PROXIED | {"X-API-Key": "open sesame"}, 200, id="others with the key"),
        pytest.param(ADMIN, PROXIED | {"Authorization": "Bearer open sesame"}, 200, id="as a bearer"),
    ],
)
async def test_metrics_are_for_loopback_and_the_admin(
    start: Any, settings: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    server = await start(settings=settings)
    answer = await server.get("/metrics", headers=headers)
    assert answer.status == status
    assert (b"homeport_http" in answer.content) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "proxies", "status"),
    [
        pytest.param({}, ["10.0.0.0/8"], 403, id="plain"),
        pytest.param({"X-Forwarded-Proto": "https"}, ["127.0.0.1"], 200, id="through a proxy"),
        pytest.param({"X-Forwarded-Proto": "http"}, ["127.0.0.1"], 403, id="plain through a proxy"),
        pytest.param({"X-Forwarded-Proto": "https"}, ["10.0.0.0/8"], 403, id="nobody trusts it"),
        pytest.param({"X-Forwarded-Proto": "https"}, [], 403, id="there is no proxy"),
    ],
)
async def test_require_https(start: Any, headers: dict[str, str], proxies: list[str], status: int) -> None:
    server = await start(settings={"server.require_https": True, "server.trusted_proxies": proxies})
    answer = await server.get("/toy/things/x", headers=headers)
    assert answer.status == status
    if status == 403:
        assert answer.json["detail"] == "HTTPS is required"


async def test_guessing_is_limited(start: Any) -> None:
    """Ten failures a minute and address; then not even the right key is looked at."""
    toy = await start(settings={"server.trusted_proxies": ["127.0.0.1"]})
    wrong = {"X-Forwarded-For": "198.51.100.7", "Authorization": "Bearer wrong"}
    right = wrong | SECRET
    for attempt in range(10):
        assert (await toy.get("/toy/secret", headers=wrong)).status == 401, attempt
    for headers in (wrong, right):
        answer = await toy.get("/toy/secret", headers=headers)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
    assert (await toy.get("/toy/secret", headers=right | {"X-Forwarded-For": "198.51.100.8"})).status == 200
    toy.clock.advance(59)
    assert (await toy.get("/toy/secret", headers=right)).headers["Retry-After"] == "1"
    toy.clock.advance(1)
    assert (await toy.get("/toy/secret", headers=right)).status == 200


async def test_loopback_callers_may_guess(toy: Any) -> None:
    for _ in range(12):
        assert (await toy.get("/toy/secret")).status == 401


async def test_a_secret_in_the_path_can_be_guessed_at_as_well(start: Any) -> None:
    toy = await start(settings={"server.trusted_proxies": ["127.0.0.1"]})
    for attempt in range(10):
        assert (await toy.get(f"/toy/guess/{attempt}", headers=PROXIED)).status == 404
    assert (await toy.get("/toy/secret", headers=PROXIED | SECRET)).status == 429
